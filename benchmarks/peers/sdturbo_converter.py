"""What sdturbo loads, and what it writes for optimum-onnx. Arguments: those of `sdturbo-export`, without model and output."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lines import answer_lines

from sdturbo_export.cli import cli


class SdturboConverter:
    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = arguments

    def prepare(self, request: Mapping[str, Any]) -> None:
        """Finished stages are kept in the workspace, so a build that was stopped goes on."""
        arguments = [*self.arguments, "--model", request["name"], "--workspace", request["workspace"]]
        if request["decoder"]:
            arguments += ["--decoder", request["decoder"]]
        cli.main([*arguments, "--out", request["model"]], "sdturbo-export", standalone_mode=False)


if __name__ == "__main__":
    answer_lines(SdturboConverter(sys.argv[1:]))
