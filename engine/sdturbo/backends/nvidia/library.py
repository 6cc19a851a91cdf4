"""The library that compiles and runs plans: TensorRT, or TensorRT for RTX. All that differs between the two is said here.

TensorRT for RTX has TensorRT's classes in another module. Its builder needs no GPU and names the compute capabilities that a
plan is for. It compiles a plan's kernels when a card loads it (`kernel_cache`). So its plans depend on neither the GPU's name
nor the driver, and nothing is timed while they are built. Source: TensorRT for RTX 1.7, "Working with Runtime Cache" and
"Timing Cache Migration". Its runtime has not run on a card.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdturbo.backends.checks import not_installed
from sdturbo.backends.nvidia.gpus import Gpu
from sdturbo.bundle import plans
from sdturbo.errors import BackendUnavailable, InvalidRequest

TURING = "7.5"


@dataclass(frozen=True, slots=True)
class Library:
    """name: one of `plans.LIBRARIES`, and the extra of sdturbo that brings it. title: for texts. majors: versions that fit.

    ahead: its plans are compiled without a GPU, for listed compute capabilities, and their kernels when a card loads them.
    """

    name: str
    title: str
    module: str
    package: str
    majors: tuple[str, ...]
    ahead: bool = False

    def missing(self, backend: str) -> BackendUnavailable | None:
        """The refusal of `backend` if the library is not installed. Nothing is imported."""
        return not_installed(backend, self.module, self.name, package=self.package)

    def load(self) -> Any:
        """The module. Raises what a broken installation raises: ImportError, OSError, RuntimeError."""
        return importlib.import_module(self.module)

    def require(self) -> Any:
        """The module, to compile with. Raises BackendUnavailable if it is missing, does not load, or is of another version."""
        try:
            module = self.load()
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailable(f"{self.title} does not load here ({error}). {self._remedy()}") from error
        if refusal := self.wrong_version():
            raise refusal
        return module

    @property
    def version(self) -> str:
        """Of the installed module. It is imported."""
        return str(self.load().__version__)

    def wrong_version(self) -> BackendUnavailable | None:
        """The refusal of the installed version, if it does not fit."""
        if self.version.split(".", maxsplit=1)[0] in self.majors:
            return None
        expected = " or ".join(self.majors)
        return BackendUnavailable(f"{self.title} {self.version} is installed, expected {expected}. {self._remedy()}")

    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that the builder lists, "8.9". Empty for TensorRT, which compiles for the GPU it runs on."""
        return tuple(_capability(name) for name in self._members()) if self.ahead else ()

    def targets(self, asked: Sequence[str], precision: str) -> list[tuple[str, ...]]:
        """The compute capabilities to compile for, those of one plan together. asked: all that there are if empty.

        One plan may name any number of them, and is hardly larger than for one. Only Turing (7.5) gets a plan of its own,
        for a plan that includes it has Turing's layers on every card. The denoiser of `small` has 334 layers that move 126 MB
        for 8.0 to 12.1, as for 8.9 alone, and 342 with 139 MB if 7.5 is among them. NVIDIA advises the same (TensorRT for RTX
        1.5, "Support Matrix").
        precision: of the graphs. Raises InvalidRequest for one that the library does not compile for in that precision.
        """
        listed = [capability for capability in self.capabilities() if not self.lacks(capability, precision)]
        if unknown := [capability for capability in asked if capability not in listed]:
            raise InvalidRequest(
                f"Got the compute capability {', '.join(unknown)}. {self.title} {self.version} compiles graphs in {precision}"
                f" for {', '.join(listed)}. Plans for other cards are compiled on them (--library {plans.TENSORRT})."
            )
        chosen = [capability for capability in listed if not asked or capability in asked]
        turing = tuple(capability for capability in chosen if capability == TURING)
        newer = tuple(capability for capability in chosen if capability != TURING)
        return [group for group in (turing, newer) if group]

    def lacks(self, capability: str, precision: str) -> bool:
        """Whether the builder lists the compute capability and does not compile graphs in that precision for it.

        Its words for fp32: "Cannot compile operation … for Turing (SM75): FP32 GEMM is not supported".
        """
        return self.ahead and capability == TURING and precision == "fp32"

    def member(self, capability: str) -> Any:
        """The library's name for one of its compute capabilities."""
        return self._members()[f"SM{capability.replace('.', '')}"]

    def not_listed(self, gpu: Gpu) -> BackendUnavailable | None:
        """The refusal of a GPU that the library has no plans for."""
        if not self.ahead or gpu.compute_capability in self.capabilities():
            return None
        return BackendUnavailable(
            f"{self.title} {self.version} does not support the {gpu.name}: its compute capability is"
            f" {gpu.compute_capability}, expected one of {', '.join(self.capabilities())}. In a clone of sdturbo,"
            f" `pip install '.[{plans.TENSORRT}]'` brings TensorRT, which does. ONNX Runtime (backend 'cuda') does too."
        )

    def _members(self) -> dict[str, Any]:
        if TYPE_CHECKING:
            import tensorrt_rtx
        else:
            tensorrt_rtx = self.load()
        members = tensorrt_rtx.ComputeCapability.__members__
        return {name: value for name, value in members.items() if re.fullmatch(r"SM\d+", name)}

    def _remedy(self) -> str:
        return f"In a clone of sdturbo: `pip install '.[{self.name}]'`."


TENSORRT = Library(plans.TENSORRT, "TensorRT", "tensorrt", "tensorrt", ("10", "11"))
RTX = Library(plans.RTX, "TensorRT for RTX", "tensorrt_rtx", "tensorrt-rtx-cu13", ("1",), ahead=True)
LIBRARIES = {library.name: library for library in (TENSORRT, RTX)}


def installed_library(held: Collection[str] = ()) -> Library | None:
    """The installed library, TensorRT where both are. held: names of those that a bundle has plans of, which go first."""
    installed = [library for library in LIBRARIES.values() if library.missing("") is None]
    return next((library for library in installed if library.name in held), next(iter(installed), None))


def _capability(member: str) -> str:
    """ "12.0" of "SM120"."""
    return f"{member[2:-1]}.{member[-1]}"
