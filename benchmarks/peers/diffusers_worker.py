"""diffusers' StableDiffusionPipeline. Arguments: fp32 or bf16, and "compile" for torch.compile on UNet and decoder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from lines import answer_lines


class Diffusers:
    def __init__(self, precision: str, *, compiled: bool) -> None:
        self.precision, self.compiled = precision, compiled

    def load(self, request: Mapping[str, Any]) -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = request["cache"]
        import torch
        from diffusers import AutoencoderTiny, StableDiffusionPipeline

        torch.set_num_threads(request["threads"])
        self.dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        self.pipe = StableDiffusionPipeline.from_pretrained(
            request["checkpoint"], torch_dtype=self.dtype, safety_checker=None, requires_safety_checker=False
        )
        self.pipe.set_progress_bar_config(disable=True)
        if request["decoder"]:
            tiny: Any = AutoencoderTiny
            self.pipe.vae = tiny.from_pretrained(request["decoder"], torch_dtype=self.dtype)
        if self.compiled:
            self.pipe.unet.to(memory_format=torch.channels_last)
            self.pipe.vae.to(memory_format=torch.channels_last)
            self.pipe.unet = torch.compile(self.pipe.unet)
            self.pipe.vae.decode = torch.compile(self.pipe.vae.decode)

    def draw(self, prompt: str, seed: int, steps: int) -> Any:
        import torch

        size = self.pipe.unet.config.sample_size
        # drawn in float32 at every precision, as by every other program here
        noise = torch.randn((1, 4, size, size), generator=torch.Generator().manual_seed(seed))
        return self.pipe(prompt, num_inference_steps=steps, guidance_scale=0.0, latents=noise.to(self.dtype)).images[0]


if __name__ == "__main__":
    answer_lines(Diffusers(sys.argv[1], compiled="compile" in sys.argv[2:]))
