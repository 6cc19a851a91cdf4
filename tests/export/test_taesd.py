"""TAESD's original files give the AutoencoderTiny that they were made from."""

import re

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import nn

from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights.resolve import resolve


class Block(nn.Module):
    """TAESD's block, by its names (madebyollin/taesd, taesd.py)."""

    def __init__(self, width):
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x):
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


def halves(width=32, blocks=1, latents=4):
    """(encoder, decoder) as taesd.py builds them, narrower and with fewer blocks."""
    torch.manual_seed(0)

    def conv(first, last, **options):
        return nn.Conv2d(first, last, 3, padding=1, **options)

    def stage(*before):
        return [*before, *(Block(width) for _ in range(blocks))]

    down, up = {"stride": 2, "bias": False}, {"bias": False}
    encoder = nn.Sequential(
        *stage(conv(3, width)),
        *(layer for _ in range(3) for layer in stage(conv(width, width, **down))),
        conv(width, latents),
    )
    decoder = nn.Sequential(
        *stage(Clamp(), conv(latents, width), nn.ReLU()),
        *(layer for _ in range(3) for layer in stage(nn.Upsample(scale_factor=2), conv(width, width, **up))),
        conv(width, 3),
    )
    return encoder, decoder


@pytest.fixture
def modules():
    return halves()


@pytest.fixture
def folder(tmp_path, modules):
    path = tmp_path / "taesd"
    path.mkdir()
    for name, module in zip(("encoder", "decoder"), modules, strict=True):
        save_file(module.state_dict(), path / f"taesd_{name}.safetensors")
    return path


def check(small_path, tmp_path, decoder, modules):
    checkpoint = resolve(str(small_path), tmp_path / "work", decoder=decoder)
    vae = checkpoint.module("vae")
    assert isinstance(vae, AutoencoderTiny)
    with torch.no_grad():
        image, latents = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
        torch.testing.assert_close(vae.encode(image * 2 - 1).latents, modules[0](image))
        torch.testing.assert_close(vae.decode(latents).sample, modules[1](latents) * 2 - 1)
    return checkpoint


@pytest.mark.parametrize("given", [".", "taesd_decoder.safetensors", "taesd_encoder.safetensors"])
def test_two_files_are_one_decoder(small_path, tmp_path, folder, modules, given):
    (folder / "LICENSE").write_text("MIT, of the decoder")
    checkpoint = check(small_path, tmp_path, folder / given, modules)
    assert checkpoint.decoder_name == "AutoencoderTiny taesd"
    assert (checkpoint.decoder / "LICENSE").read_text() == "MIT, of the decoder"


def test_both_halves_in_one_file(small_path, tmp_path, modules):
    encoder, decoder = (module.state_dict() for module in modules)
    tensors = {f"encoder.{key}": value for key, value in encoder.items()}
    save_file(tensors | {f"decoder.{key}": value for key, value in decoder.items()}, tmp_path / "mine.safetensors")
    assert check(small_path, tmp_path, tmp_path / "mine.safetensors", modules).decoder_name == "AutoencoderTiny mine"


def test_the_originals_own_size_is_diffusers_default(small_path, tmp_path):
    encoder, decoder = halves(width=64, blocks=3)
    encoder, decoder = list(encoder), list(decoder)
    del encoder[2:4], decoder[-3:-1]  # one block before the first step down, one after the last step up
    modules = nn.Sequential(*encoder), nn.Sequential(*decoder)
    for name, module in zip(("encoder", "decoder"), modules, strict=True):
        save_file(module.half().state_dict(), tmp_path / f"taesd_{name}.safetensors")
    modules = [module.float() for module in modules]
    checkpoint = check(small_path, tmp_path, tmp_path / "taesd_decoder.safetensors", modules)
    usual = AutoencoderTiny().config
    found = checkpoint.configs["vae"]
    assert {key: list(usual[key]) for key in ("num_encoder_blocks", "num_decoder_blocks")} == {
        key: found[key] for key in ("num_encoder_blocks", "num_decoder_blocks")
    }


def test_a_file_in_diffusers_layout_is_its_directory(small_path, tmp_path):
    AutoencoderTiny(encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4).save_pretrained(
        tmp_path / "t"
    )
    file = tmp_path / "t" / "diffusion_pytorch_model.safetensors"
    assert resolve(str(small_path), tmp_path, decoder=file).decoder == tmp_path / "t"


@pytest.mark.parametrize("name", ["taesd_decoder.safetensors", "taesd_encoder.safetensors"])
def test_an_original_file_is_read_with_diffusers_files_beside_it(small_path, tmp_path, folder, modules, name):
    AutoencoderTiny(encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4).save_pretrained(folder)
    assert check(small_path, tmp_path, folder / name, modules).decoder != folder


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_a_named_file_in_diffusers_layout_is_the_one_that_is_read(small_path, tmp_path, variant):
    decoder = AutoencoderTiny(encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4)
    decoder.save_pretrained(tmp_path / "t")
    decoder.half().save_pretrained(tmp_path / "t", variant="fp16")
    name = f"diffusion_pytorch_model{'.' * bool(variant)}{variant}.safetensors"
    checkpoint = resolve(str(small_path), tmp_path, decoder=tmp_path / "t" / name)
    assert checkpoint.weights["vae"] == (f"decoder/{name}",)


def test_a_pickle_in_diffusers_layout_is_not_replaced_by_its_neighbour(small_path, tmp_path):
    AutoencoderTiny().save_pretrained(tmp_path / "t")
    (tmp_path / "t" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        resolve(str(small_path), tmp_path, decoder=tmp_path / "t" / "diffusion_pytorch_model.bin")


def test_what_is_no_taesd_is_said(small_path, tmp_path, folder):
    def refused(path, message):
        with pytest.raises(CheckpointError, match=message):
            resolve(str(small_path), tmp_path / "work", decoder=path)

    decoder = folder / "taesd_decoder.safetensors"
    (folder / "taesd_encoder.safetensors").rename(folder / "elsewhere.st")
    refused(decoder, r"no encoder of a TAESD. Expected both: taesd_encoder\.safetensors beside it")
    encoder, other = halves(latents=16)
    save_file(other.state_dict(), decoder)
    save_file(encoder.state_dict(), folder / "taesd_encoder.safetensors")
    refused(decoder, "latent_channels is 16, but SD-Turbo's latents have 4")
    save_file({"decoder.up.0.block.0.weight": torch.ones(1)}, decoder)
    refused(decoder, r"no TAESD of the original layout: its keys are decoder\.up\.0\.block")
    decoder.write_bytes(b"x")
    refused(decoder, "not a whole safetensors file")
    decoder.rename(folder / "taesd_decoder.pth")
    refused(folder / "taesd_decoder.pth", re.escape("taesd_decoder.pth is a pickle, which is never loaded"))
    refused(folder / "nothing.safetensors", "no such directory or file")
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "y.safetensors")
    refused(tmp_path, r"config\.json is missing, and it holds no TAESD")
