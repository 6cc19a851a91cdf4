"""The bundle of a caller: a directory, or a repository on the Hugging Face Hub of which the needed files are fetched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from sdturbo.backends.nvidia.library import LIBRARIES
from sdturbo.bundle import Bundle
from sdturbo.bundle.hub import fetch, hub_id, is_pinned
from sdturbo.bundle.plans import COMPILED, read_plans

ONNX = "onnx"  # the bundle's folder of graphs and weights
TENSORRT = "tensorrt"  # the backend that runs compiled plans alone
RUN_PLANS = ("auto", TENSORRT)


def open_bundle(
    path: str | Path, revision: str | None = None, *, backend: str | None = None, trust_unchanged: bool = False
) -> Bundle:
    """The validated bundle at `path`.

    path: a directory, or owner/name on the Hub. revision: of the latter, its branch, tag or commit. None is the branch main.
    backend: the one that will run it, a registered name or "auto". None fetches the whole bundle.
    Compiled plans are code, so they are fetched for a commit alone. Without one the bundle has no plans.
    Raises BundleError, HubError, InvalidRequest, and BackendUnavailable if huggingface_hub is needed and missing.
    """
    repo_id = hub_id(path, revision)
    if repo_id is None:
        return Bundle.load(path, trust_unchanged=trust_unchanged)
    with_plans = is_pinned(revision)
    root, names = fetch(repo_id, revision, partial(needed_files, backend=backend, with_plans=with_plans))
    runs_graphs = backend != TENSORRT
    bundle = Bundle.load(root, trust_unchanged=trust_unchanged, only=names, runs_graphs=runs_graphs)
    return replace(bundle, with_plans=with_plans)


def needed_files(bundle: Bundle, backend: str | None, *, with_plans: bool = True) -> list[str]:
    """The names of the bundle's files that the backend needs. None needs all. with_plans: False leaves out all plans.

    Compiled plans are left out unless a library that runs them is installed. A named backend for plans needs no weights.
    A file that the runtime opens by itself is needed wherever it lies.
    """
    if backend is None and with_plans:
        return list(bundle.files)
    libraries = {
        library.name
        for library in LIBRARIES.values()
        if with_plans and backend in RUN_PLANS and not library.missing(backend)
    }
    plans = {plan.file for plan in read_plans(bundle) if plan.key.library in libraries} if libraries else set[str]()
    graphs = {file for stage in bundle.declared.values() for file in stage.graphs.values()}
    opened = {*plans, *graphs, bundle.golden.image}

    def is_needed(name: str) -> bool:
        folder = name.partition("/")[0]
        return name in opened or (folder != COMPILED and (folder != ONNX or backend != TENSORRT))

    return [name for name in bundle.files if is_needed(name)]
