"""Weights rounded to float16 in graphs that compute in float32: half the bytes, a limit of their own, said everywhere."""

import json

import numpy as np
import pytest

from sdturbo import Pipeline
from sdturbo.bundle.description import MANIFEST, identity
from sdturbo.errors import InvalidRequest
from sdturbo.golden import difference
from sdturbo_export.build import build
from sdturbo_export.graphs.onnx_from_torch import _half, ir
from sdturbo_export.options import BuildOptions
from sdturbo_export.proof.distance import BOUNDS, ROUNDED_WEIGHTS, bound
from sdturbo_export.verify import LIMITS


@pytest.fixture(scope="module")
def rounded_bundle(small_checkpoint, store, tmp_path_factory):
    return build(
        small_checkpoint,
        tmp_path_factory.mktemp("bundles") / "rounded",
        BuildOptions(weight_format="fp16"),
        store=store,
    )


def weight_bytes(bundle):
    return sum(size for name, (_, size) in bundle.files.items() if name.endswith(".weights"))


def test_the_bundle_says_so_and_it_is_part_of_its_identity(rounded_bundle, small_bundle):
    assert (rounded_bundle.precision, rounded_bundle.weight_format) == ("fp32", "fp16")
    assert small_bundle.weight_format == "fp32"
    manifest = json.loads((rounded_bundle.path / MANIFEST).read_bytes())
    assert identity(manifest | {"weight_format": "fp32"}) != identity(manifest) == rounded_bundle.bundle_id


def test_it_weighs_half(rounded_bundle, small_bundle):
    assert weight_bytes(rounded_bundle) < 0.55 * weight_bytes(small_bundle)


def test_its_parity_has_a_limit_of_its_own(rounded_bundle):
    assert bound("decoder", "fp32", "fp16") == ROUNDED_WEIGHTS > bound("decoder", "fp32", "fp32") == BOUNDS["fp32"]
    assert bound("decoder", "bf16", "fp16") == BOUNDS["bf16"]
    for name in ("text_encoder", "denoiser", "decoder"):
        found = rounded_bundle.parity[name]
        assert BOUNDS["fp32"] < found["relative_l2"] <= found["bound"] == ROUNDED_WEIGHTS


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_its_pictures_are_those_of_float32_weights(rounded_bundle, small_bundle, backend):
    drawn = [
        Pipeline.load(bundle.path, backend, precision="fp32", image_to_image=False)(
            "a red house", seed=3, num_inference_steps=2, output_type="np"
        ).images[0]
        for bundle in (rounded_bundle, small_bundle)
    ]
    least, most = LIMITS["fp16"]
    distance, off = difference(*drawn)
    assert least <= distance < np.inf
    assert off <= most


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp16", "weight_format": "fp16"}, "with precision fp16"),
        ({"weight_format": "int4"}, "Expected fp32 or fp16"),
    ],
)
def test_what_makes_no_sense_is_refused(small_checkpoint, tmp_path, options, words):
    with pytest.raises(InvalidRequest, match=words):
        build(small_checkpoint, tmp_path / "bundle", BuildOptions(**options))


def test_only_matrices_and_kernels_within_float16_are_rounded():
    third = np.full((100, 10), 1 / 3, np.float32)
    half = _half(ir.tensor(third, name="w"), rounded=True)
    assert half.numpy().dtype == np.float16
    assert np.abs(half.numpy() - third).max() < 2**-11
    assert _half(ir.tensor(third.ravel(), name="w"), rounded=True) is None
    for value in (1e6, -np.inf, np.nan):
        third[0, 0] = value
        assert _half(ir.tensor(third, name="w"), rounded=True) is None
