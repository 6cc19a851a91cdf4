"""The server under load against the bare engine, on loopback: its overhead for a request, its answers at twice its capacity,
throughput at saturation, pictures per second while typing, and SIGTERM under load.

Prints a JSON line for each figure that must hold, with "pass", and one JSON document as its last line. Exits with 1 if a
figure does not hold. benchmarks/ray_load.py has the figures of Ray. The time is bounded: `--seconds` of overload, and a fixed
number of requests elsewhere.

    python -m benchmarks.serve_load --bundle build/tiny --seconds 600
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image
from websockets.sync.client import connect

from benchmarks.verdicts import Verdict, judge
from sdturbo import Pipeline
from sdturbo.bundle import EMBEDDED

SEEDS = 8  # seeds whose pictures every answer is compared with
ROUTE = "/v1/images/generations"
DRAIN_S = 120


@contextmanager
def serving(bundle: str, *options: str) -> Generator[tuple[subprocess.Popen[bytes], str]]:
    """A server process on a free loopback port, ready: (process, address)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sdturbo_serve", "--bundle", bundle, "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with status {process.returncode} before it was ready")
            try:
                if httpx2.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        yield process, url
    finally:
        process.kill()
        process.wait()


def ask(client: httpx2.Client, seed: int, n: int = 1) -> httpx2.Response:
    body = {"prompt": f"request number {seed % SEEDS}", "seed": seed % SEEDS, "n": n}
    return client.post(ROUTE, json=body, timeout=120)


def overhead(pipe: Pipeline, url: str, runs: int) -> dict[str, float]:
    """Milliseconds of a request beyond the engine's own time for it, and beyond the bare engine's, turn by turn.

    "beyond_engine" is the answer's arrival less the server's own measure of the engine's work, so that the machine's noise
    in the engine cancels out. "beyond_bare" is the difference of the two medians.
    """
    bare: list[float] = []
    served: list[float] = []
    beyond: list[float] = []
    encoding: list[float] = []
    with httpx2.Client(base_url=url) as client:
        for i in range(runs + 1):
            bare.append(pipe(f"request number {i % SEEDS}", seed=i % SEEDS).timings["total"])
            start = time.perf_counter()
            report = ask(client, i).json()["sdturbo"]
            served.append((time.perf_counter() - start) * 1e3)
            beyond.append(served[-1] - report["timings_ms"]["total"])
            encoding.append(report["encode_ms"])
    medians = {name: float(np.median(times[1:])) for name, times in (("bare", bare), ("served", served))}
    return {
        "bare_p50_ms": medians["bare"],
        "served_p50_ms": medians["served"],
        "beyond_bare_p50_ms": medians["served"] - medians["bare"],
        "beyond_engine_p50_ms": float(np.median(beyond[1:])),
        "beyond_engine_p95_ms": float(np.percentile(beyond[1:], 95)),
        "encode_p50_ms": float(np.median(encoding[1:])),
    }


def overload(
    pipe: Pipeline, process: subprocess.Popen[bytes], url: str, seconds: float, clients: int
) -> dict[str, Any]:
    """`clients` clients together at twice the measured capacity: every answer is a right picture, a 429 or a 504."""
    expected = [pipe(f"request number {i}", seed=i, output_type="np").images[0] for i in range(SEEDS)]
    capacity = 1 / (min(pipe("capacity", seed=i).timings["total"] for i in range(3)) / 1e3)
    pause = clients / (2 * capacity)  # of each client from one request to its next
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    memory: list[float] = []

    def one_client(number: int) -> None:
        due = time.monotonic() + pause * number / clients
        with httpx2.Client(base_url=url) as client:
            i = number
            while (now := time.monotonic()) < end:
                time.sleep(max(0.0, min(due, end) - now))
                due += pause
                try:
                    answer = ask(client, i)
                except httpx2.HTTPError as error:
                    outcomes[f"lost: {type(error).__name__}"] += 1
                    continue
                if answer.status_code == 200:
                    file = io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))
                    right = np.array_equal(np.asarray(Image.open(file)), expected[i % SEEDS])
                    outcomes["right picture" if right else "wrong picture"] += 1
                else:
                    outcomes[str(answer.status_code)] += 1
                i += clients

    threads = [threading.Thread(target=one_client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    warm = time.monotonic() + seconds / 4
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.5)
        if time.monotonic() > warm:
            memory.append(resident_mb(process.pid))
    early, late = np.median(memory[: len(memory) // 4 + 1]), np.median(memory[-len(memory) // 4 - 1 :])
    return {
        "seconds": seconds,
        "clients": clients,
        "asked_per_second": 2 * capacity,
        "answers": dict(outcomes),
        "memory_mb": [float(early), float(late)],
        "memory_growth_percent": float((late / early - 1) * 100),
    }


def throughput(pipe: Pipeline, url: str, pictures: int, rounds: int = 3) -> dict[str, float]:
    """Pictures per second of the bare engine in a loop and of the server with 8 clients, best of `rounds`, turn by turn."""
    bare: list[float] = []
    served: list[float] = []
    with httpx2.Client(base_url=url) as client, ThreadPoolExecutor(8) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            for i in range(pictures):
                pipe(f"request number {i % SEEDS}", seed=i % SEEDS)
            bare.append(pictures / (time.perf_counter() - start))
            start = time.perf_counter()
            answers = list(pool.map(lambda i: ask(client, i).status_code, range(pictures)))
            served.append(pictures / (time.perf_counter() - start))
            if answers != [200] * pictures:
                raise SystemExit(f"the server refused at saturation: {Counter(answers)}")
    return {"bare": max(bare), "served": max(served), "ratio": max(served) / max(bare)}


def typing(url: str, seconds: float) -> dict[str, float]:
    """Frames per second of a live connection whose client sends a new request every 60 ms, like fast typing."""
    frames: list[int] = []
    with connect(url.replace("http", "ws") + "/v1/live", max_size=None) as connection:
        end = time.monotonic() + seconds

        def type_on() -> None:
            for i in range(int(seconds / 0.06)):
                connection.send(json.dumps({"prompt": "a red cat in the snow at night"[: 1 + i % 30], "seed": 1}))
                time.sleep(0.06)

        typist = threading.Thread(target=type_on)
        typist.start()
        while (left := end - time.monotonic()) > 0:
            try:
                head = json.loads(connection.recv(left))
                connection.recv(30)
            except TimeoutError:
                break
            frames.append(head["frame"])
        typist.join()
    if frames != sorted(set(frames)):
        raise SystemExit(f"frames came out of order: {frames}")
    return {"seconds": seconds, "pictures_per_second": len(frames) / seconds}


def drain(bundle: str, options: list[str], requests: int) -> dict[str, Any]:
    """SIGTERM while `requests` requests are accepted: their statuses, the exit status and the seconds it took."""
    with serving(bundle, *options) as (process, url), ThreadPoolExecutor(requests) as pool:
        with httpx2.Client(base_url=url) as client:
            answers = [pool.submit(ask, client, i) for i in range(requests)]
            time.sleep(1.0)  # all are accepted
            start = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            statuses = Counter(answer.result().status_code for answer in answers)
        status = process.wait(60)
        return {"answers": dict(statuses), "exit_status": status, "seconds": time.perf_counter() - start}


def verdicts(report: dict[str, Any]) -> list[Verdict]:
    """Each figure that must hold."""
    overload, drain, overhead = report["overload"], report["drain"], report["overhead"]
    lost = sum(count for what, count in overload["answers"].items() if what not in ("right picture", "429", "504"))
    unfinished = sum(count for status, count in drain["answers"].items() if status != 200) + abs(drain["exit_status"])
    return [
        Verdict("overhead beyond the engine, p50, ms", overhead["beyond_engine_p50_ms"], "<=", 10),
        Verdict("encoding, of the engine's time", overhead["encode_p50_ms"] / overhead["bare_p50_ms"], "<=", 1),
        Verdict("requests lost or wrong at 2x capacity", lost, "<=", 0),
        Verdict("right pictures at 2x capacity", overload["answers"].get("right picture", 0), ">=", 1),
        Verdict("memory growth after warm-up, %", overload["memory_growth_percent"], "<=", 2),
        Verdict("throughput at saturation, of the bare engine's", report["throughput"]["ratio"], ">=", 0.95),
        Verdict("pictures per second while typing", report["typing"]["pictures_per_second"], ">=", 4),
        Verdict("requests unfinished, and exit status, after SIGTERM", unfinished, "<=", 0),
        Verdict("seconds from SIGTERM to the end", drain["seconds"], "<=", DRAIN_S),
    ]


def resident_mb(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", default=str(EMBEDDED))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--runs", type=int, default=20, help="requests whose overhead is timed, and pictures per round")
    arguments = parser.parse_args()
    options = ["--backend", arguments.backend, "--drain", str(DRAIN_S), "--deadline", "30"]
    pipe = Pipeline.load(arguments.bundle, arguments.backend, image_to_image=False)
    report: dict[str, Any] = {
        "model": pipe.bundle.model["name"],
        "backend": pipe.backend.name,
        "precision": pipe.backend.precision,
    }
    with serving(arguments.bundle, *options) as (process, url):
        report["overhead"] = overhead(pipe, url, arguments.runs)
        print("overhead", report["overhead"], flush=True)
        report["throughput"] = throughput(pipe, url, arguments.runs)
        print("throughput", report["throughput"], flush=True)
        report["typing"] = typing(url, 10)
        print("typing", report["typing"], flush=True)
        report["overload"] = overload(pipe, process, url, arguments.seconds, arguments.clients)
        print("overload", report["overload"], flush=True)
    report["drain"] = drain(arguments.bundle, options, 8)
    return judge(report, verdicts(report))


if __name__ == "__main__":
    sys.exit(main())
