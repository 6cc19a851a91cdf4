"""The first and the second load of plans whose kernels are compiled on the card: TensorRT for RTX.

Both begin with an empty cache of sdturbo. The driver's own cache of compiled code, ~/.nv/ComputeCache, is left as it is.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.gpu.lines import NEEDS_GPU, Extent, Line
from sdturbo import backends
from sdturbo.bundle import Bundle

FIRST, SECOND = "first load, kernels compiled", "second load"
CACHED = "kernels of the second load from the cache"
VARIABLE = "SDTURBO_CACHE_DIR"


def loads(path: Path, extent: Extent) -> Iterator[Line]:
    """The time of each load, all stages at the first batch size, and whether the second one found its kernels.

    No lines if the plans bring their kernels, as those of TensorRT do. In a dry run nobody knows, so the lines are open.
    """
    if extent.dry:
        yield from (Line(name, NEEDS_GPU) for name in (FIRST, SECOND, CACHED))
        return
    with _own_cache():
        first, compiled = _load(path, extent)
        if not compiled:
            return
        second, taken = _load(path, extent)
    yield Line(FIRST, f"{first:.1f} s")
    yield Line(SECOND, f"{second:.1f} s")
    number = f"those of {sum(taken)} of {len(taken)} stages"
    yield Line(CACHED, number, f"all, and none in the first load ({sum(compiled)})", all(taken) and not any(compiled))


def _load(path: Path, extent: Extent) -> tuple[float, list[bool]]:
    """(seconds, per stage whose kernels are compiled at load whether they came from the cache)."""
    gc.collect()  # the engines of the load before
    start = time.perf_counter()
    bundle = Bundle.load(path, trust_unchanged=True)  # as Pipeline.load does
    backend: Any = backends.connect(extent.choice, bundle)
    size = bundle.batch_sizes[0]
    graphs = {name: bundle.graph(name, size, form=backend.form) for name in bundle.stages}
    sessions: list[Any] = [backend.session(graph, bundle.stages[name], size) for name, graph in graphs.items()]
    seconds = time.perf_counter() - start
    return seconds, [session.engine.kernels.used for session in sessions if session.engine.kernels is not None]


@contextmanager
def _own_cache() -> Generator[None]:
    """An empty cache directory, which is deleted afterwards."""
    before = os.environ.get(VARIABLE)
    with TemporaryDirectory() as folder:
        os.environ[VARIABLE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before
