"""stable-diffusion.cpp. Its noise comes from a generator of its own, so it draws other pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lines import answer_lines


class StableDiffusionCpp:
    def load(self, request: Mapping[str, Any]) -> None:
        from stable_diffusion_cpp import StableDiffusion  # pyright: ignore[reportMissingImports] (of its own environment)

        self.pipe = StableDiffusion(
            model_path=request["checkpoint"],
            n_threads=request["threads"],
            vae_decode_only=True,
            diffusion_conv_direct=True,
            vae_conv_direct=True,
        )

    def draw(self, prompt: str, seed: int, steps: int) -> Any:
        options: dict[str, Any] = {"sample_method": "euler", "sample_steps": steps, "cfg_scale": 1.0}
        return self.pipe.generate_image(prompt, seed=seed, width=512, height=512, **options)[0]


if __name__ == "__main__":
    answer_lines(StableDiffusionCpp())
