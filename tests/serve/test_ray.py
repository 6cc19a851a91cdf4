"""The server on a real Ray of this machine: two replicas, one killed, one with a dead engine, and a new bundle.

`make test-ray` runs it; Ray must be installed.
"""

import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import yaml
from isolation import HERE, offline
from ray_cluster import CONFIG, MIDDLEWARES, Load, cluster, outcome, settle
from serving import BACKEND, GENERATIONS, load, wait_until

from sdturbo import InvalidRequest
from sdturbo.bundle import EMBEDDED

pytestmark = pytest.mark.ray

CLIENTS = 8
# 0.2 s per batch, so that requests are under way at any time, and a prompt that ends the engine's thread
STRANGE = """
import sys, time

def patch():
    import sdturbo.pipeline as pipeline, sdturbo_serve.worker as worker
    decode, draw = pipeline.Pipeline._decode, worker.Worker._draw
    pipeline.Pipeline._decode = lambda self, job: (time.sleep(.2), decode(self, job))[1]

    def draw_or_end(self, batch):
        if batch[0].prompt == "end the engine's thread":
            sys.exit()
        draw(self, batch)

    worker.Worker._draw = draw_or_end

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "sdturbo_serve.ray_app":
            sys.meta_path.remove(self)
            patch()

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def second_bundle(make_serve_bundle):
    """The same engine in other batch sizes: another bundle_id."""
    return make_serve_bundle((1, 2))


@pytest.fixture(scope="module")
def ray(serve_bundle, tmp_path_factory):
    directory = tmp_path_factory.mktemp("ray")
    (directory / "sitecustomize.py").write_text(STRANGE)
    with cluster(directory, directory) as started:
        started.deploy(serve_bundle)
        settle(started)
        yield started


@pytest.fixture(scope="module")
def engines(bare):
    """The bare engine of each bundle, by its id."""
    return {bare.bundle.bundle_id: bare}


def test_two_replicas_answer_with_the_bare_engines_pictures(ray, engines):
    def ask(seed):
        body = {"prompt": "load", "seed": seed}
        return outcome(engines, seed, httpx2.post(ray.url + GENERATIONS, json=body, timeout=60))

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(ask, range(24))) == ["right"] * 24
    names = httpx2.get(f"{ray.url}/v1/models", headers={"X-Request-Id": "mine"}, timeout=60).headers
    assert names.get_list("x-request-id") == ["mine"]
    texts = [httpx2.get(f"{ray.url}/metrics", timeout=30).text for _ in range(30)]
    drawn = {line for text in texts for line in text.splitlines() if line.startswith("sdturbo_pictures_total")}
    counts = [float(line.split()[1]) for line in drawn]
    assert 0 not in counts
    assert sum(counts) == 24 or counts == [12]  # of both replicas


def test_a_replica_killed_under_load_costs_no_answer_and_another_takes_its_place(ray, engines):
    before = ray.pids()
    clients = Load(ray.url, CLIENTS)
    wait_until(lambda: len(clients.answers) > 2 * CLIENTS, 300)
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    settle(ray, without={killed})
    clients.stop()
    assert set(clients.outcomes(engines)) == {"right"}


def test_a_new_bundle_under_load_fails_no_request(ray, engines, second_bundle):
    newer = load(second_bundle)
    engines[newer.bundle.bundle_id] = newer
    old = ray.pids()
    clients = Load(ray.url, CLIENTS)
    ray.deploy(second_bundle)
    settle(ray, without=old)
    wait_until(lambda: _last_ids(clients, 4 * CLIENTS) == {newer.bundle.bundle_id}, 300)
    clients.stop()
    assert set(clients.outcomes(engines)) == {"right"}
    assert _last_ids(clients, len(clients.answers)) == set(engines)  # both were seen


def test_a_replica_whose_engine_ended_answers_at_once_and_is_replaced(ray):
    before = ray.pids()
    ended = httpx2.post(ray.url + GENERATIONS, json={"prompt": "end the engine's thread"}, timeout=60)
    assert (ended.status_code, ended.json()["error"]["code"]) == (503, "engine_ended")
    assert len(ended.headers.get_list("x-request-id")) == 1
    wait_until(lambda: len(ray.pids() & before) == 1 and len(ray.pids()) == 2, 300)


@pytest.fixture
def near():
    """A directory with a short path: sockets have at most 107 bytes of it, and Ray's lie seven folders down."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        yield Path(folder)


def test_ray_connects_to_nothing_and_writes_where_it_was_told(near):
    """With what the server's page names, and `make serve-ray` sets."""
    config = yaml.safe_load(CONFIG.read_text())
    config["applications"][0]["args"] |= {"bundle": str(EMBEDDED), "backend": BACKEND}
    config["applications"][0]["deployments"][0]["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": 1}
    (near / "ray.yaml").write_text(yaml.safe_dump(config))
    home = near / "run/home"
    home.mkdir(parents=True)
    (home / "ray_bootstrap_config.yaml").write_text("{}")
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": MIDDLEWARES}
    line = [sys.executable, HERE / "ray_served.py", near / "ray.yaml", "http://127.0.0.1:8000"]
    done, trace = offline(line, near / "run", timeout=900, **settings)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 1000, "no picture"
    assert trace.connections() == []
    named = (near / "run" / name for name in ("cache", "tmp", "out", "home/.ray"))
    shared_memory, priorities = "/dev/shm", "/proc"
    assert trace.written_outside(*named, shared_memory, priorities) == []


def test_without_a_key_it_must_be_told_so(serve_bundle, tmp_path, monkeypatch):
    from pydantic import ValidationError

    from sdturbo_serve.ray_app import Options, build

    monkeypatch.delenv("SDTURBO_API_KEYS", raising=False)
    with pytest.raises(InvalidRequest, match="without_key"):
        build(Options(bundle=serve_bundle))
    build(Options(bundle=serve_bundle, without_key=True))
    build(Options(bundle=serve_bundle, api_key_file=tmp_path / "keys.txt"))
    with pytest.raises(InvalidRequest, match="link_dir"):
        links = {"public_url": "https://example.org"}
        build(Options.model_validate({"bundle": serve_bundle, "without_key": True, "settings": links}))
    with pytest.raises(ValidationError, match="max_quue"):
        Options.model_validate({"bundle": "x", "settings": {"max_quue": 3}})
    with pytest.raises(ValidationError, match="max_queue=0"):
        Options.model_validate({"bundle": "x", "settings": {"max_queue": 0}})


def _last_ids(clients, count):
    answers = [answer for _, answer in clients.answers[-count:]]
    return {answer.json()["sdturbo"]["bundle_id"] for answer in answers if getattr(answer, "status_code", 0) == 200}
