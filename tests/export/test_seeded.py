import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from sdturbo_export.weights.autoencoder_tiny import with_decoder
from sdturbo_export.weights.checkpoint import expected_shapes
from sdturbo_export.weights.seeded import write_seeded, write_seeded_taesd
from sdturbo_export.weights.tokenizer_files import tokenizer_json

# sha256 of the files at stabilityai/sd-turbo@b261bac6
HUB = {
    "model_index.json": "679fe7c2a03a419a046f4330bb2e32570d96e7a6da51b7df147d4a87bc7f775c",
    "scheduler/scheduler_config.json": "5599066c725fc2747a201fa3165ad7c8c3de3be629ce325451752e8f94c0d1ae",
    "tokenizer/special_tokens_map.json": "c2d0fb8b86ad86b1f46134d4a5f93fd1e688c932a78efc8d149087c33a53ad06",
    "tokenizer/tokenizer_config.json": "516314ccab66918d7cb647480ac27abd3520d14e1e5825aac99f50c851c16071",
    "tokenizer/merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
    "tokenizer/vocab.json": "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
}
CONFIGS = {
    "text_encoder/config.json": "9f6935d3d41bf8ce49b1d7ed912b29e770649d1aa3f3972215284f9397cd97d2",
    "unet/config.json": "ca09d494527ebe13343006e22b4468d45bf12aa34e76cf03639b6dbba1fb5c6d",
    "vae/config.json": "699a58ef7ecf3bffa201a507a3eaa3eed7efabab457ac547bf82df798b52a9be",
}
COUNTS = {"text_encoder": (372, 340_387_840), "unet": (686, 865_910_724), "vae": (248, 83_653_863)}


@pytest.mark.parametrize("name", HUB)
def test_files_equal_the_hub_byte_for_byte(small_path, name):
    assert hashlib.sha256((small_path / name).read_bytes()).hexdigest() == HUB[name]


@pytest.mark.parametrize("component", COUNTS)
def test_full_size_configs_are_the_hubs_and_describe_all_tensors(component):
    from importlib.resources import files

    data = files("sdturbo_export").joinpath(f"configs/sd-turbo/{component}/config.json").read_bytes()
    assert hashlib.sha256(data).hexdigest() == CONFIGS[f"{component}/config.json"]
    shapes = expected_shapes(component, json.loads(data))
    parameters = 0
    for shape in shapes.values():
        size = 1
        for side in shape:
            size *= side
        parameters += size
    assert (len(shapes), parameters) == COUNTS[component]


def test_seed_reproducibility(small_path, tmp_path):
    again = write_seeded(tmp_path / "again", small=True)
    other = write_seeded(tmp_path / "other", small=True, seed=1)
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (again / name).read_bytes() == (small_path / name).read_bytes()
    assert (other / name).read_bytes() != (small_path / name).read_bytes()


def test_text_encoder_has_the_hubs_names(small_path):
    names = load_file(small_path / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)


def test_fp16_variant_is_the_rounded_checkpoint(small_path, tmp_path):
    half = write_seeded(tmp_path / "half", small=True, fp16=True)
    whole = load_file(small_path / "vae" / "diffusion_pytorch_model.safetensors")
    for name, tensor in load_file(half / "vae" / "diffusion_pytorch_model.fp16.safetensors").items():
        assert (tensor == whole[name].half()).all()


def test_the_seeded_taesd_is_a_decoder_of_its_full_size(small_checkpoint, tmp_path):
    decoder = write_seeded_taesd(tmp_path / "taesd")
    module = with_decoder(small_checkpoint, decoder).module("vae")
    assert sum(tensor.numel() for tensor in module.state_dict().values()) == 2_445_063  # as of madebyollin/taesd
    with torch.no_grad():
        picture = module.decode(torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))).sample
    assert picture.shape == (1, 3, 128, 128)
    assert 0.1 < picture.std() < 10
    other = write_seeded_taesd(tmp_path / "other", seed=1)
    name = "diffusion_pytorch_model.safetensors"
    assert (decoder / name).read_bytes() != (other / name).read_bytes()


def test_foreign_vocabulary_is_refused(small_path, tmp_path):
    shutil.copy(small_path / "tokenizer" / "merges.txt", tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(ValueError):
        tokenizer_json(tmp_path)
