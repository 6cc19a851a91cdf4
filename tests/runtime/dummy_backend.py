"""A backend from outside the package: the null backend's numbers on a device of its own."""

from sdturbo.backends import Offer
from sdturbo.backends.null import NullBackend

NAME, DEVICE = "dummy", "dummy:0"


class DummyBackend(NullBackend):
    name, precision = NAME, "fp16"

    def __init__(self):
        super().__init__(DEVICE)


def offers(bundle):
    return [Offer(NAME, DEVICE, "fp16")]


def connect(offer, num_threads, bundle):
    return DummyBackend()
