"""Exact changes of a stage before it is exported: one per file, its formula in the docstring, its own test.

A rewrite takes a stage's graph module and changes it in place, after LoRAs were fused into its weights and before the
float16 form (`half.py`, which the precision asks for and no name leaves out) is made. The reference that parity is measured
against is left as is. A file declares its rewrite as `REWRITE`, and `_MODULES` names the file: nothing else knows it.
README.md here has the gain of each.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sdturbo.errors import InvalidRequest

# In the order of application. These import torch, so they are loaded when a stage is made and not for a list of names.
_MODULES = [
    "sdturbo_export.rewrites.time_tables",
    "sdturbo_export.rewrites.upsample",
    "sdturbo_export.rewrites.group_norm",
    "sdturbo_export.rewrites.geglu",
]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The declaration in a rewrite's file. Its name is the file's, with hyphens.

    stages: names of the stages that it changes. apply: changes a stage's graph module in place.
    fp32_only: GPU engines, which fp16 is for, have kernels of their own for the unchanged form.
    """

    stages: tuple[str, ...]
    apply: Callable[[Any], None]
    fp32_only: bool = False


def rewrite_names() -> tuple[str, ...]:
    """All names, in the order of application. Imports no torch."""
    return tuple(_name(module) for module in _MODULES)


def rewrite_module(name: str) -> str:
    """The full name of the module that declares the rewrite `name`, one of `rewrite_names()`."""
    return {_name(module): module for module in _MODULES}[name]


def rewrites_of(stage: str, precision: str, without: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the rewrites that `stage` gets in that precision of its graph.

    Raises InvalidRequest if `without` names one that does not exist.
    """
    names = rewrite_names()
    if unknown := sorted(set(without) - set(names)):
        raise InvalidRequest(f"Got rewrites {', '.join(unknown)} to leave out; expected {', '.join(names)}.")
    return tuple(name for name in names if name not in without and _applies(_load(name), stage, precision))


def rewrite(module: Any, names: Collection[str]) -> None:
    """Apply the rewrites to everything below the torch module `module`, in place."""
    for name in names:
        _load(name).apply(module)


@contextmanager
def added(module: str) -> Generator[None]:
    """Within it, the rewrite that `module` declares is the last one. `module`: a full name, of any package.

    The command offers it to `--without` if `sdturbo_export.cli` is imported within it.
    Raises InvalidRequest if another rewrite has its name.
    """
    if _name(module) in rewrite_names():
        raise InvalidRequest(
            f"Got the rewrite {_name(module)} of {module}; {rewrite_module(_name(module))} has that name."
            " Rename the file."
        )
    _MODULES.append(module)
    try:
        yield
    finally:
        _MODULES.remove(module)


def _name(module: str) -> str:
    return module.rpartition(".")[2].replace("_", "-")


def _load(name: str) -> Rewrite:
    return importlib.import_module(rewrite_module(name)).REWRITE


def _applies(declared: Rewrite, stage: str, precision: str) -> bool:
    return stage in declared.stages and (precision == "fp32" or not declared.fp32_only)
