"""The directory that optimum-onnx loads, by its own export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lines import answer_lines


class OptimumConverter:
    def prepare(self, request: Mapping[str, Any]) -> None:
        from optimum.exporters.onnx import main_export  # pyright: ignore[reportMissingImports] (of its own environment)

        main_export(request["checkpoint"], output=request["model"], task="text-to-image")


if __name__ == "__main__":
    answer_lines(OptimumConverter())
