"""This product, asked as the others are. Arguments: backend and precision."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from lines import answer_lines

from sdturbo import Pipeline


class Ours:
    def __init__(self, backend: str, precision: str) -> None:
        self.backend, self.precision = backend, precision

    def load(self, request: Mapping[str, Any]) -> None:
        os.environ["SDTURBO_CACHE_DIR"] = request["cache"]
        self.pipe = Pipeline.load(
            request["model"],
            self.backend,
            precision=self.precision,
            num_threads=request["threads"],
            image_to_image=False,
        )

    def draw(self, prompt: str, seed: int, steps: int) -> Any:
        return self.pipe(prompt, seed=seed, num_inference_steps=steps).images[0]


if __name__ == "__main__":
    answer_lines(Ours(sys.argv[1], sys.argv[2]))
