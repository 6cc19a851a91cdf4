"""optimum-onnx's ORTStableDiffusionPipeline, on its own export or on a directory that `sdturbo-export optimum` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lines import answer_lines


class Optimum:
    def load(self, request: Mapping[str, Any]) -> None:
        import onnxruntime
        from optimum.onnxruntime import ORTStableDiffusionPipeline  # pyright: ignore[reportMissingImports] (of its own environment)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        self.pipe = ORTStableDiffusionPipeline.from_pretrained(
            request["model"], session_options=options, safety_checker=None
        )
        self.pipe.set_progress_bar_config(disable=True)

    def draw(self, prompt: str, seed: int, steps: int) -> Any:
        import torch

        generator = torch.Generator().manual_seed(seed)
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 0.0, "height": 512, "width": 512}
        return self.pipe(prompt, generator=generator, **options).images[0]


if __name__ == "__main__":
    answer_lines(Optimum())
