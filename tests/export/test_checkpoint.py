import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdturbo.errors import InvalidRequest
from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights.checkpoint import open_checkpoint
from sdturbo_export.weights.resolve import resolve
from sdturbo_export.weights.seeded import write_seeded

UNET = "unet/diffusion_pytorch_model.safetensors"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def faults_of(path):
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(path)
    assert all(fault in str(raised.value) for fault in raised.value.faults)
    return raised.value.faults


def test_modules_hold_the_weights_of_the_files(small_path, small_checkpoint):
    for component in ("text_encoder", "unet", "vae"):
        (file,) = small_checkpoint.weights[component]
        stored = load_file(small_path / file)
        state = small_checkpoint.module(component).state_dict()
        assert len(stored) == len(state)
        for name, tensor in stored.items():
            assert torch.equal(state[name.removeprefix("text_model.")], tensor)


def test_fp16_variant_alone_is_read_as_float32(tmp_path):
    checkpoint = open_checkpoint(write_seeded(tmp_path / "half", small=True, fp16=True))
    assert checkpoint.weights["unet"] == ("unet/diffusion_pytorch_model.fp16.safetensors",)
    assert {p.dtype for p in checkpoint.module("unet").parameters()} == {torch.float32}


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_sharded_weights_equal_the_single_file(copied, variant):
    tensors = load_file(copied / UNET)
    (copied / UNET).unlink()
    weight_map = {}
    for i in (1, 2):
        shard = f"diffusion_pytorch_model{variant}-0000{i}-of-00002.safetensors"
        part = {name: tensor for j, (name, tensor) in enumerate(tensors.items()) if j % 2 == i - 1}
        save_file(part, copied / "unet" / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = f"diffusion_pytorch_model.safetensors.index{variant}.json"
    (copied / "unet" / index).write_text(json.dumps({"weight_map": weight_map}))
    state = open_checkpoint(copied).state_dict("unet")
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def test_names_as_transformers_5_saves_them_are_understood(copied):
    file = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    save_file({name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}, file)
    assert open_checkpoint(copied).state_dict("text_encoder").keys() == tensors.keys()


def test_all_faulty_tensors_are_listed_at_once(copied):
    tensors = load_file(copied / UNET)
    del tensors["conv_in.bias"]
    tensors["conv_out.bias"] = torch.zeros(7)
    tensors["stranger.weight"] = torch.zeros(1)
    save_file(tensors, copied / UNET)
    vae = load_file(copied / "vae" / "diffusion_pytorch_model.safetensors")
    vae["quant_conv.bias"] = vae["quant_conv.bias"].to(torch.int32)
    save_file(vae, copied / "vae" / "diffusion_pytorch_model.safetensors")
    text = "\n".join(faults_of(copied))
    assert "1 missing tensors: conv_in.bias" in text
    assert "1 unknown tensors: stranger.weight" in text
    assert "conv_out.bias has shape (7,), expected (4,)" in text
    assert "quant_conv.bias has dtype I32" in text


def test_many_missing_tensors_are_counted_not_all_named(copied):
    tensors = load_file(copied / UNET)
    save_file({name: tensor for name, tensor in tensors.items() if "attn" not in name}, copied / UNET)
    (fault,) = faults_of(copied)
    assert "more" in fault
    assert len(fault) < 1500


def test_missing_files_are_listed_at_once(copied):
    for name in ("tokenizer/vocab.json", "vae/config.json", "scheduler/scheduler_config.json"):
        (copied / name).unlink()
    assert len(faults_of(copied)) == 3


def test_truncated_weights_are_a_fault(copied):
    data = (copied / UNET).read_bytes()
    (copied / UNET).write_bytes(data[: len(data) // 2])
    assert "not a whole safetensors file" in faults_of(copied)[0]


def test_pickles_are_not_loaded(copied):
    (copied / UNET).rename(copied / "unet" / "diffusion_pytorch_model.bin")
    assert "never loaded" in faults_of(copied)[0]


def test_sd_1_is_named(copied):
    edit(copied / "unet" / "config.json", cross_attention_dim=768)
    edit(copied / "scheduler" / "scheduler_config.json", _class_name="PNDMScheduler", timestep_spacing="leading")
    text = "\n".join(faults_of(copied))
    assert "SD 1.x" in text
    assert "PNDMScheduler" in text


def test_sdxl_is_named(copied):
    edit(copied / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    assert "SDXL" in faults_of(copied)[0]


def test_inpainting_and_other_latents_are_refused(copied):
    edit(copied / "unet" / "config.json", in_channels=9)
    edit(copied / "vae" / "config.json", latent_channels=16)
    assert len(faults_of(copied)) == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"'])
def test_broken_configs_are_faults(copied, text):
    (copied / "unet" / "config.json").write_text(text)
    assert "unet/config.json" in faults_of(copied)[0]


def test_config_that_no_model_fits_is_a_fault(copied):
    edit(copied / "unet" / "config.json", block_out_channels=[1, 2, 3])
    assert "describes no model" in faults_of(copied)[0]


def test_absent_directory_is_a_fault(tmp_path):
    assert "no such directory" in faults_of(tmp_path / "nowhere")[0]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("scheduler/scheduler_config.json", {"num_train_timesteps": None}, "num_train_timesteps is None"),
        ("scheduler/scheduler_config.json", {"beta_start": "0.1"}, "beta_start is '0.1'"),
        ("vae/config.json", {"scaling_factor": "x"}, "scaling_factor is 'x'"),
        ("vae/config.json", {"use_quant_conv": False}, "use_quant_conv is False"),
    ],
)
def test_settings_that_no_picture_comes_of_are_faults(copied, file, change, words):
    edit(copied / file, **change)
    assert words in "\n".join(faults_of(copied))


def test_what_a_config_leaves_out_has_the_value_of_its_class(copied, small_checkpoint):
    for component, key in (("vae", "scaling_factor"), ("text_encoder", "vocab_size")):
        file = copied / component / "config.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))
        assert open_checkpoint(copied).configs[component][key] == small_checkpoint.configs[component][key]


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_broken_tokenizer_is_a_fault(copied, name):
    (copied / "tokenizer" / name).write_text("{")
    assert "CLIP tokenizer" in faults_of(copied)[0]


@pytest.mark.parametrize("weight_map", [None, {}, [1], {"a": 1}])
def test_index_without_a_map_of_files_is_a_fault(copied, weight_map):
    (copied / UNET).unlink()
    (copied / f"{UNET}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map" in "\n".join(faults_of(copied))


def test_deeply_nested_json_is_a_fault(copied):
    (copied / "model_index.json").write_text("[" * 200_000)
    assert "model_index.json" in faults_of(copied)[0]


def test_weights_that_are_not_finite_are_named(copied):
    tensors = load_file(copied / UNET)
    tensors["conv_in.bias"][3] = float("nan")
    save_file(tensors, copied / UNET)
    with pytest.raises(CheckpointError, match=r"unet: conv_in\.bias hold NaN"):
        open_checkpoint(copied).module("unet")


def test_names_of_models_win_over_directories_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert resolve("small", tmp_path / "work").name == "small"
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing"):
        resolve("./small", tmp_path / "work")


def test_mistyped_directories_and_files_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.safetensors").write_bytes(b"")
    for model, words in (
        ("build/smal", "There is no directory build/smal"),
        ("./one.safetensors", "this is not a whole safetensors file"),
        ("x" * 300, "Unknown model"),
    ):
        with pytest.raises((InvalidRequest, CheckpointError), match=words):
            resolve(model, tmp_path / "work")
