"""From AUTOMATIC1111's fields to SD-Turbo's own, with words for every field that cannot be honoured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sdturbo.bundle.description import MAX_STEPS, Size
from sdturbo.request import DEFAULT_STEPS
from sdturbo_serve.a1111.bodies import ImageToImage, TextToImage
from sdturbo_serve.errors import ApiError
from sdturbo_serve.lenient import nearest_size, shown
from sdturbo_serve.picture import size_text

DEFAULT_STRENGTH = 0.75  # AUTOMATIC1111's
MOST_NAMED = 20
_ADAPTER = re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:[^>]*>?", re.IGNORECASE)
_WEIGHT = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)")
_SAMPLERS = ("", "Euler", "k_euler", "euler")

# values of fields without an effect that ask for nothing. Others are named
_OFF: dict[str, tuple[Any, ...]] = {
    "sampler_name": _SAMPLERS,
    "sampler_index": _SAMPLERS,
    "scheduler": ("", "Automatic", "automatic"),
    "cfg_scale": (0, 1),
    "image_cfg_scale": (0, 1, 1.5),
    "subseed": (-1,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "override_settings_restore_afterwards": (True, False),
    "do_not_save_samples": (True, False),
    "do_not_save_grid": (True, False),
    "eta": (0, 1),
    "s_noise": (1,),
    "s_min_uncond": (0,),
    "initial_noise_multiplier": (1,),
    "mask_blur": (0, 4),
    "mask_blur_x": (0, 4),
    "mask_blur_y": (0, 4),
    "mask_round": (True,),
    "inpainting_fill": (1,),  # the start picture under the mask
}
# fields that mean something beside a mask, or beside the second pass of text-to-image
_OF_MASKS = ("mask_", "inpaint")
_OF_SECOND_PASS = ("hr_", "denoising_strength", "firstphase_")


@dataclass(frozen=True, slots=True)
class Mapped:
    """The drawing that a request gets. not_honoured: per field, words for its change."""

    steps: int
    strength: float | None
    size: Size
    count: int
    not_honoured: dict[str, str]


def mapped(body: TextToImage, sizes: tuple[Size, ...], model_names: tuple[str, ...]) -> Mapped:
    """The drawing of `body` by a bundle with pictures of `sizes`. Raises ApiError for fields that must not be ignored."""
    if adapter := _ADAPTER.search(body.prompt or ""):
        text = (
            f"Got {adapter[0][:80]!r} in the prompt. Adapters are fused into the bundle when it is built, by"
            " `sdturbo-export build --lora`. Leave it out of the prompt."
        )
        raise ApiError(400, text, param="prompt", code="invalid_value")
    count = (body.batch_size or 1) * (body.n_iter or 1)
    words = _without_effect(body, model_names)
    if weight := _WEIGHT.search(body.prompt or ""):
        words["prompt"] = f"weights such as {weight[0][:40]} are read as text"
    steps, strength = min(body.steps or DEFAULT_STEPS, MAX_STEPS), None
    if isinstance(body, ImageToImage):
        asked = DEFAULT_STRENGTH if body.denoising_strength is None else body.denoising_strength
        steps, strength = _with_a_step(steps, asked)
        if strength != asked:
            words["denoising_strength"] = f"{asked:g} became {strength:g}"
    if body.steps is not None and steps != body.steps:
        words["steps"] = f"{body.steps} became {steps}"
    return Mapped(steps, strength, _size(body, sizes, words), count, dict(list(words.items())[:MOST_NAMED]))


def _with_a_step(steps: int, strength: float) -> tuple[int, float]:
    """Steps and strength with which int(steps·strength) is 1 or more, so that something is drawn."""
    for number in range(steps, MAX_STEPS + 1):
        if int(number * strength) >= 1:
            return number, strength
    return MAX_STEPS, 1 / MAX_STEPS


def _size(body: TextToImage, sizes: tuple[Size, ...], words: dict[str, str]) -> Size:
    height, width = body.height or sizes[0][0], body.width or sizes[0][1]
    size = nearest_size(sizes, height, width)
    if size != (height, width):
        words["size"] = f"{size_text((height, width))} became {size_text(size)}"
    return size


def _without_effect(body: TextToImage, model_names: tuple[str, ...]) -> dict[str, str]:
    """Fields that ask for something and change nothing."""
    others = body.model_extra or {}
    idle = () if isinstance(body, ImageToImage) and body.mask else _OF_MASKS
    idle += () if others.get("enable_hr") else _OF_SECOND_PASS
    words = {
        shown(name): f"{shown(value)} changes nothing"
        for name, value in others.items()
        if not name.startswith(idle) and value not in _OFF.get(name, ()) and _asks(value, name)
    }
    for name, value in (body.override_settings or {}).items():
        if not (name == "sd_model_checkpoint" and value in model_names) and value is not None:
            words[shown(f"override_settings.{name}")] = f"{shown(value)} changes nothing"
    return words


def _asks(value: Any, name: str = "") -> bool:
    """Whether a value asks for something: settings of scripts that are all empty or off do not."""
    if isinstance(value, dict):
        return any(_asks(inner) for inner in value.values())  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return any(_asks(inner) for inner in value)  # pyright: ignore[reportUnknownVariableType]
    if name == "inpainting_fill":  # 0 is colours from around the mask
        return value is not None
    return value not in (None, False, 0, "", "None", "none")
