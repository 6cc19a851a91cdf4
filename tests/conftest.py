"""A small bundle made by hand: real ONNX graphs of 64×64 pixels, the real schedule and vocabulary, no weights."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import settings

from sdturbo import Pipeline
from sdturbo.bundle.description import identity
from sdturbo_export.weights.tokenizer_files import tokenizer_json, write_tokenizer

# tests import libraries themselves, and have them report nothing either
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.modules["openvino_telemetry"] = None

import imitation  # noqa: E402 (it imports onnxruntime)

settings.register_profile("sdturbo", deadline=None, max_examples=50, database=None)
settings.load_profile("sdturbo")

# n -> timesteps, sigmas of SD-Turbo
SCHEDULE = {
    1: ((999,), (14.614646911621094,)),
    2: ((999, 499), (14.614646911621094, 1.6128870248794556)),
    3: ((999, 666, 332), (14.614646911621094, 2.9183084964752197, 0.9292147159576416)),
    4: ((999, 749, 499, 249), (14.614646911621094, 4.081730842590332, 1.6128870248794556, 0.6932054162025452)),
}
GRAPHS = {
    "text_encoder": """(int64[B,77] input_ids) => (float[B,77,8] prompt_embeds)
    <float[8] weight = {1,2,3,4,5,6,7,8}, float size = {49408}, int64[1] last = {2}> {
        ids = Cast <to = 1> (input_ids)
        share = Div (ids, size)
        column = Unsqueeze (share, last)
        prompt_embeds = Mul (column, weight)
    }""",
    "denoiser": """(float[B,4,8,8] latents, float[B,77,8] prompt_embeds, int64 step) => (float[B,4,8,8] denoised)
    <float half = {0.5}, float tenth = {0.1}, int64[4] shape = {B,1,1,1}> {
        pooled = ReduceMean <axes = [1, 2], keepdims = 0> (prompt_embeds)
        column = Reshape (pooled, shape)
        row = Cast <to = 1> (step)
        shift = Mul (row, tenth)
        less = Mul (latents, half)
        moved = Add (less, shift)
        denoised = Add (moved, column)
    }""",
    "decoder": """(float[B,4,8,8] latents) => (uint8[B,64,64,3] image)
    <int64[1] zero = {0}, int64[1] three = {3}, int64[1] one = {1}, int64[2] pixel = {2,4}, float gain = {20},
     int64[6] blocks = {B,8,8,8,8,3}, int64[4] shape = {B,64,64,3}, float grey = {128},
     float low = {0}, float high = {255}> {
        rgb = Slice (latents, zero, three, one)
        last = Transpose <perm = [0, 2, 3, 1]> (rgb)
        wide = Unsqueeze (last, pixel)
        tiles = Expand (wide, blocks)
        frame = Reshape (tiles, shape)
        strong = Mul (frame, gain)
        lit = Add (strong, grey)
        bounded = Clip (lit, low, high)
        round = Round (bounded)
        image = Cast <to = 2> (round)
    }""",
    "encoder": """(uint8[B,64,64,3] image, float[B,4,8,8] posterior_noise, float[B,4,8,8] noise, int64 step)
    => (float[B,4,8,8] latents)
    <float white = {255}, float tenth = {0.1}, int64[6] blocks = {B,8,8,8,8,3}, int64[4] shape = {B,1,8,8}> {
        values = Cast <to = 1> (image)
        share = Div (values, white)
        tiles = Reshape (share, blocks)
        grey = ReduceMean <axes = [2, 4, 5], keepdims = 0> (tiles)
        mean = Reshape (grey, shape)
        spread = Mul (posterior_noise, tenth)
        drawn = Add (mean, spread)
        row = Cast <to = 1> (step)
        louder = Mul (noise, row)
        latents = Add (drawn, louder)
    }""",
}
# the encoder of an AutoencoderTiny: no posterior
ONE_NOISE = (
    GRAPHS["encoder"]
    .replace("float[B,4,8,8] posterior_noise, ", "")
    .replace("spread = Mul (posterior_noise, tenth)", "spread = Mul (noise, tenth)")
)
DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.UINT8: "uint8"}


def pytest_configure():
    """Each process of `pytest -n` has its share of the cores: threads that spin while they wait take no one else's time."""
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        number, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: count])


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """once(name, make): the path `name`, which `make(path)` writes. All processes of `pytest -n` share it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    @contextmanager
    def locked(name):
        with (shared / f"{name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def get(name, make) -> Path:
        done = shared / f"{name}.done"
        with locked(name):
            if not done.exists():
                make(shared / name)
                done.touch()
        return shared / name

    return get


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The tests neither read nor fill the user's cache; processes that they start inherit theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDTURBO_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def clip_files(tmp_path_factory):
    """SD-Turbo's `tokenizer` folder, and in it the tokenizer.json of a bundle."""
    directory = tmp_path_factory.mktemp("clip")
    write_tokenizer(directory)
    text = tokenizer_json(directory)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory, clip_files):
    """make_bundle(batch_sizes) writes a valid bundle into a new directory and returns it.

    sizes: (height, width) of its pictures. posterior: False for an encoder with one noise, as that of an AutoencoderTiny.
    """

    def make(batch_sizes=(1,), *, sizes=((64, 64),), posterior=True) -> Path:
        root = tmp_path_factory.mktemp("bundle")
        (root / "onnx").mkdir()
        np.arange(1, 9, dtype=np.float32).tofile(root / "onnx/weights.data")
        graphs = GRAPHS if posterior else GRAPHS | {"encoder": ONE_NOISE}
        stages = {name: write_stage(root, name, text, batch_sizes, sizes) for name, text in graphs.items()}
        shutil.copy(clip_files / "tokenizer.json", root)
        (root / "golden.png").write_bytes(b"not looked at by the runtime")
        write_manifest(root, stages, batch_sizes, sizes)
        return root

    return make


@pytest.fixture(scope="session")
def bundle_dir(make_bundle):
    """A bundle of batch size 1 that no test changes."""
    return make_bundle()


@pytest.fixture(scope="session")
def pipe(bundle_dir):
    return Pipeline.load(bundle_dir, backend="null")


def write_stage(root: Path, name: str, text: str, batch_sizes, sizes) -> dict:
    """Write a stage's graph for each batch size and size of pictures; returns its entry in the manifest."""
    graphs = []
    sizes = sizes[:1] if name == "text_encoder" else sizes
    for batch_size, (height, width) in product(batch_sizes, sizes):
        sized = {} if name == "text_encoder" else {"height": height, "width": width}
        shaped = text.replace("B,64,64,", f"B,{height},{width},").replace("B,4,8,8", f"B,4,{height // 8},{width // 8}")
        shaped = shaped.replace("B,8,8,8,8,", f"B,{height // 8},8,{width // 8},8,")
        shaped = shaped.replace("B,1,8,8", f"B,1,{height // 8},{width // 8}").replace("B,", f"{batch_size},")
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> {name} {shaped}')
        for weight in model.graph.initializer:
            if weight.name == "weight":
                weight.ClearField("float_data")
                weight.data_location = onnx.TensorProto.EXTERNAL
                weight.external_data.add(key="location", value="weights.data")
        at = "" if (height, width) == sizes[0] else f".{height}x{width}"
        file = f"onnx/{name}.{batch_size}{at}.onnx"
        graphs.append({"batch_size": batch_size, **sized, "form": "plain", "file": file})
        onnx.save(model, root / graphs[-1]["file"])
    inputs, outputs = ([tensor(value) for value in values] for values in (model.graph.input, model.graph.output))
    return {"inputs": inputs, "outputs": outputs, "graphs": graphs}


def tensor(value: onnx.ValueInfoProto) -> dict:
    kind = value.type.tensor_type
    shape = ["B" if i == 0 else dim.dim_value for i, dim in enumerate(kind.shape.dim)]
    if len(shape) == 4:
        shape = ["B", 4, "H/8", "W/8"] if shape[1] == 4 else ["B", "H", "W", 3]
    return {"name": value.name, "dtype": DTYPES[kind.elem_type], "shape": shape}


def write_manifest(root: Path, stages: dict, batch_sizes, sizes) -> None:
    files = {
        str(file.relative_to(root)): {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for file in sorted(root.rglob("*"))
        if file.is_file() and (data := file.read_bytes())
    }
    rows = [
        {"num_inference_steps": n, "index": i, "timestep": timesteps[i], "sigma": sigma, "sigma_next": sigma_next}
        for n, (timesteps, sigmas) in SCHEDULE.items()
        for i, (sigma, sigma_next) in enumerate(zip(sigmas, (*sigmas[1:], 0.0), strict=True))
    ]
    manifest = {
        "format": 2,
        "model": {"name": "fake"},
        "precision": "fp32",
        "sizes": [{"height": height, "width": width} for height, width in sizes],
        "batch_sizes": list(batch_sizes),
        "schedule": {"rows": rows},
        "stages": stages,
        "files": files,
        "parity": {},
        "golden": {"prompt": "a cat", "seed": 0, "num_inference_steps": 1, "image": "golden.png", "min_psnr": 40.0},
    }
    (root / "bundle.json").write_text(json.dumps({**manifest, "bundle_id": identity(manifest)}), encoding="utf-8")


@pytest.fixture
def nvidia(monkeypatch):
    """(cuda, tensorrt): imitations in the place of the libraries, with two GPUs."""
    return imitation.install(monkeypatch)
