"""Exact changes of a stage before it is exported: one per file, its formula in the docstring, its own test.

A rewrite takes a stage's graph module and changes it in place. LoRAs are fused into its weights before that. The float16 form
(`half.py`, which the precision asks for and no name leaves out) is made after it. The reference that parity is measured
against is left as it is. A file declares its rewrite as `REWRITE`, and `_MODULES` names the file. Nothing else knows it.
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
    "sdturbo_export.rewrites.transposed_upsample",
    "sdturbo_export.rewrites.group_norm",
    "sdturbo_export.rewrites.geglu",
]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The declaration in a rewrite's file. Its name is the file's, with hyphens.

    stages: names of the stages that it changes. apply: changes a stage's graph module in place. precisions: those of the graphs
    that gain by it. fp16 is for GPU engines, which have kernels of their own for some of the unchanged forms.
    """

    stages: tuple[str, ...]
    apply: Callable[[Any], None]
    precisions: tuple[str, ...] = ("fp32", "fp16")

    def applies(self, stage: str, precision: str) -> bool:
        """Whether a stage in that precision of its graph gets it."""
        return stage in self.stages and precision in self.precisions


def rewrite_names() -> tuple[str, ...]:
    """All names, in the order of application. Imports no torch."""
    return tuple(_name(module) for module in _MODULES)


def rewrite_module(name: str) -> str:
    """The full name of the module that declares the rewrite `name`, one of `rewrite_names()`."""
    return {_name(module): module for module in _MODULES}[name]


def require_known(names: Collection[str]) -> None:
    """Raise InvalidRequest if one of `names` is no rewrite's. Imports no torch."""
    known = rewrite_names()
    if unknown := sorted(set(names) - set(known)):
        raise InvalidRequest(f"Got rewrites {', '.join(unknown)} to leave out. Expected {', '.join(known)}.")


def rewrites_of(stage: str, precision: str, without: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the rewrites that `stage` gets in that precision of its graph, except `without`, which must be known."""
    require_known(without)
    return tuple(name for name in rewrite_names() if name not in without and _load(name).applies(stage, precision))


def rewrite(module: Any, names: Collection[str]) -> None:
    """Apply the rewrites to everything below the torch module `module`, in place."""
    for name in names:
        _load(name).apply(module)


def replace_modules(stage: Any, kind: type, replacement: Callable[[Any], Any]) -> None:
    """Put `replacement(child)` in the place of every torch module of class `kind` below `stage`."""
    for module in list(stage.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, replacement(child))


@contextmanager
def added(module: str) -> Generator[None]:
    """Within it, the rewrite that `module` declares is the last one. `module`: a full name, of any package.

    The command offers it to `--without` if `sdturbo_export.cli` is imported within it.
    Raises InvalidRequest if another rewrite has its name.
    """
    name = _name(module)
    if name in rewrite_names():
        raise InvalidRequest(
            f"Got the rewrite {name} of {module}. {rewrite_module(name)} has that name. Rename the file."
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
