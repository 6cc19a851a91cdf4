"""The options of `sdturbo-export trt`, as one of two kinds of work: plans for the GPU that is here, or plans made ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdturbo.backends.nvidia.library import LIBRARIES, RTX, TENSORRT, Library, installed_library
from sdturbo.bundle import Bundle
from sdturbo.bundle.hub_cache import repository_of
from sdturbo.errors import InvalidRequest
from sdturbo_export.tensorrt.ahead import compile_ahead
from sdturbo_export.tensorrt.trt_from_onnx import PlanOptions
from sdturbo_export.tensorrt.trt_plans import compile_plans

NOT_RUN = "Those for RTX cards were not run, compared or timed: they run on such a card alone."
ON_A_GPU = ("device", "tries", "hardware", "version_compatible")  # options of plans that are built and run on a GPU


def add_plans_of(
    bundle: Bundle,
    library_name: str | None,
    given: Mapping[str, Any],
    *,
    timing_caches: Path,
    say: Callable[[str], None],
) -> tuple[Bundle, str]:
    """Compile the bundle's plans. Returns the bundle with them, and words for the end of the command's last line.

    library_name: None for the installed one. given: the other options by name, None where one was left out. Raises
    InvalidRequest for options that do not fit the library, and the errors of `compile_plans` and `compile_ahead`.
    """
    if repository_of(bundle.path):
        raise InvalidRequest(
            f"{bundle.path} lies in the cache of huggingface_hub, whose files are not changed. Copy it with `cp -rL` and"
            " compile the plans of the copy."
        )
    library = _library(library_name, given["capabilities"])
    workspace_bytes = None if given["workspace_gb"] is None else int(given["workspace_gb"] * 2**30)
    options = PlanOptions(
        workspace_bytes, given["optimization_level"], given["hardware"], given["version_compatible"], library
    )
    if not library.ahead:
        device, tries = given["device"] or "cuda:0", given["tries"] or 2
        return compile_plans(bundle, options, device=device, tries=tries, timing_caches=timing_caches, say=say), ""
    plain = {"device": None, "tries": None, "hardware": "none", "version_compatible": False}
    if refused := [f"--{name.replace('_', '-')}" for name in ON_A_GPU if given[name] != plain[name]]:
        raise InvalidRequest(
            f"Got {', '.join(refused)} with {library.title}, whose plans are compiled without a GPU, for all cards of a compute"
            f" capability. Leave it out, or compile with TensorRT on the card (--library {TENSORRT.name})."
        )
    return compile_ahead(bundle, options, given["capabilities"], say=say), f". {NOT_RUN}"


def _library(name: str | None, capabilities: tuple[str, ...]) -> Library:
    """The named library. Without a name the one that takes compute capabilities if there are some, or the installed one."""
    library = LIBRARIES[name] if name else RTX if capabilities else installed_library() or TENSORRT
    if capabilities and not library.ahead:
        raise InvalidRequest(
            f"Got --capability {' '.join(capabilities)} with {library.title}, which compiles for the GPU that it runs on. Leave"
            f" it out, or use --library {RTX.name}."
        )
    return library
