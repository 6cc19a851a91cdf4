"""The directory for optimum-onnx: layout and signatures, and in its own environment (`make test-peers`) the picture."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from sdturbo import Pipeline
from sdturbo.errors import InvalidRequest
from sdturbo.golden import difference
from sdturbo_export.publish.optimum import write_optimum

ROOT = Path(__file__).parents[2]
# part -> inputs, outputs; small's text is 64 wide
SIGNATURES = {
    "text_encoder": ({"input_ids": (1, 77)}, {"last_hidden_state": (1, 77, 64), "pooler_output": (1, 64)}),
    "unet": (
        {"sample": (1, 4, 64, 64), "timestep": (), "encoder_hidden_states": (1, 77, 64)},
        {"out_sample": (1, 4, 64, 64)},
    ),
    "vae_decoder": ({"latent_sample": (1, 4, 64, 64)}, {"sample": (1, 3, 512, 512)}),
    "vae_encoder": ({"sample": (1, 3, 512, 512)}, {"latent_parameters": (1, 8, 64, 64)}),
}


@pytest.fixture(scope="module")
def directory(small_checkpoint, tmp_path_factory):
    return write_optimum(small_checkpoint, tmp_path_factory.mktemp("optimum") / "small")


def graph_of(directory, part):
    return onnx.load(str(directory / part / "model.onnx"), load_external_data=False).graph


def shape_of(value):
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_layout_is_optimums(directory):
    for part in SIGNATURES:
        assert {"model.onnx", "model.onnx_data", "config.json"} == {file.name for file in (directory / part).iterdir()}
    assert (directory / "scheduler" / "scheduler_config.json").is_file()
    assert (directory / "tokenizer" / "vocab.json").is_file()
    assert (directory / "NOTICE").is_file()
    index = json.loads((directory / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert "safety_checker" not in index


@pytest.mark.parametrize("part", SIGNATURES)
def test_signatures_are_optimums(directory, part):
    graph = graph_of(directory, part)
    inputs, outputs = SIGNATURES[part]
    assert {value.name: shape_of(value) for value in graph.input} == inputs
    assert {value.name: shape_of(value) for value in graph.output} == outputs


def test_unet_is_pytorchs_at_any_timestep(directory, small_checkpoint):
    session = onnxruntime.InferenceSession(str(directory / "unet" / "model.onnx"))
    unet = small_checkpoint.module("unet").eval()
    width = small_checkpoint.configs["text_encoder"]["hidden_size"]
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 64, 64, generator=generator)
    embeds = torch.randn(1, 77, width, generator=generator)
    for timestep in (999.0, 123.0):
        with torch.no_grad():
            expected = unet(sample, torch.tensor(timestep), embeds).sample.numpy()
        feeds = {"sample": sample.numpy(), "timestep": np.float32(timestep), "encoder_hidden_states": embeds.numpy()}
        (found,) = session.run(None, {name: np.asarray(value) for name, value in feeds.items()})
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("part", "upsampled"), [("unet", 3), ("vae_decoder", 3), ("vae_encoder", 0)])
def test_the_rewrites_are_in_the_graphs(directory, part, upsampled):
    kinds = [node.op_type for node in graph_of(directory, part).node]
    assert "InstanceNormalization" not in kinds
    assert (kinds.count("DepthToSpace"), kinds.count("Resize")) == (upsampled, 0)


def test_vae_is_pytorchs(directory, small_checkpoint):
    vae = small_checkpoint.module("vae").eval()
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 64, 64, generator=generator)
    image = torch.rand(1, 3, 512, 512, generator=generator) * 2 - 1
    with torch.no_grad():
        expected = {"vae_decoder": vae.decode(latents).sample, "vae_encoder": vae.quant_conv(vae.encoder(image))}
    for (part, wanted), (name, value) in zip(
        expected.items(), (("latent_sample", latents), ("sample", image)), strict=True
    ):
        session = onnxruntime.InferenceSession(str(directory / part / "model.onnx"))
        (found,) = session.run(None, {name: value.numpy()})
        assert np.abs(found - wanted.numpy()).max() <= 1e-4 * np.abs(wanted.numpy()).max()


def test_nothing_is_overwritten(directory, small_checkpoint):
    with pytest.raises(InvalidRequest, match="Expected the name of a new directory"):
        write_optimum(small_checkpoint, directory)


@pytest.mark.peers
def test_optimum_draws_our_picture(directory, small_bundle, tmp_path):
    from benchmarks.peers.conversation import Worker
    from benchmarks.peers.environments import python_of
    from benchmarks.peers.forms import OUR_EXPORT_IN_OPTIMUM

    python = python_of(OUR_EXPORT_IN_OPTIMUM.environment, ROOT / "build" / "peers")
    with Worker(python, OUR_EXPORT_IN_OPTIMUM.worker, OUR_EXPORT_IN_OPTIMUM.arguments, 1, tmp_path / "log") as worker:
        worker.ask("load", model=str(directory), threads=1)
        worker.ask("draw", prompt="a red house", seed=3, steps=2, out=str(tmp_path / "theirs.png"))
    ours = Pipeline.load(small_bundle.path, "onnxruntime", image_to_image=False)
    pixels = ours("a red house", seed=3, num_inference_steps=2, output_type="np").images[0]
    distance, off = difference(pixels, np.asarray(Image.open(tmp_path / "theirs.png").convert("RGB")))
    assert distance >= 50
    assert off <= 2
