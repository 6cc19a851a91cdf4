"""A backend whose library refuses every graph, on the device of `dummy_backend`."""

from dummy_backend import DEVICE, DummyBackend

from sdturbo.backends import Offer
from sdturbo.errors import BackendUnavailable

NAME = "refusing"


class RefusingBackend(DummyBackend):
    name = NAME

    def session(self, graph, stage, batch_size):
        raise BackendUnavailable(f"the library refuses {graph.name}")


def offers(bundle):
    return [Offer(NAME, DEVICE, "fp16")]


def connect(offer, num_threads, bundle):
    return RefusingBackend()
