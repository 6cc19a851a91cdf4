"""A TAESD-style decoder and encoder: diffusers' AutoencoderTiny in the place of the checkpoint's own."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import AutoencoderKL, AutoencoderTiny

from sdturbo import Pipeline
from sdturbo.commands import bench
from sdturbo.commands.cli import cli
from sdturbo.errors import InvalidRequest
from sdturbo_export.build import build
from sdturbo_export.errors import CheckpointError
from sdturbo_export.proof.parity import half_output, relative_l2, torch_output
from sdturbo_export.rewrites.upsample import PhaseUpsample
from sdturbo_export.stages import TinyEncoder, example_inputs, graph_module, stage_definitions
from sdturbo_export.verify import compare_with_diffusers, verify_bundle
from sdturbo_export.weights.autoencoder_tiny import with_decoder

BLOCKS = {"encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4}
SMALL = {**BLOCKS, "num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}


def write_tiny(path, **options):
    torch.manual_seed(0)
    AutoencoderTiny(**{**SMALL, **options}).save_pretrained(path)
    return path


def edit_config(path, **values):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory):
    path = write_tiny(tmp_path_factory.mktemp("decoders") / "small-taesd")
    (path / "LICENSE").write_text("MIT, of the decoder")
    return path


@pytest.fixture(scope="module")
def tiny_checkpoint(small_checkpoint, tiny_path):
    return with_decoder(small_checkpoint, tiny_path)


@pytest.fixture(scope="module")
def tiny_build(tiny_checkpoint, small_bundle, store, tmp_path_factory):
    """(bundle, names of the stages that were exported for it), after the bundle of the same model with its own decoder."""
    lines = []
    bundle = build(tiny_checkpoint, tmp_path_factory.mktemp("tiny") / "b", store=store, say=lines.append)
    return bundle, [lines[i - 1].split()[1] for i, line in enumerate(lines) if line.strip().startswith("exported")]


def test_only_its_own_stages_are_made_anew(tiny_build, small_bundle):
    bundle, exported = tiny_build
    assert exported == ["decoder", "encoder"]
    assert bundle.bundle_id != small_bundle.bundle_id
    assert all(0 < bundle.parity[name]["relative_l2"] <= 1e-5 for name in exported)


def test_the_bundle_says_which_decoder_it_holds(tiny_build, tiny_path, small_bundle):
    bundle, _ = tiny_build
    assert (bundle.decoder, small_bundle.decoder) == ("AutoencoderTiny small-taesd", "AutoencoderKL")
    weights = set(bundle.model["weights"])
    assert "decoder/diffusion_pytorch_model.safetensors" in weights
    assert not any(name.startswith("vae/") for name in weights)
    assert str(tiny_path.parent) not in (bundle.path / "bundle.json").read_text()
    assert [spec.name for spec in bundle.stages["encoder"].inputs] == ["image", "noise", "step"]
    assert "MIT, of the decoder" in (bundle.path / "LICENSE.md").read_text()


def test_commands_and_results_show_it(tiny_build):
    bundle, _ = tiny_build
    result = CliRunner().invoke(cli, ["info", "--bundle", str(bundle.path)])
    assert "decoder    AutoencoderTiny small-taesd" in result.output
    pipe = Pipeline.load(bundle.path, "onnxruntime", image_to_image=False)
    drawn = pipe("x")
    assert drawn.decoder == "AutoencoderTiny small-taesd"
    assert "VAE: AutoencoderTiny small-taesd" in drawn.images[0].info["parameters"]
    found = bench.measure(lambda: pipe, runs=1, num_inference_steps=1)
    assert found["decoder"] == "AutoencoderTiny small-taesd"


def test_every_request_equals_diffusers_with_the_same_decoder(tiny_build, tiny_checkpoint):
    """Image-to-image too: without a posterior its first noise is that of the schedule."""
    lines = list(compare_with_diffusers(tiny_build[0], tiny_checkpoint))
    assert len(lines) == 24  # 12 requests on 2 backends
    assert [line for line in lines if not line["ok"]] == []


def test_verify_needs_the_decoder_of_the_bundle(tiny_build, tiny_checkpoint, small_checkpoint, tmp_path):
    with pytest.raises(InvalidRequest, match=r"small-taesd.*--decoder"):
        next(verify_bundle(tiny_build[0], small_checkpoint))
    lines = verify_bundle(tiny_build[0], tiny_checkpoint)
    assert [next(lines)["ok"] for _ in range(2)] == [True, True]  # files, checkpoint
    torch.manual_seed(1)
    AutoencoderTiny(**SMALL).save_pretrained(tmp_path / "small-taesd")
    lines = verify_bundle(tiny_build[0], with_decoder(small_checkpoint, tmp_path / "small-taesd"))
    assert [next(lines)["ok"] for _ in range(2)] == [True, False]


@pytest.mark.parametrize("stage", ["decoder", "encoder"])
def test_graph_module_equals_diffusers(tiny_checkpoint, stage):
    definition = stage_definitions(tiny_checkpoint)[stage]
    inputs = {name: tensor.numpy() for name, tensor in example_inputs(definition, 2, seed=2).items()}
    module = graph_module(definition)
    if stage == "decoder":
        assert sum(isinstance(one, PhaseUpsample) for one in module.modules()) == 3
    else:
        assert isinstance(module, TinyEncoder)
    with torch.no_grad():
        found = (module.pixels if stage == "decoder" else module)(*(torch.from_numpy(one) for one in inputs.values()))
    assert relative_l2(found.numpy(), torch_output(definition, inputs)) < 1e-5


def test_its_own_scaling_factor_is_used(small_checkpoint, tiny_checkpoint, tiny_path, tmp_path):
    scaled_path = write_tiny(tmp_path / "scaled", scaling_factor=0.5)
    scaled = with_decoder(small_checkpoint, scaled_path)
    latents = np.random.default_rng(0).standard_normal((1, 4, 64, 64), np.float32)
    with torch.no_grad():
        found, expected = (
            graph_module(stage_definitions(checkpoint)["decoder"]).pixels(torch.from_numpy(scaled_latents))
            for checkpoint, scaled_latents in ((scaled, latents), (tiny_checkpoint, latents / 0.5))
        )
    torch.testing.assert_close(found, expected)


def test_float16_keeps_its_bound(tiny_checkpoint):
    decoder = stage_definitions(tiny_checkpoint)["decoder"]
    inputs = {"latents": np.random.default_rng(0).standard_normal((1, 4, 64, 64), np.float32)}
    distance = relative_l2(half_output(decoder, inputs), torch_output(decoder, inputs))
    assert 0 < distance < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_channels": 16}, "latent_channels is 16, but SD-Turbo's latents have 4"),
        ({"in_channels": 1}, "in_channels is 1, expected 3"),
        (
            {"decoder_block_out_channels": (32,) * 3, "num_decoder_blocks": (1,) * 3},
            "num_decoder_blocks .* no scale of 8",
        ),
    ],
)
def test_a_decoder_of_another_family_is_refused(small_checkpoint, tmp_path, options, message):
    path = write_tiny(tmp_path / "other", **options)
    with pytest.raises(CheckpointError, match=message):
        with_decoder(small_checkpoint, path)


@pytest.mark.parametrize(
    "values", [{"num_decoder_blocks": 3}, {"upsampling_scaling_factor": None}, {"scaling_factor": "x"}]
)
def test_a_nonsensical_config_is_a_fault_not_a_crash(small_checkpoint, tmp_path, values):
    path = write_tiny(tmp_path / "odd")
    edit_config(path, **values)
    with pytest.raises(CheckpointError, match=r"expected|no scale"):
        with_decoder(small_checkpoint, path)


def test_a_directory_that_is_no_autoencoder_tiny_is_refused(small_path, small_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        with_decoder(small_checkpoint, tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        with_decoder(small_checkpoint, small_path)
    with pytest.raises(CheckpointError, match="describes AutoencoderKL, expected AutoencoderTiny"):
        with_decoder(small_checkpoint, small_path / "vae")
    path = write_tiny(tmp_path / "taesd")
    weights = path / "diffusion_pytorch_model.safetensors"
    AutoencoderKL(block_out_channels=(32,)).save_pretrained(tmp_path / "kl")
    weights.write_bytes((tmp_path / "kl" / weights.name).read_bytes())
    with pytest.raises(CheckpointError, match=r"decoder: \d+ missing tensors"):
        with_decoder(small_checkpoint, path)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="is a pickle, which is never loaded"):
        with_decoder(small_checkpoint, path)


def test_fp16_files_are_read(small_checkpoint, tmp_path, tiny_checkpoint):
    torch.manual_seed(0)
    AutoencoderTiny(**SMALL).half().save_pretrained(tmp_path / "half", variant="fp16")
    found = with_decoder(small_checkpoint, tmp_path / "half")
    assert found.weights["vae"] == ("decoder/diffusion_pytorch_model.fp16.safetensors",)
    ours, theirs = found.module("vae").state_dict(), tiny_checkpoint.module("vae").state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-3, rtol=1e-3)
    assert dataclasses.replace(found, decoder=None).decoder_name == "AutoencoderKL"
