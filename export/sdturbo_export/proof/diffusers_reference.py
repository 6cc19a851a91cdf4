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

from sdturbo_export.weights.checkpoint import Checkpoint


class Asked(NamedTuple):
    """One request. strength: None is text-to-image. masked: inpainting."""

    num_inference_steps: int
    strength: float | None = None
    masked: bool = False

    @property
    def kind(self) -> str:
        name = "inpainting" if self.masked else "image-to-image"
        return "text-to-image" if self.strength is None else f"{name}, strength {self.strength:g}"


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
    size = checkpoint.configs["unet"]["sample_size"] * 8
    resized = start.resize((size, size), Image.Resampling.LANCZOS)
    pictures: list[NDArray[np.uint8]] = []
    for steps, strength, masked in requests:
        options: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": 0.0,
            "generator": torch.Generator().manual_seed(seed),
        }
        if strength is None:
            result = text_to_image(prompt, **options)
        elif masked:
            result = inpainting(prompt, image=resized, mask_image=mask_image, strength=strength, **options)
        else:
            result = image_to_image(prompt, image=resized, strength=strength, **options)
        pictures.append(np.asarray(result.images[0]))
    return pictures
