"""The server on Ray Serve under load: a replica killed with SIGKILL, and a new bundle, while clients go on asking.

Needs the server running on this machine's Ray with two replicas or more (make serve-ray). The new bundle needs its config
file written anew (`--update ray.yaml`, deployed with `serve deploy`). Prints a JSON line for each figure, and one JSON
document as its last line. Exits with 1 if a figure does not hold.

    python -m benchmarks.ray_load --url http://127.0.0.1:8000 --seconds 60 --update build/ray-new.yaml
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from benchmarks.serve_load import ask
from benchmarks.verdicts import Verdict, judge


class Load:
    """Clients that ask one request after another. answers: (status or error, seconds, bundle_id)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[str, float, str]] = []
        self.end = threading.Event()

    def ask_on(self, number: int) -> None:
        with httpx2.Client(base_url=self.url) as client:
            while not self.end.is_set():
                start = time.perf_counter()
                try:
                    answer = ask(client, number)
                    what = str(answer.status_code)
                    bundle = answer.json()["sdturbo"]["bundle_id"] if answer.status_code == 200 else ""
                except httpx2.HTTPError as error:
                    what, bundle = f"lost: {type(error).__name__}", ""
                self.answers.append((what, time.perf_counter() - start, bundle))

    def report(self) -> dict[str, Any]:
        times = [seconds for _, seconds, _ in self.answers]
        return {
            "answers": dict(Counter(what for what, _, _ in self.answers)),
            "failed": sum(what not in ("200", "429") for what, _, _ in self.answers),
            "bundles": sorted({bundle for _, _, bundle in self.answers if bundle}),
            "last_bundle": next((bundle for _, _, bundle in reversed(self.answers) if bundle), None),
            "p50_s": float(np.median(times)),
            "max_s": max(times),
        }


@contextmanager
def load(url: str, clients: int) -> Generator[Load]:
    running = Load(url)
    threads = [threading.Thread(target=running.ask_on, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.end.set()
        for thread in threads:
            thread.join()


def replicas() -> set[int]:
    """Process ids of the replicas on this machine, which Ray names so."""
    process_ids: set[int] = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes().startswith(b"ray::ServeReplica:sdturbo:"):
                process_ids.add(int(file.parent.name))
        except OSError:  # it has just ended
            continue
    return process_ids


def replica_killed(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Kill one replica. Another takes its place in the rest of `seconds`."""
    before = replicas()
    if len(before) < 2:
        raise SystemExit(f"{len(before)} replicas run on this machine. Two or more are needed.")
    with load(url, clients) as running:
        time.sleep(min(5.0, seconds / 4))
        os.kill(min(before), signal.SIGKILL)
        time.sleep(seconds)
    return {"replicas": [len(before), len(replicas())], **running.report()}


def rolling_update(url: str, clients: int, seconds: float, config: str) -> dict[str, Any]:
    """`serve deploy` of another config file, which must end within `seconds`."""
    with load(url, clients) as running:
        time.sleep(min(5.0, seconds / 4))
        subprocess.run([sys.executable, "-m", "ray.serve.scripts", "deploy", config], check=True, timeout=120)
        time.sleep(seconds)
    return running.report()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60, help="of load after each event")
    parser.add_argument("--update", help="config file with another bundle")
    arguments = parser.parse_args()
    killed = replica_killed(arguments.url, arguments.clients, arguments.seconds)
    report: dict[str, Any] = {"replica_killed": killed}
    verdicts = [
        Verdict("requests without a picture, a replica killed", killed["failed"], "<=", 0),
        Verdict("replicas missing afterwards", killed["replicas"][0] - killed["replicas"][1], "<=", 0),
    ]
    if arguments.update:
        updated = rolling_update(arguments.url, arguments.clients, arguments.seconds, arguments.update)
        report["rolling_update"] = updated
        not_new = int(len(updated["bundles"]) < 2 or updated["last_bundle"] == killed["last_bundle"])
        verdicts += [
            Verdict("requests failed, bundle replaced", updated["failed"], "<=", 0),
            Verdict("1 if the old bundle still answers", not_new, "<=", 0),
        ]
    return judge(report, verdicts)


if __name__ == "__main__":
    sys.exit(main())
