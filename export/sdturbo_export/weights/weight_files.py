"""Which files hold a component's weights: variants, such as fp16, and shards. Source: diffusers `variant_compatible_siblings`.

A variant is the middle of a name, as in `model.fp16.safetensors`, and "" stands for a name without one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from sdturbo_export.errors import CheckpointError

WHOLE_FIRST, HALF_FIRST = ("", "fp16"), ("fp16", "")  # in this order, unless a variant is asked for
PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def variants(stem: str, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Variant -> its one file, or its index and its shards, among `names`. One file goes before shards."""
    names = list(names)
    whole, sharded = (
        re.compile(rf"{stem}(?:\.(\w+))?\.safetensors"),
        re.compile(rf"{stem}\.safetensors\.index(?:\.(\w+))?\.json"),
    )
    files: dict[str, tuple[str, ...]] = {}
    for name in names:
        if match := sharded.fullmatch(name):
            infix = f".{match[1]}" if match[1] else ""
            shard = re.compile(rf"{stem}{re.escape(infix)}-\d+-of-\d+\.safetensors")
            files[match[1] or ""] = (name, *sorted(filter(shard.fullmatch, names)))
    return files | {match[1] or "": (name,) for name in names if (match := whole.fullmatch(name))}


def choose(label: str, offered: Collection[str], wanted: str | None, order: Sequence[str]) -> tuple[str, str]:
    """(variant, fault), one of them "". label: of the component. wanted: None leaves the choice to `order`."""
    if wanted is not None:
        there = "" if wanted in offered else f"{label}: there is no variant {_quoted(wanted)}, only {_listed(offered)}"
        return wanted, there
    if preferred := [variant for variant in (*order, *offered) if variant in offered][:1]:
        is_unclear = preferred[0] not in order and len(offered) > 1
        fault = f"{label}: choose one of its variants with --variant: {_listed(offered)}" if is_unclear else ""
        return preferred[0], fault
    return "", f"{label}: there are no safetensors"


def _listed(offered: Collection[str]) -> str:
    return ", ".join(map(_quoted, sorted(offered))) or "nothing"


def _quoted(variant: str) -> str:
    """As `--variant` takes it."""
    return variant or "none"


def weight_files(
    directory: Path,
    label: str,
    stem: str,
    faults: list[str],
    *,
    variant: str | None = None,
    order: Sequence[str] = WHOLE_FIRST,
) -> tuple[str, ...]:
    """The files of weights in `directory`, as label/name. Their faults go to `faults`.

    variant: the only one to be taken. None takes the first of `order` that is there.
    """
    names = [file.name for file in sorted(directory.iterdir())] if directory.is_dir() else []
    offered = variants(stem, names)
    if not offered:
        hint = next((f". {pickle_fault(name)}" for name in names if name.endswith(PICKLES)), "")
        faults.append(f"{label}: {stem}.safetensors is missing, as are its variants and shards{hint}")
        return ()
    chosen, fault = choose(label, offered, variant, order)
    if fault:
        faults.append(fault)
        return ()
    first, *_ = offered[chosen]
    return _shards(directory / first, label, faults) if first.endswith(".json") else (f"{label}/{first}",)


def _shards(index: Path, label: str, faults: list[str]) -> tuple[str, ...]:
    named = read_json(index, faults).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        faults.append(f"{label}: {index.name} has no weight_map of tensor names to files")
        return ()
    shards = sorted(set(named.values()))
    wrong = [shard for shard in shards if Path(shard).name != shard or not (index.parent / shard).is_file()]
    faults += [f"{label}: {index.name} names {shard!r}, which is not a file beside it" for shard in wrong]
    return () if wrong else tuple(f"{label}/{shard}" for shard in shards)


def pickle_fault(name: str) -> str:
    """Why a file of that name is not read."""
    return f"{name} is a pickle, which is never loaded: convert it to safetensors"


def single_file(directory: Path) -> Path | None:
    """The one safetensors file of a directory that holds no checkpoint in diffusers' layout. None if it may hold one.

    Raises CheckpointError if there are several, or only pickles.
    """
    if (directory / "model_index.json").exists() or any(
        (directory / name).is_dir() for name in ("unet", "text_encoder", "vae")
    ):
        return None
    files = sorted(file for file in directory.iterdir() if file.is_file())
    weights = [file for file in files if file.suffix == ".safetensors"]
    if len(weights) > 1:
        listed = ", ".join(file.name for file in weights)
        raise CheckpointError(
            directory, [f"it holds {len(weights)} safetensors files ({listed}): name the one you mean"]
        )
    pickles = [file.name for file in files if file.suffix in PICKLES]
    if pickles and not weights:
        raise CheckpointError(directory, [pickle_fault(pickles[0])])
    return weights[0] if weights else None


def read_json(path: Path, faults: list[str]) -> dict[str, Any]:
    """The file's object. Its faults go to `faults`."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        faults.append(f"{path.parent.name}/{path.name} is missing")
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"{path.parent.name}/{path.name} cannot be read: {error}")
    else:
        if isinstance(data, dict):
            return data
        faults.append(f"{path.parent.name}/{path.name} holds {type(data).__name__}, expected an object")
    return {}
