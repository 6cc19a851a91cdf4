"""Inpainting on a device is one recording, on the null backend's device and on imitations of the GPU backends."""

import gc
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from imitation.cuda import Error
from imitation.plans import with_plans

from sdturbo import Bundle, Cancelled, Pipeline
from sdturbo.backends.keep import KEEP, keep
from sdturbo.backends.null import NullBackend, NullQueue
from sdturbo.backends.nvidia import onnxruntime as cuda
from sdturbo.backends.nvidia.keep_graph import keep_graph

RUNS = [(1, 1.0), (2, 0.5), (4, 0.75), (4, 1.0)]
PICTURE = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
MASK = np.zeros((64, 64), np.bool_)
MASK[:24, 16:48] = True


def options(steps, strength, **others):
    given = {"num_inference_steps": steps, "strength": strength, "keep_unmasked": False, "output_type": "np"}
    return {"mask_image": MASK, "seed": 3, **given, **others}


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return Bundle.load(make_bundle((1, 2)))


@pytest.fixture
def planned(bundle, tmp_path, nvidia):
    """The same with plans, on imitations of CUDA and TensorRT."""
    return with_plans(Bundle.load(shutil.copytree(bundle.path, tmp_path / "bundle")))


def on_ort(bundle):
    """The CUDA backend's logic with a CPU provider."""
    return Pipeline(bundle, cuda.OrtGpuBackend("cuda", [(cuda.CPU, {})], "cpu", 0, "fp32"))


@pytest.mark.parametrize(("steps", "strength"), RUNS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["null", "cuda", "tensorrt"])
def test_a_device_inpaints_what_the_stages_inpaint_one_by_one(request, bundle, kind, steps, strength, count):
    if kind == "null":
        device, host = Pipeline(bundle, NullBackend("null:0")), Pipeline(bundle, NullBackend())
    elif kind == "cuda":
        device, host = on_ort(bundle), Pipeline.load(bundle.path, "onnxruntime")
    else:
        path = request.getfixturevalue("planned").path
        device, host = Pipeline.load(path, "tensorrt"), Pipeline.load(path, "onnxruntime")
    given = options(steps, strength, num_images_per_prompt=count)
    for keep_unmasked in (False, True):
        given["keep_unmasked"] = keep_unmasked
        drawn, expected = (pipe(["a cat", "a dog"], PICTURE, **given) for pipe in (device, host))
        assert np.array_equal(drawn.images, expected.images)
        assert "engines" in drawn.timings
        assert {"encoder", "denoiser", "decoder"} <= expected.timings.keys()
        assert not {"encoder", "denoiser", "decoder"} & drawn.timings.keys()
    assert device.lost_recordings == ()
    (streamed,) = device.stream([{"prompt": ["a cat", "a dog"], "image": PICTURE, **given}])
    assert np.array_equal(streamed.images, drawn.images)


@pytest.mark.parametrize(("steps", "strength"), RUNS)
def test_inpainting_is_one_graph_launch_and_nothing_else(planned, nvidia, steps, strength):
    runtime, _ = nvidia
    pipe = Pipeline.load(planned.path, "tensorrt", device="cuda:1")
    pipe("a dog", PICTURE, **options(steps, strength))
    runtime.calls.clear()
    result = pipe("a cat", 255 - PICTURE, **options(steps, strength, seed=9, mask_image=~MASK))
    assert [name for name in runtime.calls if name != "cudaSetDevice"] == ["cudaGraphLaunch", "cudaStreamSynchronize"]
    host = Pipeline.load(planned.path, "onnxruntime")
    expected = host("a cat", 255 - PICTURE, **options(steps, strength, seed=9, mask_image=~MASK))
    assert np.array_equal(result.images, expected.images)


@pytest.mark.parametrize("posterior", [True, False])
def test_an_encoder_with_one_noise_inpaints_too(make_bundle, posterior):
    bundle = Bundle.load(make_bundle((1,), posterior=posterior))
    given = options(2, 1.0)
    expected = Pipeline.load(bundle.path, "onnxruntime")("a cat", PICTURE, **given).images
    assert np.array_equal(on_ort(bundle)("a cat", PICTURE, **given).images, expected)


def test_load_records_no_inpainting_and_the_first_request_of_a_kind_does(bundle):
    pipe = Pipeline(bundle, NullBackend("null:0"))
    assert len(pipe._inpainting) == 0
    first = pipe("a cat", PICTURE, **options(4, 0.5))
    assert len(pipe._inpainting) == 1
    assert "recording" in first.timings
    assert "recording" not in pipe("a dog", PICTURE, **options(4, 0.5, seed=8)).timings
    pipe("a cat", PICTURE, **options(4, 0.5, num_images_per_prompt=2))
    assert len(pipe._inpainting) == 2


def test_threads_share_one_recording_and_get_their_own_pictures(bundle, monkeypatch):
    pipe, host = Pipeline(bundle, NullBackend("null:0")), Pipeline(bundle, NullBackend())
    made, make = [], NullBackend.program
    monkeypatch.setattr(NullBackend, "program", lambda *args, **kwargs: made.append(1) or make(*args, **kwargs))
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda i: pipe(f"cat {i}", PICTURE, **options(2, 0.5, seed=i)).images, range(20)))
    assert len(made) == 1
    for i, images in enumerate(drawn):
        assert np.array_equal(images, host(f"cat {i}", PICTURE, **options(2, 0.5, seed=i)).images)


def test_a_recording_of_inpainting_that_is_lost_is_in_its_result(planned, nvidia):
    runtime, _ = nvidia
    pipe = Pipeline.load(planned.path, "tensorrt")
    assert pipe("a cat", output_type="np").lost_recordings == []
    runtime.fail["cudaStreamBeginCapture"] = (Error.cudaErrorStreamCaptureUnsupported, 0)
    result = pipe("a cat", PICTURE, **options(4, 0.75))
    title = "inpainting from row 7 to 9 of the schedule, at batch size 1 and 64x64 pixels"
    assert result.lost_recordings == [title]
    assert pipe.lost_recordings == (title,)
    expected = Pipeline.load(planned.path, "onnxruntime")("a cat", PICTURE, **options(4, 0.75))
    assert np.array_equal(result.images, expected.images)


def test_the_kernel_is_freed_with_the_pipeline(planned, nvidia):
    runtime, _ = nvidia
    pipe = Pipeline.load(planned.path, "tensorrt")
    pipe("a cat", PICTURE, **options(2, 0.5))
    pipe("a cat", PICTURE, **options(1, 1.0))
    del pipe
    gc.collect()
    assert runtime.things == {}


@pytest.mark.parametrize(
    ("call", "words"), [("cuModuleLoadData", "does not load"), ("cuLaunchKernel", "failed to launch")]
)
def test_where_the_driver_refuses_the_kernel_the_stages_inpaint_one_by_one(
    planned, nvidia, monkeypatch, caplog, call, words
):
    import cuda.bindings

    pipe = Pipeline.load(planned.path, "tensorrt")
    monkeypatch.setitem(cuda.bindings.driver.fail, call, Error.cudaErrorIllegalState)
    result = pipe("a cat", PICTURE, **options(1, 1.0))
    assert f"cuda:0 {words} the kernel of inpainting: cudaErrorIllegalState" in caplog.text
    title = "inpainting from row 0 to 0 of the schedule, at batch size 1 and 64x64 pixels"
    assert result.lost_recordings == [title]
    assert pipe.lost_recordings == (title,)
    expected = Pipeline.load(planned.path, "onnxruntime")("a cat", PICTURE, **options(1, 1.0))
    assert np.array_equal(result.images, expected.images)
    caplog.clear()
    assert np.array_equal(pipe("a cat", PICTURE, **options(1, 1.0)).images, expected.images)
    assert caplog.text == ""  # not tried again


def test_cancelled_before_its_recording_nothing_is_recorded(bundle):
    pipe, stop = Pipeline(bundle, NullBackend("null:0")), threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        pipe("a cat", PICTURE, **options(1, 1.0, cancel=stop))
    assert len(pipe._inpainting) == 0


def test_nothing_is_allocated_once_it_is_recorded(bundle, monkeypatch):
    pipe = Pipeline(bundle, NullBackend("null:0"))
    pipe("a cat", PICTURE, **options(2, 0.5))
    monkeypatch.setattr(NullQueue, "buffer", lambda *_: pytest.fail("a buffer was made after the recording"))
    pipe("a dog", PICTURE, **options(2, 0.5))


@pytest.mark.parametrize(("batch_size", "height", "width"), [(1, 64, 64), (3, 64, 128)])
def test_the_graph_is_the_arithmetic_bit_for_bit(batch_size, height, width):
    graph = keep_graph(batch_size, height, width)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    rng = np.random.default_rng(0)
    shapes = {spec.name: spec.shape_at(batch_size) for spec in KEEP.at(height, width).inputs}
    given = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items() if shape}
    given["mask"] = (given["mask"] > 0).astype(np.float32)
    given["sigma"] = np.asarray(1.6128870248794556, np.float32)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (kept,) = session.run(None, given)
    assert np.array_equal(kept, keep(**given))
    assert np.array_equal(kept[given["mask"] == 1], given["latents"][given["mask"] == 1])


def test_what_is_not_finite_stays_visible_outside_the_mask():
    zeros = np.zeros((1, 4, 8, 8), np.float32)
    assert np.isnan(keep(np.full_like(zeros, np.nan), zeros, zeros, zeros, np.float32(0))).all()
