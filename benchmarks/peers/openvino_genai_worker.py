"""OpenVINO GenAI's Text2ImagePipeline. Argument: "plain" as it comes, or "static" with fixed shapes and a cache."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lines import answer_lines

SIDE = 512


class GenAi:
    def __init__(self, form: str) -> None:
        self.form = form

    def load(self, request: Mapping[str, Any]) -> None:
        import openvino_genai  # pyright: ignore[reportMissingImports] (of its own environment)

        options = {"INFERENCE_NUM_THREADS": request["threads"]}
        if self.form == "plain":
            self.pipe = openvino_genai.Text2ImagePipeline(request["model"], "CPU", **options)
            return
        self.pipe = openvino_genai.Text2ImagePipeline(request["model"])
        self.pipe.reshape(1, SIDE, SIDE, 0.0)
        self.pipe.compile("CPU", CACHE_DIR=request["cache"], **options)

    def draw(self, prompt: str, seed: int, steps: int) -> Any:
        import openvino_genai  # pyright: ignore[reportMissingImports] (of its own environment)
        from PIL import Image

        generator = openvino_genai.TorchGenerator(seed)
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 0.0, "height": SIDE, "width": SIDE}
        return Image.fromarray(self.pipe.generate(prompt, generator=generator, **options).data[0])


if __name__ == "__main__":
    answer_lines(GenAi(sys.argv[1]))
