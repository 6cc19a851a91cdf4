"""Plans into a bundle that is in use: at every moment `bundle.json` lists files that are there with the hashes they have.

Plan files get names with their hash in them, so that none is ever overwritten; the manifest is replaced in one step; what
it no longer lists is deleted last. The bundle's id and its other files do not change.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdturbo.bundle import MANIFEST, Bundle
from sdturbo.files import atomic_write
from sdturbo.plans import COMPILED, Plan, PlanKey


def plan_name(key: PlanKey, stage: str, batch_size: int, data: bytes) -> str:
    """The plan's path in a bundle."""
    compiled_for = f"tensorrt-{key.tensorrt}-sm{key.compute_capability.replace('.', '')}"
    return f"{COMPILED}/{compiled_for}/{stage}.b{batch_size}.{hashlib.sha256(data).hexdigest()[:12]}.plan"


def add_plans(bundle: Bundle, plans: Mapping[Plan, bytes], reports: Mapping[str, bytes]) -> Bundle:
    """Write plans and further files (path in the bundle -> bytes) and list them; returns the bundle as it is then.

    An older plan of the same stage, batch size and key is dropped. Raises OSError, BundleError.
    """
    new = {plan.file: data for plan, data in plans.items()} | dict(reports)
    with _locked(bundle.path):
        for name, data in new.items():
            with atomic_write(bundle.path / name) as file:
                file.write(data)
        manifest = json.loads((bundle.path / MANIFEST).read_bytes())
        replaced = {(plan.stage, plan.batch_size, json.dumps(plan.to_json()["key"])) for plan in plans}
        kept = [one for one in manifest.get(COMPILED, []) if _place(one) not in replaced]
        manifest[COMPILED] = kept + [plan.to_json() for plan in plans]
        entries = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in new.items()}
        listed = {Path(one["file"]).with_suffix("").as_posix() for one in manifest[COMPILED]}
        files = {
            name: entry
            for name, entry in manifest["files"].items()
            if not name.startswith(f"{COMPILED}/") or any(name.startswith(plan) for plan in listed)
        }
        manifest["files"] = files | entries
        with atomic_write(bundle.path / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode())
        _delete_unlisted(bundle.path, manifest["files"])
    return Bundle.load(bundle.path)


def _place(entry: Mapping[str, Any]) -> tuple[str, int, str]:
    return entry["stage"], entry["batch_size"], json.dumps(entry["key"])


def _delete_unlisted(root: Path, listed: Sequence[str] | Mapping[str, Any]) -> None:
    """What an older plan or a killed run left under `compiled`."""
    for file in sorted((root / COMPILED).rglob("*")):
        if file.is_file() and file.relative_to(root).as_posix() not in listed:
            file.unlink()


@contextmanager
def _locked(root: Path) -> Generator[None]:
    """One writer at a time; waits for the other."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
