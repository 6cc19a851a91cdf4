"""One file in the layout of ldm (latent diffusion) gives the checkpoint in diffusers' layout that it was made from."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from ldm_layout import text_tensors, to_ldm
from safetensors.torch import load_file, save_file

from sdturbo.errors import InvalidRequest
from sdturbo_export.cli import cli
from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights import single_file
from sdturbo_export.weights.checkpoint import expected_shapes
from sdturbo_export.weights.file_names import COMPONENTS
from sdturbo_export.weights.resolve import resolve
from sdturbo_export.weights.seeded import SMALL
from sdturbo_export.weights.written import sd_turbo_config

TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def small_architecture(monkeypatch):
    """Files of the small model's widths are read, with its heads, in the place of SD 2.1's."""
    monkeypatch.setattr(single_file, "sd_turbo_config", lambda name: sd_turbo_config(name) | SMALL[name])


@pytest.fixture
def tensors(small_checkpoint):
    return to_ldm(small_checkpoint)


def no_network(*_):
    raise AssertionError("the network was asked for")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_ema", [False, True])
@pytest.mark.usefixtures("small_architecture")
def test_the_file_becomes_its_checkpoint(small_checkpoint, tmp_path, monkeypatch, dtype, with_ema):
    monkeypatch.setattr("socket.socket.connect", no_network)
    tensors = to_ldm(small_checkpoint, dtype)
    if with_ema:
        flat = {
            key: f"model_ema.{key.removeprefix('model.').replace('.', '')}"
            for key in tensors
            if key.startswith("model.")
        }
        tensors |= {name: tensors[key] + 1 for key, name in flat.items()}
    save_file(tensors, tmp_path / "style.safetensors")
    checkpoint = resolve(str(tmp_path / "style.safetensors"), tmp_path / "work")
    assert (checkpoint.name, checkpoint.source) == ("style", "style.safetensors")
    assert re.fullmatch("sha256:[0-9a-f]{64}", checkpoint.revision)
    for component in COMPONENTS:
        ours, theirs = checkpoint.state_dict(component), small_checkpoint.state_dict(component)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor.to(dtype)), name
    assert checkpoint.schedule == small_checkpoint.schedule
    changed = {"text_encoder": "num_hidden_layers", "unet": "layers_per_block", "vae": "layers_per_block"}
    assert {key: checkpoint.configs[name][key] for name, key in changed.items()} == {
        key: small_checkpoint.configs[name][key] for name, key in changed.items()
    }


@pytest.mark.usefixtures("small_architecture")
def test_a_file_is_converted_once(tensors, tmp_path, monkeypatch):
    save_file(tensors, tmp_path / "style.safetensors")
    first = resolve(str(tmp_path / "style.safetensors"), tmp_path / "work")
    monkeypatch.setattr(single_file, "write_converted", no_network)
    assert resolve(str(tmp_path / "style.safetensors"), tmp_path / "work").path == first.path


@pytest.mark.usefixtures("small_architecture")
def test_a_directory_that_holds_only_such_a_file_is_it(tensors, tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "LICENSE.md").write_text("of these weights")
    save_file(tensors, folder / "style.safetensors")
    checkpoint = resolve(str(folder), tmp_path / "work")
    assert checkpoint.name == "my-model"
    assert (checkpoint.path / "LICENSE.md").read_text() == "of these weights"
    alone = resolve(str(folder / "style.safetensors"), tmp_path / "work")
    assert not (alone.path / "LICENSE.md").exists()
    save_file(tensors, folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"2 safetensors files \(other\.safetensors, style\.safetensors\)"):
        resolve(str(folder), tmp_path / "work")


def full_size_header(layers=2, text_layers=24):
    """The keys of a whole SD 2.1 file on the meta device. Stability's text encoder has 24 layers, and 23 are used."""

    configs = {name: sd_turbo_config(name) for name in COMPONENTS}
    configs["unet"]["layers_per_block"] = configs["vae"]["layers_per_block"] = layers
    configs["text_encoder"]["num_hidden_layers"] = text_layers

    def state_dict(component):
        shapes = expected_shapes(component, configs[component])
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    return to_ldm(SimpleNamespace(configs=configs, state_dict=state_dict))


@pytest.mark.parametrize(("layers", "text_layers", "used"), [(2, 24, 23), (2, 23, 23), (1, 2, 2)])
def test_real_widths_are_read_with_many_layers_and_few(layers, text_layers, used):
    header = full_size_header(layers, text_layers)
    configs, faults = single_file._configs(header)
    assert faults == []
    for name in COMPONENTS:
        part = {key: tensor for key, tensor in header.items() if key.startswith(single_file._PREFIXES[name])}
        assert single_file._part_faults(name, part, configs[name]) == []
    assert configs["unet"] == sd_turbo_config("unet") | {"layers_per_block": layers}
    assert configs["text_encoder"]["num_hidden_layers"] == used


@pytest.mark.usefixtures("small_architecture")
def test_a_text_encoder_under_transformers_names_is_read(small_checkpoint, tensors, tmp_path):
    state = small_checkpoint.state_dict("text_encoder")
    for name in text_tensors(state):
        del tensors[name]
    tensors |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in state.items()}
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, tmp_path / "style.safetensors")
    ours = resolve(str(tmp_path / "style.safetensors"), tmp_path / "work").state_dict("text_encoder")
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def without(prefix):
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith(prefix)]


def only(**others):
    def change(tensors):
        tensors.clear()
        tensors |= {key.replace("__", "."): tensor for key, tensor in others.items()}

    return change


def renamed(old, new):
    return lambda tensors: [
        tensors.update({new + key.removeprefix(old): tensors.pop(key)}) for key in list(tensors) if key.startswith(old)
    ]


REFUSED = {
    "SD 1.x": (lambda t: t.update({TO_K: torch.ones(32, 768)}), r"this is SD 1\.x\. Expected SD-Turbo"),
    "SDXL": (lambda t: t.update({TO_K: torch.ones(32, 2048)}), r"this is SDXL\."),
    "other widths": (lambda t: t.update({TO_K: torch.ones(32, 96)}), "reads text of width 96, SD 2.1's is 64"),
    "Flux": (
        only(model__diffusion_model__double_blocks__0__img_attn__norm__key_norm__scale=torch.ones(1),
             model__diffusion_model__img_in__weight=torch.ones(4, 64)),
        "another family .*flux",
    ),
    "a LoRA": (only(lora_unet_mid__lora_down__weight=torch.ones(1, 1)), "a LoRA, which --lora takes"),
    "EMA alone": (only(model_ema__diffusion_modelout0weight=torch.ones(1)), "moving average"),
    "compiled": (
        renamed("model.diffusion_model.", "model.diffusion_model._orig_mod."),
        r"torch\.compile, such as model\.diffusion_model\._orig_mod\.",
    ),
    "no autoencoder": (without("first_stage_model."), "there is no autoencoder in it"),
    "no text encoder": (without("cond_stage_model."), "there is no text encoder in it"),
    "nothing": (only(x=torch.ones(1)), "there is no UNet in it"),
    "inpainting": (
        lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}),
        "takes 9 channels, expected 4: this is a model for inpainting",
    ),
    "a first convolution of one dimension": (
        lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}),
        r"input_blocks\.0\.0\.weight has shape \(4,\), expected the four dimensions of a convolution",
    ),
    "a scalar for cross-attention": (
        lambda t: t.update({TO_K: torch.tensor(1.0)}),
        r"UNet: 1 tensors of another shape: .*attn2\.to_k\.weight has shape \(\)",
    ),
    "scalars for cross-attention": (
        lambda t: t.update({key: torch.tensor(1.0) for key in t if key.endswith("attn2.to_k.weight")}),
        "a UNet that reads text of no width, SD 2.1's is 64",
    ),
    "scalars that diffusers reads the shapes of": (
        lambda t: t.update({key: torch.tensor(1.0) for key in t if key.endswith(("to_k.weight", "blocks.0.0.weight"))}),
        "a UNet that reads text of no width, SD 2.1's is 64",
    ),
    "a text encoder's matrix of one dimension": (
        lambda t: t.update({key: torch.ones(4) for key in t if key.endswith("in_proj_weight")}),
        "text encoder: its tensors cannot be converted: IndexError: ",
    ),
    "v": (lambda t: t.update({"v_pred": torch.ones(0)}), "predicts v"),
    "unCLIP": (
        lambda t: t.update({"model.diffusion_model.label_emb.0.0.weight": torch.ones(1)}),
        r"UNet: 1 tensors have no place in SD 2\.1's: model\.diffusion_model\.label_emb",
    ),
    "8 bits": (
        lambda t: t.update({TO_K: t[TO_K].to(torch.float8_e4m3fn)}),
        r"UNet: 1 tensors that are not F32, F16 or BF16: down_blocks\.0\.attentions\.0",
    ),
    "a tensor less": (
        lambda t: t.pop("first_stage_model.quant_conv.bias"),
        r"autoencoder: 1 missing tensors: quant_conv\.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("small_architecture")
def test_other_files_are_refused_by_name_and_nothing_is_written(tensors, tmp_path, name):
    change, message = REFUSED[name]
    change(tensors)
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(CheckpointError, match=message):
        resolve(str(tmp_path / "style.safetensors"), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_the_prefix_of_torch_compile_is_named_in_diffusers_layout_too(copied):
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"torch\.compile, such as _orig_mod\.") as caught:
        resolve(str(copied), Path())
    assert len(caught.value.faults) == 1


@pytest.mark.parametrize("name", ["style.ckpt", "style.pt"])
def test_pickles_are_refused_alone_and_in_a_directory(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    for model in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=rf"{name} is a pickle, which is never loaded"):
            resolve(str(model), tmp_path / "work")


def test_a_file_has_no_variants(tmp_path):
    (tmp_path / "style.safetensors").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="leave out --variant"):
        resolve(str(tmp_path / "style.safetensors"), tmp_path / "work", variant="fp16")


def test_the_command_says_it_in_words(tensors, tmp_path):
    save_file(tensors, tmp_path / "style.safetensors")  # of the small model's widths
    result = CliRunner().invoke(cli, ["build", "--model", str(tmp_path / "style.safetensors"), "--out", str(tmp_path / "b"),
                                      "--workspace", str(tmp_path / "work")])  # fmt: skip
    assert isinstance(result.exception, CheckpointError)
    assert result.exception.exit_code == 3
    assert "reads text of width 64, SD 2.1's is 1024" in str(result.exception)


@pytest.fixture
def cache(small_path, tmp_path):
    """A repository in the Hub's cache: blobs, and a snapshot of links to them."""
    repository = tmp_path / "hub" / "models--someone--small-turbo"
    for commit in ("a" * 40, "b" * 40):
        for file in small_path.rglob("*"):
            if file.is_file():
                link = repository / "snapshots" / commit / file.relative_to(small_path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    return repository


def test_a_repository_in_the_hubs_cache_is_its_snapshot(cache, tmp_path):
    main, named = resolve(str(cache), tmp_path), resolve(str(cache / "snapshots" / ("a" * 40)), tmp_path)
    assert [(found.name, found.source, found.revision) for found in (main, named)] == [
        ("small-turbo", "someone/small-turbo", "b" * 40),
        ("small-turbo", "someone/small-turbo", "a" * 40),
    ]
    (cache / "refs" / "main").unlink()
    with pytest.raises(CheckpointError, match=r"2 snapshots: name the one you mean .*aaaa.*bbbb"):
        resolve(str(cache), tmp_path)


def test_the_cache_gives_fp16_first_and_a_directory_last(cache, small_path, tmp_path):
    stem = "diffusion_pytorch_model"
    for folder in (cache / "snapshots" / ("b" * 40), tmp_path / "plain"):
        for file in small_path.rglob("*"):
            link = folder / file.relative_to(small_path)
            if file.is_file() and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        for component, (_, name) in COMPONENTS.items():
            (folder / component / f"{name}.fp16.safetensors").symlink_to(small_path / component / f"{name}.safetensors")
    assert resolve(str(cache), tmp_path).weights["unet"] == (f"unet/{stem}.fp16.safetensors",)
    assert resolve(str(cache), tmp_path, variant="").weights["unet"] == (f"unet/{stem}.safetensors",)
    plain = str(tmp_path / "plain")
    assert resolve(plain, tmp_path).weights["unet"] == (f"unet/{stem}.safetensors",)
    assert resolve(plain, tmp_path, variant="fp16").weights["unet"] == (f"unet/{stem}.fp16.safetensors",)
    with pytest.raises(CheckpointError, match="unet: there is no variant bf16, only none, fp16"):
        resolve(plain, tmp_path, variant="bf16")


def test_a_commit_is_no_models_name(small_path, tmp_path):
    moved = tmp_path / "moved" / "snapshots" / ("0" * 40)
    moved.mkdir(parents=True)
    for file in small_path.iterdir():
        (moved / file.name).symlink_to(file)
    assert resolve(str(moved), tmp_path).name == "moved"
    assert resolve(str(moved), tmp_path, name="mine").name == "mine"
