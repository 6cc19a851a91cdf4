"""A bundle that draws pictures of two sizes: the graphs that a call takes, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image

from sdturbo import Bundle, InvalidRequest, Pipeline, blend
from sdturbo.backends.null import DEVICES, NullBackend
from sdturbo.bundle.description import golden_image, identity
from sdturbo.golden import golden_distance

SIZES = ((64, 64), (96, 128))  # height, width
MASK = np.zeros((20, 30), np.bool_)
MASK[:, :15] = True


@pytest.fixture(scope="module")
def sized(make_bundle):
    """The null backend takes any graph, so that both sizes share their files."""
    root = make_bundle((1, 2))
    manifest = json.loads((root / "bundle.json").read_bytes())
    manifest["sizes"] = [{"height": height, "width": width} for height, width in SIZES]
    for name, stage in manifest["stages"].items():
        if name != "text_encoder":
            stage["graphs"] += [{**graph, "height": 96, "width": 128} for graph in stage["graphs"]]
    for graph in [graph for stage in manifest["stages"].values() for graph in stage["graphs"]]:
        if graph.get("height") == 96:  # a file of its own, as an exporter writes it
            data = (root / graph["file"]).read_bytes()
            graph["file"] = graph["file"].replace(".onnx", ".128x96.onnx")
            (root / graph["file"]).write_bytes(data)
            manifest["files"][graph["file"]] = {**manifest["files"][graph["file"].replace(".128x96", "")]}
    manifest["bundle_id"] = identity(manifest)
    (root / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.load(root)


@pytest.fixture(scope="module", params=DEVICES[:2])
def pipe(sized, request):
    return Pipeline(sized, NullBackend(request.param))


def test_a_call_draws_the_size_that_it_names(pipe):
    assert pipe("a cat", output_type="np").images.shape == (1, 64, 64, 3)
    wide = pipe(["a cat", "a dog"], height=96, width=128, num_images_per_prompt=2, output_type="np").images
    assert wide.shape == (4, 96, 128, 3)
    assert pipe("a cat", height=96, width=128).images[0].size == (128, 96)
    assert np.array_equal(wide[3], pipe("a dog", height=96, width=128, seed=3, output_type="np").images[0])


def test_image_to_image_and_inpainting_come_in_every_size(pipe):
    start = Image.effect_noise((50, 40), 60).convert("RGB")
    options = {"height": 96, "width": 128, "num_inference_steps": 2, "output_type": "np"}
    assert pipe("a cat", start, **options).images.shape == (1, 96, 128, 3)
    picture = pipe("a cat", start, mask_image=MASK, **options).images[0]
    resized = np.asarray(start.resize((128, 96), Image.Resampling.LANCZOS))
    assert np.array_equal(picture[:, 64 + 16 :], resized[:, 64 + 16 :])


def test_streams_mix_sizes(pipe):
    requests = [
        {"prompt": "a cat", "height": height, "width": width, "seed": seed, "output_type": "np"}
        for seed, (height, width) in enumerate(SIZES * 2)
    ]
    for request, result in zip(requests, pipe.stream(requests), strict=True):
        assert np.array_equal(result.images, pipe(**request).images)


def test_one_text_encoder_serves_all_sizes(pipe):
    sessions = {id(pipe._sessions["text_encoder", 1, size]) for size in SIZES}
    assert len(sessions) == 1
    assert len({id(pipe._sessions["decoder", 1, size]) for size in SIZES}) == 2


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"height": 64, "width": 128}, r"the size 128x64 \(width x height\)\. This bundle draws 64x64, 128x96"),
        ({"height": 96}, "the size 64x96"),
        ({"width": "128"}, "width='128' of type str, expected a whole number"),
        ({"height": True, "width": 64}, "height=True"),
        ({"height": 96, "width": 128, "latents": np.zeros((1, 4, 8, 8), np.float32)}, r"\(1, 4, 12, 16\)"),
    ],
)
def test_other_sizes_are_refused_with_those_there(pipe, given, match):
    with pytest.raises(InvalidRequest, match=match):
        pipe("a cat", **given)


def test_a_walk_keeps_its_size(pipe):
    frames = list(blend.walk(pipe, ("a cat", 1), ("a dog", 2), 3, height=96, width=128, output_type="np"))
    assert [frame.images.shape for frame in frames] == [(1, 96, 128, 3)] * 3
    with pytest.raises(InvalidRequest, match="the size 64x96"):
        blend.walk(pipe, ("a cat", 1), ("a dog", 2), 3, height=96)


def test_the_worst_golden_picture_of_all_sizes_counts(pipe, sized):
    golden, wide = sized.golden.image, golden_image(sized.golden.image, 96, 128)
    assert wide == "golden.128x96.png"
    for (height, width), name in zip(SIZES, (golden, wide), strict=True):
        picture = pipe(sized.golden.prompt, height=height, width=width, seed=sized.golden.seed).images[0]
        picture.save(sized.path / name, format="PNG")
    assert golden_distance(pipe) == float("inf")
    Image.new("RGB", (128, 96), "red").save(sized.path / wide)
    assert golden_distance(pipe) < 20
