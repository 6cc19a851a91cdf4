"""LoRA fusion, judged by the layers themselves: a fused layer computes base + scale·alpha/rank·up(down(x))."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel

import sdturbo_export
from sdturbo.errors import InvalidRequest
from sdturbo_export.errors import CheckpointError
from sdturbo_export.weights.checkpoint import Checkpoint, open_checkpoint
from sdturbo_export.weights.lora import fuse
from sdturbo_export.weights.lora_files import Lora, parse_lora

Weights = dict[str, dict[str, torch.Tensor]]

TEXT_WIDTH = 24
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TO_OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CROSS_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
FF = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
PROJ_IN = "down_blocks.0.attentions.0.proj_in"
CONV = "down_blocks.0.resnets.0.conv1"
SHORTCUT = "down_blocks.0.resnets.0.conv_shortcut"
Q_PROJ = "text_model.encoder.layers.1.self_attn.q_proj"
OUT_PROJ = "text_model.encoder.layers.1.self_attn.out_proj"
FC1 = "text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def models() -> Weights:
    """Names and shapes of a tiny SD 2: linear projections, `text_model.` in the text encoder's names as on the Hub."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=TEXT_WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=2,
        )
    )
    weights = dict(unet.state_dict())
    weights[f"{SHORTCUT}.weight"] = torch.randn(16, 8, 1, 1)
    names = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in text.state_dict().items()}
    return {"unet": weights, "text_encoder": names}


@pytest.fixture
def weights(models: Weights) -> Weights:
    return {component: dict(state) for component, state in models.items()}


def pair(weight: torch.Tensor, rank: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) as trainers write them for a layer with this weight."""
    down = torch.randn(rank, *weight.shape[1:])
    up = torch.randn(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
    return down, up


def write(path: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    header = {"lora_adapter_metadata": json.dumps(settings)} if settings else None
    save_file(tensors, path, metadata=header)
    return path


def check_layer(base: torch.Tensor, fused: torch.Tensor, down: torch.Tensor, up: torch.Tensor, factor: float) -> None:
    """The fused layer and the base layer with a LoRA branch next to it give the same output."""

    def layer(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if weight.ndim == 2:
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def as_layer(half: torch.Tensor) -> torch.Tensor:
        return half.flatten(1) if base.ndim == 2 else half

    x = torch.randn(3, base.shape[1], *(5 for _ in base.shape[2:]))
    expected = layer(x, base) + factor * layer(layer(x, as_layer(down)), as_layer(up))
    assert fused.dtype == torch.float32
    torch.testing.assert_close(layer(x, fused), expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(fused, base)


STYLES: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "kohya": lambda c, m: (
        f"lora_{'unet' if c == 'unet' else 'te'}_{m.replace('.', '_')}.lora_down.weight",
        f"lora_{'unet' if c == 'unet' else 'te'}_{m.replace('.', '_')}.lora_up.weight",
    ),
    "peft": lambda c, m: (f"{c}.{m}.lora_A.weight", f"{c}.{m}.lora_B.weight"),
    "peft, adapter named": lambda c, m: (f"{c}.{m}.lora_A.default.weight", f"{c}.{m}.lora_B.default.weight"),
    "no component": lambda c, m: (f"{m}.lora_A.weight", f"{m}.lora_B.weight"),
    "transformers 5": lambda c, m: (
        f"{c}.{m.removeprefix('text_model.')}.lora_A.weight",
        f"{c}.{m.removeprefix('text_model.')}.lora_B.weight",
    ),
    "diffusers": lambda c, m: (f"{c}.{m}.lora.down.weight", f"{c}.{m}.lora.up.weight"),
    "lora_linear_layer": lambda c, m: (
        f"{c}.{m}.lora_linear_layer.down.weight",
        f"{c}.{m}.lora_linear_layer.up.weight",
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_every_naming_reaches_its_layer(weights: Weights, models: Weights, tmp_path: Path, style: str) -> None:
    tensors, halves = {}, {}
    for component, module in [("unet", m) for m in (TO_Q, TO_OUT, CROSS_K, FF, PROJ_IN, CONV)] + [
        ("text_encoder", m) for m in (Q_PROJ, OUT_PROJ, FC1)
    ]:
        down, up = pair(models[component][f"{module}.weight"])
        halves[component, f"{module}.weight"] = down, up
        down_key, up_key = STYLES[style](component, module)
        tensors |= {down_key: down, up_key: up}
    fuse([Lora(write(tmp_path / "a.safetensors", tensors), 0.7)], weights)
    for (component, key), (down, up) in halves.items():
        check_layer(models[component][key], weights[component][key], down, up, 0.7)
    for component, state in weights.items():
        for key, value in state.items():
            assert (component, key) in halves or value is models[component][key]


@pytest.mark.parametrize(
    ("component", "module", "name"),
    [
        ("unet", TO_Q, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"),
        ("unet", TO_OUT, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora"),
        ("unet", CROSS_K, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"),
        ("text_encoder", Q_PROJ, "text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora"),
        ("text_encoder", OUT_PROJ, "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora"),
    ],
)
def test_first_generation_attention_processors(
    *, weights: Weights, models: Weights, tmp_path: Path, component: str, module: str, name: str
) -> None:
    key = f"{module}.weight"
    down, up = pair(models[component][key])
    path = write(tmp_path / "a.safetensors", {f"{name}.down.weight": down, f"{name}.up.weight": up})
    fuse([Lora(path)], weights)
    check_layer(models[component][key], weights[component][key], down, up, 1.0)


def test_names_of_the_full_size_unet_stay_unique_in_kohyas_spelling() -> None:
    config = Path(sdturbo_export.__file__).parent / "configs/sd-turbo/unet/config.json"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads(config.read_text()))
    names = list(unet.state_dict())
    assert len({name.replace(".", "_") for name in names}) == len(names) == 686


@pytest.mark.parametrize(
    ("module", "down_shape", "up_shape"),
    [
        (CONV, (4, 16, 3, 3), (16, 4, 1, 1)),
        (SHORTCUT, (4, 8, 1, 1), (16, 4, 1, 1)),
        (SHORTCUT, (4, 8), (16, 4)),
        (PROJ_IN, (4, 16, 1, 1), (16, 4, 1, 1)),
        (PROJ_IN, (4, 16), (16, 4)),
        (PROJ_IN, (1, 16), (16, 1)),
    ],
)
def test_convolutions_and_their_linear_forms(
    *, weights: Weights, models: Weights, tmp_path: Path, module: str, down_shape: tuple[int], up_shape: tuple[int]
) -> None:
    down, up = torch.randn(down_shape), torch.randn(up_shape)
    path = write(tmp_path / "a.safetensors", dict(zip(STYLES["kohya"]("unet", module), (down, up), strict=True)))
    fuse([Lora(path, -0.5)], weights)
    base, fused = models["unet"][f"{module}.weight"], weights["unet"][f"{module}.weight"]
    if base.ndim == 4 and down.ndim == 2:
        down, up = down[..., None, None], up[..., None, None]
    check_layer(base, fused, down, up, -0.5)


@pytest.mark.parametrize(
    ("alpha", "settings", "factor"),
    [
        (None, {}, 1.0),
        (torch.tensor(1.0), {}, 1 / 4),
        (torch.tensor([8.0], dtype=torch.float16), {}, 2.0),
        (torch.tensor(1.0), {"unet.lora_alpha": 8}, 1 / 4),
        (None, {"unet.lora_alpha": 8, "unet.r": 4, "text_encoder.lora_alpha": 1}, 2.0),
        (None, {"lora_alpha": 8, "r": 4}, 2.0),
        (None, {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2, "to_k": 3}}, 2 / 4),
        (None, {"unet.lora_alpha": 8, "unet.alpha_pattern": {f"^{TO_Q}": 2}}, 2 / 4),
        (None, {"unet.lora_alpha": 8, "unet.alpha_pattern": {r"^transformer_blocks.0.attn1.to_q": 2, "o_q": 3}}, 2.0),
        (None, {"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / math.sqrt(4)),
        (None, {"unet.use_rslora": True}, 1.0),
    ],
)
def test_alpha(
    *, weights: Weights, models: Weights, tmp_path: Path, alpha: torch.Tensor | None, settings: dict, factor: float
) -> None:
    down, up = pair(models["unet"][f"{TO_Q}.weight"], rank=4)
    tensors = dict(zip(STYLES["peft"]("unet", TO_Q), (down, up), strict=True))
    if alpha is not None:
        tensors[f"unet.{TO_Q}.alpha"] = alpha
    fuse([Lora(write(tmp_path / "a.safetensors", tensors, **settings))], weights)
    check_layer(models["unet"][f"{TO_Q}.weight"], weights["unet"][f"{TO_Q}.weight"], down, up, factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_several_files_add_up_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    base = torch.randn(6, 5).to(dtype)
    before = base.clone()
    weights = {"unet": {"a.to_q.weight": base}, "text_encoder": {}}
    loras, expected = [], base.double()
    for i in range(4):
        down, up = torch.randn(2, 5), torch.randn(6, 2)
        path = write(tmp_path / f"{i}.safetensors", {"a.to_q.lora_A.weight": down, "a.to_q.lora_B.weight": up})
        loras.append(Lora(path, 0.1 * (i + 1)))
        expected += 0.1 * (i + 1) * (up.double() @ down.double())
    fuse(loras, weights)
    fused = weights["unet"]["a.to_q.weight"]
    assert fused.dtype == torch.float32
    torch.testing.assert_close(fused.double(), expected, rtol=torch.finfo(torch.float32).eps, atol=1e-6)
    assert torch.equal(base, before)


def test_a_bfloat16_checkpoint_is_fused_as_in_float32(
    small_checkpoint: Checkpoint, copied: Path, tmp_path: Path
) -> None:
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value.bfloat16() for name, value in small_checkpoint.state_dict("unet").items()}, file)
    base = load_file(file)[f"{TO_Q}.weight"].float()
    down, up = (0.003 * half for half in pair(base))  # of a real LoRA's size: below a step of bfloat16
    lora = Lora(write(tmp_path / "a.safetensors", dict(zip(STYLES["kohya"]("unet", TO_Q), (down, up), strict=True))))
    checkpoint = dataclasses.replace(open_checkpoint(copied), loras=(lora,))
    fused = checkpoint.module("unet").get_parameter(f"{TO_Q}.weight")
    torch.testing.assert_close(fused.detach(), base + up @ down, rtol=0, atol=1e-6)


def test_no_lora_changes_nothing(weights: Weights, models: Weights) -> None:
    fuse([], weights)
    assert all(weights[c][key] is value for c, state in models.items() for key, value in state.items())


def good(models: Weights) -> dict[str, torch.Tensor]:
    return dict(zip(STYLES["kohya"]("unet", TO_Q), pair(models["unet"][f"{TO_Q}.weight"]), strict=True))


KOHYA_Q = f"lora_unet_{TO_Q.replace('.', '_')}"
FAULTS = {
    "up is missing": (
        lambda t: t.pop(f"{KOHYA_Q}.lora_up.weight"),
        rf"down or up is missing: unet\.{re.escape(TO_Q)} \(has only down\)",
    ),
    "alpha alone": (
        lambda t: t.update({"unet.conv_in.alpha": torch.tensor(1.0)}),
        r"down or up is missing: unet\.conv_in \(has only alpha\)",
    ),
    "no such module": (
        lambda t: t.update({"lora_unet_down_blocks_9_conv.lora_down.weight": torch.ones(1, 1)}),
        r"this model has no such module: lora_unet_down_blocks_9_conv\.lora_down\.weight",
    ),
    "not a LoRA key": (
        lambda t: t.update({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}),
        r"not the name of a LoRA weight: model\.diffusion_model",
    ),
    "bias": (
        lambda t: t.update({f"unet.{TO_Q}.lora_B.bias": torch.ones(16)}),
        r"not the name of a LoRA weight: .*lora_B\.bias",
    ),
    "LoHa": (lambda t: t.update({f"{KOHYA_Q}.hada_w1_a": torch.ones(1)}), "LoHa is not supported"),
    "LoKr": (lambda t: t.update({f"{KOHYA_Q}.lokr_w1": torch.ones(1)}), "LoKr is not supported"),
    "DoRA of kohya": (lambda t: t.update({f"{KOHYA_Q}.dora_scale": torch.ones(1)}), "DoRA is not supported"),
    "DoRA of PEFT": (
        lambda t: t.update({f"unet.{TO_Q}.lora_magnitude_vector.weight": torch.ones(1)}),
        "DoRA is not supported",
    ),
    "Tucker": (lambda t: t.update({f"{KOHYA_Q}.lora_mid.weight": torch.ones(1)}), "Tucker form is not supported"),
    "two names of one module": (
        lambda t: t.update({f"unet.{TO_Q}.lora_A.weight": torch.ones(4, 16)}),
        rf"given twice: unet\.{re.escape(TO_Q)}\.lora_A\.weight",
    ),
    "wrong input": (
        lambda t: t.update({f"{KOHYA_Q}.lora_down.weight": torch.ones(4, 17)}),
        r"shapes do not fit this model: .*down 4×17, up 16×4, weight 16×16",
    ),
    "wrong rank": (
        lambda t: t.update({f"{KOHYA_Q}.lora_up.weight": torch.ones(16, 3)}),
        r"shapes do not fit this model: .*down 4×16, up 16×3, weight 16×16",
    ),
    "rank 0": (
        lambda t: t.update(
            {f"{KOHYA_Q}.lora_down.weight": torch.ones(0, 16), f"{KOHYA_Q}.lora_up.weight": torch.ones(16, 0)}
        ),
        r"shapes do not fit this model",
    ),
    "kernel for a linear layer": (
        lambda t: t.update({f"{KOHYA_Q}.lora_down.weight": torch.ones(4, 16, 3, 3)}),
        r"shapes do not fit this model",
    ),
    "scalar": (lambda t: t.update({f"{KOHYA_Q}.lora_down.weight": torch.tensor(1.0)}), r"down scalar"),
    "NaN": (
        lambda t: t.update({f"{KOHYA_Q}.lora_up.weight": torch.full((16, 4), math.nan)}),
        r"values are not finite numbers",
    ),
    "quantised": (
        lambda t: t.update({f"{KOHYA_Q}.lora_up.weight": torch.ones(16, 4, dtype=torch.int8)}),
        r"values are not finite numbers",
    ),
    "alpha of two values": (
        lambda t: t.update({f"{KOHYA_Q}.alpha": torch.ones(2)}),
        r"alpha cannot be used \(2 values",
    ),
    "infinite alpha": (
        lambda t: t.update({f"{KOHYA_Q}.alpha": torch.tensor(math.inf)}),
        r"alpha cannot be used \(it is inf\)",
    ),
    "nothing": (lambda t: t.clear(), "holds no tensors"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_unusable_file_is_refused_whole(weights: Weights, models: Weights, tmp_path: Path, name: str) -> None:
    spoil, message = FAULTS[name]
    tensors = good(models)
    spoil(tensors)
    path = write(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        fuse([Lora(path)], weights)
    assert len(caught.value.faults) == 1
    assert str(path) in caught.value.faults[0]
    test_no_lora_changes_nothing(weights, models)


@pytest.mark.parametrize("key", ["lora_unet_{}.lora_down.weight", "unet.{}.lora_A.weight"])
@pytest.mark.parametrize(
    ("width", "family"), [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL"), (999, "another model")]
)
def test_lora_of_another_family_is_named_in_one_fault(
    weights: Weights, tmp_path: Path, key: str, width: int, family: str
) -> None:
    def name(module: str) -> str:
        return key.format(module.replace(".", "_") if "lora_unet" in key else module)

    tensors = {name(f"input_blocks.{i}.1.transformer_blocks.0.attn2.to_k"): torch.ones(2, width) for i in range(9)}
    tensors |= {name(CROSS_K): torch.ones(2, width), name(TO_Q): torch.ones(2, 320)}
    with pytest.raises(CheckpointError) as caught:
        fuse([Lora(write(tmp_path / "a.safetensors", tensors))], weights)
    (fault,) = caught.value.faults
    assert f"made for {family}: its cross-attention reads text of width {width}, this model's {TEXT_WIDTH}" in fault
    assert fault.endswith("and 7 more")


def test_all_faults_of_all_files_at_once_in_few_lines(weights: Weights, models: Weights, tmp_path: Path) -> None:
    unknown = {f"lora_unet_no_{i}.lora_down.weight": torch.ones(1, 1) for i in range(400)}
    first = write(tmp_path / "1.safetensors", unknown | {f"{KOHYA_Q}.lora_down.weight": torch.ones(1, 1)})
    fine = write(tmp_path / "2.safetensors", good(models))
    third = tmp_path / "3.safetensors"
    with pytest.raises(CheckpointError) as caught:
        fuse([Lora(first), Lora(fine), Lora(third)], weights)
    assert [fault.split(":")[0] for fault in caught.value.faults] == [str(first), str(first), str(third)]
    assert "no such module" in caught.value.faults[0]
    assert "and 397 more" in caught.value.faults[0]
    assert "down or up is missing" in caught.value.faults[1]
    assert "cannot be read" in caught.value.faults[2]
    assert len(str(caught.value)) < 1500
    test_no_lora_changes_nothing(weights, models)


class Trap:
    """Unpickling it would create the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.pt", "a.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_is_never_loaded(weights: Weights, tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / name
    torch.save({"trap": Trap(tmp_path / "sprung")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"not a safetensors file .*Pickle .* is never loaded"):
        fuse([Lora(path)], weights)
    assert not (tmp_path / "sprung").exists()


def test_truncated_file_and_directory_are_refused(weights: Weights, models: Weights, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", good(models))
    path.write_bytes(path.read_bytes()[:-8])
    (tmp_path / "b.safetensors").mkdir()
    with pytest.raises(CheckpointError) as caught:
        fuse([Lora(path), Lora(tmp_path / "b.safetensors")], weights)
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize(
    "text", ["{", "[" * 10**5, "[1]", '{"alpha_pattern": {"(": 1}}', '{"alpha_pattern": 3}', '{"lora_alpha": "x"}']
)
def test_broken_metadata_are_a_fault(weights: Weights, models: Weights, tmp_path: Path, text: str) -> None:
    save_file(good(models), tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": text})
    with pytest.raises(CheckpointError, match=r"lora_adapter_metadata is not|alpha cannot be used"):
        fuse([Lora(tmp_path / "a.safetensors")], weights)


def test_overflow_is_a_fault(tmp_path: Path) -> None:
    base = torch.ones(4, 4, dtype=torch.float16)
    weights = {"unet": {"a.to_q.weight": base}, "text_encoder": {}}
    halves = {"a.to_q.lora_A.weight": torch.ones(1, 4), "a.to_q.lora_B.weight": torch.ones(4, 1)}
    path = write(tmp_path / "a.safetensors", halves)
    with pytest.raises(
        CheckpointError, match=r"a\.safetensors:1e\+39: weights overflow, use smaller scales: unet\.a\.to_q"
    ):
        fuse([Lora(path, 1e39)], weights)
    assert weights["unet"]["a.to_q.weight"] is base


@pytest.mark.parametrize(
    ("name", "suffix", "scale"),
    [
        ("a.safetensors", "", 1.0),
        ("a.safetensors", ":0.8", 0.8),
        ("a.safetensors", ":-1", -1.0),
        ("a.safetensors", ":0", 0.0),
        ("a:b.safetensors", "", 1.0),
        ("a:b.safetensors", ":.5", 0.5),
        ("C:\\a.safetensors", "", 1.0),
        ("C:\\a.safetensors", ":2", 2.0),
        ("a.safetensors:0.5", "", 1.0),
        ("a.safetensors:0.5", ":0.25", 0.25),
    ],
)
def test_parse_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str, scale: float) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert parse_lora(name + suffix) == Lora(Path(name), scale)


@pytest.mark.parametrize("scale", ["", "x", "nan", "inf", "-inf", "1e999", "0,8", "1.0.0"])
def test_parse_lora_refuses_scale(tmp_path: Path, scale: str) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(InvalidRequest, match=re.escape(f"scale {scale!r}")):
        parse_lora(f"{tmp_path / 'a.safetensors'}:{scale}")


@pytest.mark.parametrize("text", ["", ":", "0.8", "no.safetensors", "no.safetensors:0.8", "C:\\no.safetensors", "."])
def test_parse_lora_refuses_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match="there is no such file"):
        parse_lora(text)
