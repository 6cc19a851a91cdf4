"""A real Ray of one machine with the server on it, by the config file that is shipped and Ray's own commands."""

import base64
import io
import os
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import yaml
from PIL import Image
from serving import BACKEND, GENERATIONS, free_port, wait_until

CONFIG = Path(__file__).parents[2] / "engine/examples/ray.yaml"
MIDDLEWARES = "sdturbo_serve.ray_proxy.middlewares"


class Cluster:
    """url: where the proxy answers; deploy() changes what it serves."""

    def __init__(self, directory, dashboard, environment):
        self.url = f"http://127.0.0.1:{free_port()}"
        self._directory = directory
        self._dashboard = dashboard
        self._environment = environment

    def deploy(self, bundle, **settings):
        """`serve deploy` of the shipped config with this bundle, two replicas, and what makes a test quick."""
        config = yaml.safe_load(CONFIG.read_text())
        config["http_options"]["port"] = int(self.url.rpartition(":")[2])
        (application,) = config["applications"]
        application["args"] |= {"bundle": str(bundle), "backend": BACKEND, "settings": settings}
        (deployment,) = application["deployments"]
        deployment["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
        deployment["health_check_period_s"] = 1
        file = self._directory / "ray.yaml"
        file.write_text(yaml.safe_dump(config))
        line = [sys.executable, "-m", "ray.serve.scripts", "deploy", "--address", self._dashboard, str(file)]
        subprocess.run(line, check=True, capture_output=True, timeout=300, env=self._environment)

    def state(self):
        """What Ray's dashboard says of the applications."""
        headers = {"Authorization": f"Bearer {self._environment['RAY_AUTH_TOKEN']}"}
        answer = httpx2.get(f"{self._dashboard}/api/serve/applications/", timeout=30, headers=headers)
        return answer.raise_for_status().json()["applications"]

    def pids(self):
        """Of the replicas that run."""
        applications = self.state()
        if "sdturbo" not in applications or "sdturbo" not in applications["sdturbo"]["deployments"]:
            return set()
        replicas = applications["sdturbo"]["deployments"]["sdturbo"]["replicas"]
        return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}


@contextmanager
def cluster(directory, *paths):
    """A head node on free ports, and all its processes ended at the end. paths: put first on the workers' PYTHONPATH."""
    ports = {name: free_port() for name in ("port", "dashboard-port", "dashboard-agent-listen-port")}
    line = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "4"]
    line += [f"--{name}={port}" for name, port in ports.items()]
    line += ["--include-dashboard=true", "--object-store-memory=200000000", "--disable-usage-stats"]
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": MIDDLEWARES,
        "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",  # where `ray start` says that reports are off
    }
    with (directory / "ray.log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, env=environment)
    try:
        started = Cluster(directory, f"http://127.0.0.1:{ports['dashboard-port']}", environment)

        def is_up():
            assert process.poll() is None, (directory / "ray.log").read_text()
            try:
                return not started.state()
            except httpx2.HTTPError:  # its parts start one after another
                return False

        wait_until(is_up, 300)
        yield started
    finally:
        process.terminate()  # `ray start --block` ends what it has started
        process.wait(180)


class Load:
    """Clients that ask without a pause until stop(); every answer is kept."""

    def __init__(self, url, clients):
        self._url = url
        self._end = threading.Event()
        self.answers = []
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, seed):
        with httpx2.Client(base_url=self._url, timeout=120) as client:
            while not self._end.is_set():
                try:
                    self.answers.append((seed, client.post(GENERATIONS, json={"prompt": "load", "seed": seed})))
                except httpx2.HTTPError as error:
                    self.answers.append((seed, error))

    def stop(self):
        self._end.set()
        for thread in self._threads:
            thread.join()

    def outcomes(self, engines):
        """How often what was answered: "right" for the picture that the bundle's bare engine draws."""
        return Counter(outcome(engines, seed, answer) for seed, answer in self.answers)


def outcome(engines, seed, answer):
    if isinstance(answer, Exception):
        return repr(answer)
    if answer.status_code != 200:
        return f"{answer.status_code}: {answer.text[:200]}"
    body = answer.json()
    bare = engines[body["sdturbo"]["bundle_id"]]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))))
    return "right" if np.array_equal(pixels, bare("load", seed=seed, output_type="np").images[0]) else "wrong picture"


def settle(cluster, count=2, without=frozenset(), seconds=300):
    """Wait until `count` replicas run, none of them in `without`."""
    wait_until(lambda: len(pids := cluster.pids()) == count and not pids & without, seconds)
    time.sleep(1)  # the proxy hears of them
