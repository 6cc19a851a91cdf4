"""A changed graph on ONNX Runtime, in memory. Its weights are read from the stage that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from sdturbo.backends.telemetry import telemetry_off
from sdturbo_export.proof.walk import Arrays


class GraphSession:
    """folder: with the graph's external data. Weights that were made since are in the graph itself.

    fuse: let ONNX Runtime change the graph first, which pays from about ten runs on.
    """

    def __init__(self, model: ir.Model, folder: Path, *, fuse: bool) -> None:
        with telemetry_off():
            import onnxruntime

        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if fuse else levels.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """Every output of the graph, in order."""
        return self._session.run(None, inputs)
