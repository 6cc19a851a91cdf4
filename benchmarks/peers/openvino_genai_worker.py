"""OpenVINO GenAI's Text2ImagePipeline, on the export of optimum-intel."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lines import answer_lines


class GenAi:
    def prepare(self, request: Mapping[str, Any]) -> None:
        from optimum.exporters.openvino import main_export  # pyright: ignore[reportMissingImports] (of its own environment)

        main_export(request["checkpoint"], output=Path(request["model"]), task="text-to-image", convert_tokenizer=True)

    def load(self, request: Mapping[str, Any]) -> None:
        import openvino_genai  # pyright: ignore[reportMissingImports] (of its own environment)

        self.pipe = openvino_genai.Text2ImagePipeline(request["model"], "CPU", INFERENCE_NUM_THREADS=request["threads"])

    def draw(self, prompt: str, seed: int, steps: int) -> Any:
        import openvino_genai  # pyright: ignore[reportMissingImports] (of its own environment)
        from PIL import Image

        generator = openvino_genai.TorchGenerator(seed)
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 0.0, "height": 512, "width": 512}
        return Image.fromarray(self.pipe.generate(prompt, generator=generator, **options).data[0])


if __name__ == "__main__":
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType] (hidden, so that OpenVINO reports nothing)
    answer_lines(GenAi())
