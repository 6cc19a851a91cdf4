"""Plans into a bundle that is in use: at every moment `bundle.json` lists files that are there with the hashes they have.

Plan files get names with their hash in them, so that none is ever overwritten. The manifest is replaced in one step. Files
that it no longer lists are deleted last. The bundle's id and its other files do not change.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdturbo.bundle import Bundle
from sdturbo.bundle.description import MANIFEST
from sdturbo.bundle.plans import COMPILED, TENSORRT, Plan, PlanKey, read_plans
from sdturbo.errors import BundleError
from sdturbo.files import atomic_write
from sdturbo_export.errors import BuildError
from sdturbo_export.exchange import link_or_copy


def plan_name(key: PlanKey, stage: str, batch_size: int, data: bytes) -> str:
    """The plan's path in a bundle."""
    capabilities = "-".join(capability.replace(".", "") for capability in key.capabilities)
    compiled_for = f"{key.library}-{key.tensorrt}-sm{capabilities}"
    return f"{COMPILED}/{compiled_for}/{stage}.b{batch_size}.{hashlib.sha256(data).hexdigest()[:12]}.plan"


def add_plans(bundle: Bundle, plans: Mapping[Plan, bytes], reports: Mapping[str, bytes]) -> Bundle:
    """Write plans and further files (path in the bundle -> bytes) and list them. Returns the bundle as it is then.

    An older plan of the same stage, batch size and key is dropped. Raises OSError, BundleError.
    """
    new = {plan.file: data for plan, data in plans.items()} | dict(reports)
    with locked(bundle.path):
        for name, data in new.items():
            with atomic_write(bundle.path / name) as file:
                file.write(data)
        entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in new.items()}
        _list_plans(bundle.path, plans, entries)
    return Bundle.load(bundle.path)


def plan_size(bundle: Bundle, graph: Path) -> int:
    """About the bytes of a plan: those of its graph and weights."""
    return sum(bundle.files[name][1] for name in bundle.graph_files(graph))


def require_disk(bundle: Bundle, graph: Path, stage: str) -> None:
    """Raise BuildError if the disk has no room for the plan of a stage's graph."""
    need, disk = 1.2 * plan_size(bundle, graph), shutil.disk_usage(bundle.path).free
    if disk < need:
        raise BuildError(
            f"The plan of the {stage} needs about {need / 1e9:.1f} GB in {bundle.path}, and {disk / 1e9:.1f} GB are free."
            " Free some space and run the same command again: finished plans are kept."
        )


def keep_plans(old: Path, new: Path, say: Callable[[str], None]) -> None:
    """Take over into the whole bundle `new` the plans of the bundle `old`, which it will replace, that are of its graphs.

    A plan is of a graph if stage, batch size and the hash of graph and weights are the same. Whether it may run here is
    checked when it is loaded. If `old` is faulty, its faults are said and no plan is kept. say: takes a line. Raises OSError.
    """
    if not json.loads((old / MANIFEST).read_bytes()).get(COMPILED):
        return
    try:
        before = Bundle.load(old)  # every hash
        plans = read_plans(before)
    except BundleError as error:
        say(f"      its TensorRT plans are not kept: {'; '.join(error.faults)}")
        return
    after = Bundle.load(new)
    graphs = {
        (name, graph.batch_size, after.graph_sha256(after.path / file))
        for name, stage in after.stages.items()
        for graph, file in stage.graphs.items()
    }
    fitting = [
        plan
        for plan in plans
        if plan.key.precision == after.precision and (plan.stage, plan.batch_size, plan.key.onnx_sha256) in graphs
    ]
    stems = tuple(_stem(plan.file) for plan in fitting)
    entries = {
        name: {"sha256": digest, "size": size}
        for name, (digest, size) in before.files.items()
        if name.startswith(stems)
    }
    for name in entries:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(old / name, new / name)
    _list_plans(new, fitting, entries)
    say(f"      {len(fitting)} of {len(plans)} TensorRT plans are of these graphs and stay")


def _list_plans(root: Path, plans: Collection[Plan], entries: Mapping[str, Any]) -> None:
    """Write the plans and the entries of their files, which are there, into the manifest. Delete files without an entry."""
    manifest = json.loads((root / MANIFEST).read_bytes())
    replaced = {_place(plan.to_json()) for plan in plans}
    others = [entry for entry in manifest.get(COMPILED, []) if _place(entry) not in replaced]
    manifest[COMPILED] = others + [plan.to_json() for plan in plans]
    listed = tuple(_stem(entry["file"]) for entry in manifest[COMPILED])
    files = {
        name: entry
        for name, entry in manifest["files"].items()
        if not name.startswith(f"{COMPILED}/") or name.startswith(listed)
    }
    manifest["files"] = files | dict(entries)
    with atomic_write(root / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    for file in sorted((root / COMPILED).rglob("*")):  # of an older plan or a killed run
        if file.is_file() and file.relative_to(root).as_posix() not in manifest["files"]:
            file.unlink()


def _stem(file: str) -> str:
    """The beginning of the names of a plan and of its reports."""
    return Path(file).with_suffix("").as_posix()


def _place(entry: Mapping[str, Any]) -> tuple[str, int, str]:
    key = {"library": TENSORRT, **entry["key"]}  # older plans do not name it
    return entry["stage"], entry["batch_size"], json.dumps(key, sort_keys=True)


@contextmanager
def locked(root: Path) -> Generator[None]:
    """One writer at a time. Waits for the other."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
