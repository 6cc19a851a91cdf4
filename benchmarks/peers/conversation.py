"""The driver's side of a worker. It is started in its environment, asked line by line, and ended in any case."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.peers.environments import PeerUnavailable
from sdturbo.cpu import proc_field

FOLDER = Path(__file__).parent
_QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
# of Linux's /proc/PID/status: most resident memory so far with mapped files, and what is held now without them
MEMORY = {"peak": "VmHWM", "anonymous": "RssAnon"}


class Worker:
    """A process of a peer. Leaving the block ends it."""

    def __init__(
        self, python: str | Path, worker: str | Path, arguments: Sequence[str], threads: int, log: Path | None = None
    ) -> None:
        """log: file for the output of the worker and its libraries. None throws it away."""
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        with (log or Path(os.devnull)).open("ab") as errors:
            self._process = subprocess.Popen(
                [str(python), "-u", str(FOLDER / worker), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **counts, **_QUIET},
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, do: str, *, timeout: float = 1800, **request: Any) -> Mapping[str, Any]:
        """The worker's answer. Raises PeerUnavailable if it failed, died or took longer than `timeout` seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Timer(timeout, self._process.kill)
        late.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late.cancel()
        if not line:
            status = self._process.wait()
            raise PeerUnavailable(f"its process ended at `{do}` with status {status}, within {timeout:.0f} s")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerUnavailable(f"{do} failed: {answer['error']}")
        return answer

    def memory_mb(self) -> dict[str, float | None]:
        """{"peak", "anonymous"} of the process in MB of 1024·1024 bytes. None where the system does not tell."""
        return {name: _megabytes(f"/proc/{self._process.pid}/status", field) for name, field in MEMORY.items()}


def _megabytes(file: str, field: str) -> float | None:
    kibibytes = proc_field(file, field).partition(" ")[0]
    return int(kibibytes) / 1024 if kibibytes else None
