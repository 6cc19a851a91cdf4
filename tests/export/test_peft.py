"""Adapters as PEFT saves them: adapter_model.safetensors, and adapter_config.json with alpha and rank beside it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdturbo.errors import InvalidRequest
from sdturbo_export import stage_store
from sdturbo_export.errors import CheckpointError
from sdturbo_export.options import BuildOptions
from sdturbo_export.stages import stage_definitions
from sdturbo_export.weights.lora import fuse
from sdturbo_export.weights.lora_files import Lora, lora_entries, lora_hashes, parse_lora
from sdturbo_export.weights.resolve import resolve

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
Q_PROJ = "text_model.encoder.layers.0.self_attn.q_proj"
RANK = 4


def write_adapter(directory, *modules, prefix="base_model.model.", file="adapter_model.safetensors", **config):
    """A random adapter of rank 4 for the modules, whose weights are 6×5. config: of adapter_config.json, if any."""
    directory.mkdir(exist_ok=True)
    tensors = {}
    for module in modules or (TO_Q,):
        tensors[f"{prefix}{module}.lora_A.weight"] = torch.randn(RANK, 5)
        tensors[f"{prefix}{module}.lora_B.weight"] = torch.randn(6, RANK)
    save_file(tensors, directory / file)
    if config:
        (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK} | config))
    return directory


def product(directory, module=TO_Q, prefix="base_model.model."):
    tensors = load_file(next(directory.glob("*.safetensors")))
    return tensors[f"{prefix}{module}.lora_B.weight"] @ tensors[f"{prefix}{module}.lora_A.weight"]


def fused(*loras):
    """The weights of zeros with the LoRAs fused in."""
    weights = {"unet": {f"{TO_Q}.weight": torch.zeros(6, 5)}, "text_encoder": {f"{Q_PROJ}.weight": torch.zeros(6, 5)}}
    fuse(loras, weights)
    return weights["unet"][f"{TO_Q}.weight"], weights["text_encoder"][f"{Q_PROJ}.weight"]


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(RANK)),
        ({"lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"lora_alpha": 8, "r": 16, "rank_pattern": {"to_q": RANK}}, 2.0),
        ({"init_lora_weights": "gaussian"}, 2.0),  # PEFT's own alpha is 8
    ],
)
@pytest.mark.parametrize("prefix", ["base_model.model.", "", "unet."])
def test_alpha_and_rank_are_those_of_the_settings(tmp_path, config, factor, prefix):
    folder = write_adapter(tmp_path / "style", prefix=prefix, **config)
    weight, _ = fused(parse_lora(f"{folder}:0.5"))
    torch.testing.assert_close(weight, 0.5 * factor * product(folder, prefix=prefix))


@pytest.mark.parametrize("module", [Q_PROJ, Q_PROJ.removeprefix("text_model.")])
def test_an_adapter_of_the_text_encoder_reaches_it(tmp_path, module):
    folder = write_adapter(tmp_path / "style", module, lora_alpha=4)
    _, weight = fused(parse_lora(str(folder)))
    torch.testing.assert_close(weight, product(folder, module))


def test_file_and_directory_are_the_same_adapter(tmp_path):
    folder = write_adapter(tmp_path / "style", lora_alpha=1)
    assert parse_lora(str(folder)) == parse_lora(str(folder / "adapter_model.safetensors"))
    assert parse_lora(f"{folder}:2").scale == 2


def test_diffusers_name_is_found_in_a_directory_too(tmp_path):
    folder = write_adapter(tmp_path / "style", file="pytorch_lora_weights.safetensors")
    assert parse_lora(str(folder)).path.name == "pytorch_lora_weights.safetensors"


def test_a_directory_without_an_adapter_says_which_files_are_meant(tmp_path):
    with pytest.raises(InvalidRequest, match=r"no such file.*adapter_model\.safetensors or pytorch_lora_weights"):
        parse_lora(str(tmp_path))


def test_settings_in_the_file_itself_come_first(tmp_path):
    folder = write_adapter(tmp_path / "style", lora_alpha=8)
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": json.dumps({"lora_alpha": 4})})
    torch.testing.assert_close(fused(Lora(path))[0], product(folder))
    assert lora_hashes([Lora(path)]).keys() == {str(path)}


def test_settings_of_peft_are_not_those_of_another_trainers_file(tmp_path):
    folder = write_adapter(tmp_path / "style", lora_alpha=400)
    kohya = folder / "kohya.safetensors"
    name = f"lora_unet_{TO_Q.replace('.', '_')}"
    down, up = torch.randn(RANK, 5), torch.randn(6, RANK)
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, kohya)
    torch.testing.assert_close(fused(Lora(kohya))[0], up @ down)
    assert lora_hashes([Lora(kohya)]).keys() == {str(kohya)}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA is not supported, only LoRA is"),
        ({"peft_type": "LOHA"}, "LoHa is not supported"),
        ({"peft_type": "LOKR"}, "LoKr is not supported"),
        ({"peft_type": "IA3"}, "IA3 is not supported"),
        ({"peft_type": ["LORA"]}, r"\['LORA'\] is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is not supported"),
        ({"r": 8}, r"alpha cannot be used \(its settings say rank 8, its matrices have 4\)"),
        ({"lora_alpha": "x"}, "alpha cannot be used"),
        ({"lora_alpha": 10**400}, "alpha cannot be used"),
    ],
)
def test_settings_that_say_more_than_a_lora_are_refused(tmp_path, config, message):
    folder = write_adapter(tmp_path / "style", **config)
    with pytest.raises(CheckpointError, match=message):
        fused(parse_lora(str(folder)))


def test_broken_settings_are_a_fault(tmp_path):
    folder = write_adapter(tmp_path / "style")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(
        CheckpointError, match=r"its settings cannot be used: style/adapter_config\.json cannot be read"
    ):
        fused(parse_lora(str(folder)))


@pytest.mark.parametrize(
    ("key", "kind"), [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("lora_magnitude_vector", "DoRA")]
)
def test_other_kinds_are_named_by_their_keys(tmp_path, key, kind):
    folder = write_adapter(tmp_path / "style", lora_alpha=4)
    save_file({f"base_model.model.{TO_Q}.{key}": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=f"{kind} is not supported"):
        fused(parse_lora(str(folder)))


def test_other_settings_are_another_stage_and_another_entry_of_the_bundle(tmp_path, small_path):
    def made():
        lora = parse_lora(str(tmp_path / "style"))
        checkpoint = resolve(str(small_path), tmp_path, loras=[lora])
        hashes = checkpoint.hashes() | lora_hashes([lora])
        definition = stage_definitions(checkpoint)["denoiser"]
        return stage_store.stage_key(definition, hashes, BuildOptions()), lora_entries([lora], hashes)

    folder = write_adapter(tmp_path / "style", lora_alpha=8)
    first = made()
    assert made() == first
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 4}))
    second = made()
    assert first[0] != second[0]
    assert first[1][0]["sha256"] == second[1][0]["sha256"]
    assert first[1] != second[1]
    (folder / "adapter_config.json").unlink()
    assert made()[1][0].keys() == {"file", "sha256", "scale"}
