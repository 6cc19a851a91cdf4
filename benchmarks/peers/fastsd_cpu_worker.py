"""FastSD CPU's OpenVINO path with its tiny decoder. Argument: the root of its repository.

It asks the Hub for a converted TAESD. That request alone is answered from a directory of this machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lines import answer_lines


class FastSdCpu:
    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def load(self, request: Mapping[str, Any]) -> None:
        # its OpenVINO takes the CPUs that the process may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["threads"]])
        os.environ["DEVICE"] = "cpu"
        sys.path.insert(0, str(self.root / "src"))
        from backend.lcm_text_to_image import LCMTextToImage  # pyright: ignore[reportMissingImports] (of its repository)
        from backend.models.lcmdiffusion_setting import LCMDiffusionSetting  # pyright: ignore[reportMissingImports]
        from backend.openvino import pipelines  # pyright: ignore[reportMissingImports]

        pipelines.snapshot_download = lambda **_: request["model"]
        self.settings = LCMDiffusionSetting(
            openvino_lcm_model_id=request["model"],
            use_offline_model=True,
            use_openvino=True,
            use_tiny_auto_encoder=True,
            use_seed=True,
            guidance_scale=1.0,
        )
        self.program = LCMTextToImage("cpu")
        self.program.init("cpu", self.settings)
        self.program.pipeline.set_progress_bar_config(disable=True)

    def draw(self, prompt: str, seed: int, steps: int) -> Any:
        asked = {"prompt": prompt, "seed": seed, "inference_steps": steps}
        return self.program.generate(self.settings.model_copy(update=asked))[0]


if __name__ == "__main__":
    answer_lines(FastSdCpu(sys.argv[1]))
