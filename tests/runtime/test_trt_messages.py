"""TensorRT's one logger: each error reaches the object that it belongs to."""

import shutil
import threading

import numpy as np
import pytest
from imitation.plans import with_plans

from sdturbo import BackendUnavailable, Bundle, Pipeline
from sdturbo.backends.nvidia.messages import Messages, tell


@pytest.fixture
def bundle(make_bundle, tmp_path, nvidia):
    return with_plans(Bundle.load(shutil.copytree(make_bundle((1, 2)), tmp_path / "bundle")))


def test_there_is_one_logger_and_each_error_has_its_own_words(bundle, nvidia):
    _, trt = nvidia
    pipe = Pipeline.load(bundle.path, "tensorrt", image_to_image=False)
    session = pipe._sessions["decoder", 1, bundle.sizes[0]]
    given = {"latents": np.zeros((1, 4, 8, 8), np.float32)}
    trt.refuses = "enqueue"
    with pytest.raises(BackendUnavailable, match=r"failed to run .*decoder.*: \[enqueue\] out of memory"):
        session.run(given, replay=False)
    trt.refuses = "deserialize"
    with pytest.raises(BackendUnavailable, match=r"\[deserialize\] out of memory\. If") as caught:
        Pipeline.load(bundle.path, "tensorrt")
    assert "enqueue" not in str(caught.value)
    assert len(trt.loggers) == 1


def test_an_error_reaches_those_who_listen_in_its_thread_or_all():
    here, there = Messages(), Messages()
    ready, done = threading.Event(), threading.Event()

    def listen():
        with there.listening():
            ready.set()
            done.wait(10)

    other = threading.Thread(target=listen)
    other.start()
    ready.wait(10)
    with here.listening():
        tell("of this thread ")
        library = threading.Thread(target=tell, args=("of the library's own",))
        library.start()
        library.join()
    done.set()
    other.join()
    tell("to nobody")
    assert here.last() == "of this thread; of the library's own."
    assert there.last() == "of the library's own."
    assert Messages().last() == "it gives no reason."
