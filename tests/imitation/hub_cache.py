"""A bundle laid out as huggingface_hub lays out its cache."""

import hashlib
import os
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(bundle: Path, cache: Path, *, repo_id="someone/model", commit=COMMIT, branch="main", folder=".") -> Path:
    """The snapshot with the bundle's files as links to blobs. branch: its name, None for none. folder: inside the snapshot."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / commit, repository / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    if branch is not None:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(data := file.read_bytes()).hexdigest()
        blob.write_bytes(data)
        link = snapshot / folder / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot / folder


def share(snapshot: Path) -> Path:
    """Move the blobs to the store that all repositories of the cache share, as huggingface_hub 2 does. Returns the store."""
    repository = next(folder.parent for folder in snapshot.parents if folder.name == "snapshots")
    store = repository.parent / "blobs"
    store.mkdir()
    (store / ".huggingface-shared-blobs").write_text("1\n")
    for blob in list((repository / "blobs").iterdir()):
        name = hashlib.sha256(f"xet {blob.name}".encode()).hexdigest()
        (store / name[:2]).mkdir(exist_ok=True)
        blob.rename(store / name[:2] / name).chmod(0o444)
        blob.symlink_to(os.path.relpath(store / name[:2] / name, blob.parent))
    return store
