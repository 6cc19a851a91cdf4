"""Pictures by diffusers' own pipelines on the same checkpoint, which ours are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPTokenizer

from sdturbo.bundle.description import Size
from sdturbo_export.options import DEFAULT_SIZE
from sdturbo_export.weights.checkpoint import Checkpoint


class Asked(NamedTuple):
    """One request. strength: None is text-to-image. masked: inpainting. size: (height, width) of the picture in pixels."""

    num_inference_steps: int
    strength: float | None = None
    masked: bool = False
    size: Size = DEFAULT_SIZE

    @property
    def kind(self) -> str:
        name = "inpainting" if self.masked else "image-to-image"
        kind = "text-to-image" if self.strength is None else f"{name}, strength {self.strength:g}"
        return f"{kind}, {self.size[1]}x{self.size[0]}"


def draw(
    checkpoint: Checkpoint,
    prompt: str,
    seed: int,
    start: Image.Image,
    mask_image: Image.Image,
    requests: Sequence[Asked],
) -> list[NDArray[np.uint8]]:
    """For each request the picture, uint8 (H, W, 3), in fp32 on the CPU.

    start: of image-to-image, resized to the frame with Lanczos's filter. mask_image: of inpainting, of any size.
    """
    parts: dict[str, Any] = {name: checkpoint.module(name) for name in ("text_encoder", "unet", "vae")}
    parts |= {
        "tokenizer": CLIPTokenizer.from_pretrained(str(checkpoint.path / "tokenizer")),
        "scheduler": EulerDiscreteScheduler.from_config(dict(checkpoint.configs["scheduler"])),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    text_to_image, image_to_image = StableDiffusionPipeline(**parts), StableDiffusionImg2ImgPipeline(**parts)
    inpainting = StableDiffusionInpaintPipeline(**parts)
    for pipeline in (text_to_image, image_to_image, inpainting):
        pipeline.set_progress_bar_config(disable=True)
    pictures: list[NDArray[np.uint8]] = []
    for steps, strength, masked, (height, width) in requests:
        resized = start.resize((width, height), Image.Resampling.LANCZOS)
        options: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": 0.0,
            "generator": torch.Generator().manual_seed(seed),
        }
        if strength is None:
            result = text_to_image(prompt, height=height, width=width, **options)
        elif masked:
            options |= {"height": height, "width": width, "strength": strength}
            result = inpainting(prompt, image=resized, mask_image=mask_image, **options)
        else:
            result = image_to_image(prompt, image=resized, strength=strength, **options)
        pictures.append(np.asarray(result.images[0]))
    return pictures
