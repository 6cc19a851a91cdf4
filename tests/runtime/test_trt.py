"""The TensorRT backend on imitations of CUDA and TensorRT: what it makes, in which order, and what it frees."""

import dataclasses
import gc
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from imitation.cuda import Error
from imitation.plans import with_plans

from sdturbo import BackendUnavailable, Bundle, BundleError, Pipeline, backends
from sdturbo.backends import BackendChoice
from sdturbo.backends.nvidia.stream import CudaStream
from sdturbo.bundle.plans import read_plans
from sdturbo.errors import PlanMismatch


@pytest.fixture
def bundle(make_bundle, tmp_path, nvidia):
    return with_plans(Bundle.load(shutil.copytree(make_bundle((1, 2)), tmp_path / "bundle")))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_plans_draw_what_their_graphs_draw(bundle, steps):
    device, host = Pipeline.load(bundle.path, "tensorrt"), Pipeline.load(bundle.path, "onnxruntime")
    assert all(program.replays for program in device._programs.values())
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for image in (None, picture):
        request = {"num_images_per_prompt": 3, "num_inference_steps": steps, "strength": None if image is None else 1.0}
        found, expected = (pipe("a cat", image, **request, output_type="np") for pipe in (device, host))
        assert np.array_equal(found.images, expected.images)
    assert (found.backend, found.device) == ("tensorrt", "cuda:0")


@pytest.mark.parametrize("strength", [None, 0.25, 0.5, 1.0])
def test_a_request_is_one_graph_launch_and_nothing_else(bundle, nvidia, strength):
    cuda, _ = nvidia
    pipe = Pipeline.load(bundle.path, "tensorrt", device="cuda:1")
    image = None if strength is None else np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    cuda.calls.clear()
    result = pipe("a dog", image, strength=strength, num_inference_steps=4, output_type="np")
    assert "engines" in result.timings
    assert result.lost_recordings == []
    host = Pipeline.load(bundle.path, "onnxruntime")
    expected = host("a dog", image, strength=strength, num_inference_steps=4, output_type="np")
    assert np.array_equal(result.images, expected.images)
    assert [name for name in cuda.calls if name != "cudaSetDevice"] == ["cudaGraphLaunch", "cudaStreamSynchronize"]
    assert pipe.backend.device == "cuda:1"


def test_a_stage_of_a_stream_is_one_graph_launch_on_a_stream_of_its_own(bundle, nvidia):
    cuda, _ = nvidia
    pipe = Pipeline.load(bundle.path, "tensorrt", image_to_image=False)
    assert all(session.replays for session in pipe._sessions.values())
    streams = []
    launch = cuda.cudaGraphLaunch
    cuda.cudaGraphLaunch = lambda graph, stream: (streams.append(stream), launch(graph, stream))[1]
    given = [{"prompt": f"cat {i}", "seed": i, "num_inference_steps": 2, "output_type": "np"} for i in range(5)]
    cuda.calls.clear()
    found = [one.images for one in pipe.stream(given)]
    assert set(cuda.calls) == {"cudaSetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"}
    assert sorted(streams.count(one) for one in set(streams)) == [5, 5, 10]
    host = Pipeline.load(bundle.path, "onnxruntime")
    assert all(np.array_equal(images, host(**one).images) for images, one in zip(found, given, strict=True))


def test_everything_is_freed_with_the_pipeline(bundle, nvidia):
    cuda, _ = nvidia
    pipe = Pipeline.load(bundle.path, "tensorrt")
    result = pipe("a cat", output_type="np").images
    kept = result.copy()
    assert cuda.things
    del pipe
    gc.collect()
    assert cuda.things == {}
    assert np.array_equal(result, kept)


def test_the_batch_sizes_of_a_stage_compute_in_one_block_and_stages_in_others(bundle, nvidia):
    _, trt = nvidia
    pipe = Pipeline.load(bundle.path, "tensorrt")
    assert len(trt.scratch) == 8
    blocks = {name: {one for one in trt.scratch if f"/{name}." in one[0]} for name in bundle.stages}
    addresses = [{address for _, address, _ in ones} for ones in blocks.values()]
    assert all(len(one) == 1 for one in addresses)
    assert len(set.union(*addresses)) == 4
    assert {size for _, _, size in trt.scratch} == {2000}
    assert pipe._sessions["decoder", 1, bundle.sizes[0]].lock is pipe._sessions["decoder", 2, bundle.sizes[0]].lock


def test_a_context_that_needs_more_gets_a_block_of_its_own_and_all_go_with_their_engines(bundle, nvidia):
    cuda, trt = nvidia
    backend = backends.connect(BackendChoice("tensorrt"), bundle)
    sessions = [backend.session(bundle.graph("decoder", size), bundle.stages["decoder"], size) for size in (1, 2)]
    assert [size for _, _, size in trt.scratch] == [1000, 2000]
    assert all(address in cuda.things for _, address, _ in trt.scratch)
    del sessions  # and with them at once what they held: no cycle of references waits for the collector
    assert cuda.things == {}


def test_threads_sharing_a_pipeline_get_their_own_pictures(bundle):
    pipe = Pipeline.load(bundle.path, "tensorrt")

    def draw(i):
        picture = None if i % 3 else np.full((64, 64, 3), i, np.uint8)
        count = 1 + i % 2  # of both batch sizes
        options = {"num_images_per_prompt": count, "num_inference_steps": 2, "output_type": "np"}
        return pipe(f"cat {i % 5}", picture, seed=i, **options).images

    expected = [draw(i) for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(a, b) for a, b in zip(pool.map(draw, range(20)), expected, strict=True))


@pytest.mark.parametrize("call", ["cudaStreamEndCapture", "cudaGraphInstantiate", "cudaStreamBeginCapture"])
def test_a_failed_capture_is_logged_and_the_launches_go_on_plainly(bundle, nvidia, caplog, call):
    cuda, _ = nvidia
    cuda.fail[call] = (Error.cudaErrorStreamCaptureUnsupported, 0)
    if call == "cudaStreamEndCapture":  # it ends the capture all the same, as CUDA does
        end = cuda.cudaStreamEndCapture
        cuda.cudaStreamEndCapture = lambda stream: (setattr(stream, "captured", None), end(stream))[1]
    with caplog.at_level(logging.WARNING, "sdturbo"):
        pipe = Pipeline.load(bundle.path, "tensorrt")
    assert not any(one.replays for one in (*pipe._programs.values(), *pipe._sessions.values()))
    assert "decoder at batch size 2 and 64x64 pixels: launched plainly, for recording failed" in caplog.text
    assert (
        "text-to-image from row 6 to 9 of the schedule, at batch size 2 and 64x64 pixels: launched plainly, for recording"
        in caplog.text
    )
    expected = Pipeline.load(bundle.path, "onnxruntime")("a cat", output_type="np").images
    result = pipe("a cat", output_type="np")
    assert np.array_equal(result.images, expected)
    assert len(result.lost_recordings) == 2 * (4 + 4 + 10)  # per batch size: stages, text-to-image, image-to-image
    assert "decoder at batch size 2 and 64x64 pixels" in result.lost_recordings


def test_garbage_that_holds_device_memory_is_not_collected_in_a_capture(nvidia):
    stream = CudaStream(0)

    def work():
        garbage = [stream.memory(100)]
        garbage.append(garbage)
        del garbage
        for _ in range(2000):  # allocations, which start the collector
            junk.append([])

    junk = []
    thresholds = gc.get_threshold()
    gc.set_threshold(10, 1, 1)
    try:
        stream.record(work)
    finally:
        gc.set_threshold(*thresholds)
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        stream.record(lambda: stream.memory(100))  # freed at once


@pytest.mark.parametrize("error", [BackendUnavailable("enqueue failed"), KeyboardInterrupt()])
def test_a_capture_is_ended_whatever_breaks_it(nvidia, error):
    cuda, _ = nvidia
    stream = CudaStream(0)

    def work():
        raise error

    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        stream.record(work)
    assert all(thing.captured is None for thing in cuda.things.values())
    assert len(cuda.things) == 1  # the stream: the graph that was captured is freed
    stream.synchronize()


@pytest.mark.parametrize("what", ["deserialize", "context", "enqueue"])
def test_what_tensorrt_refuses_is_an_error_with_its_words(bundle, nvidia, what):
    _, tensorrt = nvidia
    tensorrt.refuses = what
    with pytest.raises(BackendUnavailable, match=rf"\[{what}\] out of memory"):
        Pipeline.load(bundle.path, "tensorrt")


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc"])
@pytest.mark.parametrize("working", [0, 3, 30])
def test_out_of_memory_at_load_says_so_and_leaks_nothing(bundle, nvidia, call, working):
    cuda, _ = nvidia
    cuda.fail[call] = (Error.cudaErrorMemoryAllocation, working)
    with pytest.raises(BackendUnavailable, match=r"cuda:0 failed to .* bytes.*image_to_image=False"):
        Pipeline.load(bundle.path, "tensorrt")
    gc.collect()
    assert cuda.things == {}


def test_a_fault_while_drawing_is_typed(bundle, nvidia):
    cuda, _ = nvidia
    pipe = Pipeline.load(bundle.path, "tensorrt")
    cuda.fail["cudaStreamSynchronize"] = (Error.cudaErrorIllegalState, 0)
    with pytest.raises(BackendUnavailable, match="cuda:0 failed to run: cudaErrorIllegalState"):
        pipe("a cat")


def test_a_plan_is_hashed_again_when_it_is_loaded(bundle, nvidia):
    _, tensorrt = nvidia
    backend = backends.connect(BackendChoice("tensorrt"), bundle)
    plan = next(plan for plan in read_plans(bundle) if (plan.stage, plan.batch_size) == ("decoder", 1))
    (bundle.path / plan.file).write_bytes(b"x" * bundle.files[plan.file][1])
    with pytest.raises(BundleError, match=f"{plan.file} was altered"):
        backend.session(bundle.graph("decoder", 1), bundle.stages["decoder"], 1)
    assert not hasattr(tensorrt, "deserialised")


def test_a_plan_of_another_machine_is_never_deserialised(make_bundle, tmp_path, nvidia):
    _, tensorrt = nvidia
    bundle = with_plans(Bundle.load(shutil.copytree(make_bundle(), tmp_path / "bundle")), gpu="NVIDIA A100")
    with pytest.raises(PlanMismatch, match="gpu is Imitated GPU, not NVIDIA A100"):
        Pipeline.load(bundle.path, "tensorrt")
    assert not hasattr(tensorrt, "deserialised")


@pytest.mark.parametrize("compatible", [False, True])
def test_only_a_version_compatible_plan_may_bring_code_for_the_host(make_bundle, tmp_path, nvidia, compatible):
    root = shutil.copytree(make_bundle(), tmp_path / "bundle")
    bundle = with_plans(Bundle.load(root), version_compatible=compatible)
    nvidia[1].__version__ = "10.17.0.1" if compatible else nvidia[1].__version__
    backend = backends.connect(BackendChoice("tensorrt"), bundle)
    session = backend.session(bundle.graph("decoder", 1), bundle.stages["decoder"], 1)
    assert session.engine._loader.engine_host_code_allowed is compatible


def test_a_plan_with_other_tensors_is_refused(bundle, nvidia):
    backend = backends.connect(BackendChoice("tensorrt"), bundle)
    data = json.dumps({"graph": str(bundle.graph("encoder", 1)), "distort": 0}).encode()
    with pytest.raises(BundleError, match="its tensors are"):
        backend.open(data, bundle.stages["decoder"], 1, bundle.graph("decoder", 1))


def test_another_graph_than_the_bundles_is_refused(bundle, tmp_path):
    backend = backends.connect(BackendChoice("tensorrt"), bundle)
    with pytest.raises(BackendUnavailable, match="is not the bundle's decoder"):
        backend.session(tmp_path / "decoder.onnx", bundle.stages["decoder"], 1)


def test_a_bundle_cut_down_to_one_batch_size_keeps_its_plans(bundle):
    """As benchmarks measure it: the plans of its other batch sizes are no fault."""
    one = dataclasses.replace(bundle, batch_sizes=(1,))
    pipe = Pipeline(one, backends.connect(BackendChoice("tensorrt"), one))
    expected = Pipeline.load(bundle.path, "onnxruntime")("a cat", output_type="np").images
    assert np.array_equal(pipe("a cat", output_type="np").images, expected)
