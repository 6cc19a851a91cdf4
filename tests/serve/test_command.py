"""The command `sdturbo-serve` as a process: listening, keys, drain, and what it refuses to do."""

import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx2
import pytest
from click.testing import CliRunner
from serving import GENERATIONS, command, free_port, listening, wait_until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from sdturbo.commands.console import run
from sdturbo.errors import BackendUnavailable, InvalidRequest
from sdturbo_serve import Settings, create_app
from sdturbo_serve import cli as cli_module
from sdturbo_serve.cli import cli
from sdturbo_serve.names import listen_host_of, url_of
from sdturbo_serve.server import CannotListen, bind, serve
from sdturbo_serve.settings import answered_hosts, check_listen, find_logins, is_loopback, read_keys

SLOW = """
import time, sdturbo.pipeline as pipeline
decode = pipeline.Pipeline._decode
pipeline.Pipeline._decode = lambda self, x: (time.sleep(3), decode(self, x))[1]
"""
HELD = """
import os, pathlib, time, sdturbo.pipeline as pipeline
decode, door = pipeline.Pipeline._decode, pathlib.Path(os.environ["DOOR"])
def held(self, x):
    while door.exists():
        (door / "entered").touch()
        time.sleep(.01)
    return decode(self, x)
pipeline.Pipeline._decode = held
"""


def is_up(url):
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def test_sigterm_under_load_finishes_what_was_accepted_and_exits_0(serve_bundle, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HELD)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    door = tmp_path / "door"
    with command(serve_bundle, PYTHONPATH=paths, DOOR=str(door)) as (process, url), ThreadPoolExecutor(12) as pool:
        wait_until(lambda: is_up(url))

        def ask():
            return pool.submit(httpx2.post, url + GENERATIONS, json={"prompt": "x"}, timeout=60)

        door.mkdir()
        answers = [ask()]
        wait_until((door / "entered").exists)
        answers += [ask() for _ in range(11)]
        wait_until(lambda: "sdturbo_queue_pictures 11.0" in httpx2.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_up(url))
        door.rename(tmp_path / "open")
        assert [answer.result().status_code for answer in answers] == [200] * 12
        assert process.wait(30) == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(url)
        lines = [json.loads(line) for line in process.stderr]
    requests = [line for line in lines if line.get("route") == GENERATIONS]
    assert len(requests) == 12
    assert {"time", "level", "request_id", "status", "ms", "seed", "batch_size"} <= requests[0].keys()


def test_work_that_outlasts_the_drain_time_is_given_up(serve_bundle, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with command(serve_bundle, "--drain", 1, PYTHONPATH=paths) as (process, url), ThreadPoolExecutor(6) as pool:
        wait_until(lambda: is_up(url))
        for steps in (1, 2, 3, 4, 1, 2):
            pool.submit(httpx2.post, url + GENERATIONS, json={"prompt": "x", "steps": steps}, timeout=30)
        wait_until(lambda: "sdturbo_queue_pictures 0.0" not in httpx2.get(f"{url}/metrics").text)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert time.monotonic() - start < 8  # of the 18 s and more that the queue would take
        assert process.returncode == 0


def test_a_key_of_the_environment_is_asked_for(serve_bundle):
    with command(serve_bundle, SDTURBO_API_KEYS="correct-horse,battery-staple") as (_, url):
        wait_until(lambda: is_up(url))
        assert httpx2.get(f"{url}/v1/models").status_code == 401
        assert httpx2.get(f"{url}/v1/models", headers={"Authorization": "Bearer battery-staple"}).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--host", "0.0.0.0"], 2, "--without-key"),
        (["--host", "example.org"], 2, "no API key"),
        (["--port", "99999"], 2, "65535"),
        (["--max-queue", "0"], 2, "max_queue"),
        (["--deadline", "nan"], 2, "deadline_s"),
        (["--api-key-file", "nowhere.txt"], 2, "nowhere.txt"),
        (["--bundle", "nowhere"], 3, "no such directory"),
        (["--backend", "cuda-dreams"], 2, "Unknown backend"),
    ],
)
def test_what_it_refuses_is_said_in_a_sentence(serve_bundle, capsys, arguments, status, words):
    assert run(cli, "sdturbo-serve", ["--bundle", str(serve_bundle), *arguments]) == status
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_help_has_examples():
    assert "--api-key-file keys.txt" in CliRunner().invoke(cli, ["--help"]).output


def test_only_loopback_is_open_without_a_key():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
        check_listen(host, has_key=False, without_key=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example", ""):
        assert not is_loopback(host)
        check_listen(host, has_key=True, without_key=False)
        check_listen(host, has_key=False, without_key=True)
        with pytest.raises(InvalidRequest):
            check_listen(host, has_key=False, without_key=False)


def test_key_files(tmp_path):
    file = tmp_path / "keys.txt"
    file.write_text("# ours\ncorrect-horse\n\n battery-staple \n")
    assert read_keys(file) == ("correct-horse", "battery-staple")
    file.write_text("correct-horse\n", encoding="utf-8-sig")
    assert read_keys(file) == ("correct-horse",)
    file.write_text("# none\n")
    with pytest.raises(InvalidRequest, match="holds no key"):
        read_keys(file)
    for key in ("tiny-1", "white space", "schlüssel-nr-1", "new\nline-key"):
        with pytest.raises(InvalidRequest) as refused:
            Settings(api_keys=(key,))
        assert key not in str(refused.value)


@pytest.mark.parametrize(
    "arguments", [("--a1111", "--api-auth", ""), ("--a1111", "--api-auth", " , "), ("--api-auth", "")]
)
def test_a_login_that_is_empty_does_not_open_the_api(capsys, monkeypatch, arguments):
    monkeypatch.setenv("SDTURBO_API_AUTH", "user:pass")
    status, words = refused_without_loading(capsys, *arguments)
    assert (status, "holds no login" in words) == (2, True), words


def test_logins_come_from_the_option_or_else_from_the_environment(monkeypatch):
    monkeypatch.setenv("SDTURBO_API_AUTH", "user:pass, other:secret,")
    assert find_logins() == ("user:pass", "other:secret")
    assert find_logins("third:word") == ("third:word",)
    for text in ("", ",", " , "):
        with pytest.raises(InvalidRequest, match="SDTURBO_API_AUTH"):
            find_logins(text)
    monkeypatch.setenv("SDTURBO_API_AUTH", ",")
    with pytest.raises(InvalidRequest, match="Got SDTURBO_API_AUTH=','"):
        find_logins()
    monkeypatch.delenv("SDTURBO_API_AUTH")
    assert find_logins() == ()


def test_on_loopback_without_a_key_a_strangers_name_for_this_machine_is_not_answered(bare):
    hosts = answered_hosts("127.0.0.1", ["Studio.local"], has_key=False)
    with listening(bare, allow_hosts=hosts) as url:
        port = int(url.rpartition(":")[2])

        def live(host):
            return connect(f"ws://{host}/v1/live", sock=socket.create_connection(("127.0.0.1", port)))

        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000", "studio.local:9"):
            assert httpx2.get(f"{url}/healthz", headers={"Host": host}).status_code == 200
            live(host).close()
        for host in ("example.org", "localhost.example.org:8000", "127.0.0.1.example.org", "localhost:8000:1"):
            refused = httpx2.post(url + GENERATIONS, json={"prompt": "x"}, headers={"Host": host})
            assert refused.status_code == httpx2.get(url, headers={"Host": host}).status_code == 403
            assert refused.json()["error"]["code"] == "host"
        with pytest.raises(InvalidStatus) as denied:
            live("example.org:8000")
        assert denied.value.response.status_code == 403
    assert answered_hosts("127.0.0.1", [], has_key=True) == answered_hosts("0.0.0.0", ["a"], has_key=False) == ()
    assert "127.1.2.3" in answered_hosts("127.1.2.3", [], has_key=False)


def refused_without_loading(capsys, *arguments):
    """(exit code, words) of a command whose bundle is not there, so that reading it would fail in another way."""
    status = run(cli, "sdturbo-serve", ["--bundle", "nowhere", *map(str, arguments)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return status, lines[0]


def test_a_port_in_use_is_said_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            status, words = refused_without_loading(capsys, "--host", host, "--port", port)
            assert (status, f"Port {port} of {host} is in use" in words) == (6, True)
    bind("127.0.0.1", port)[0].close()


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("203.0.113.7", "no address 203.0.113.7"),
        ("no-such-machine.invalid", "which has no address"),
        ("a..b", "which has no address"),
    ],
)
def test_a_host_that_cannot_be_listened_on_is_said_before_the_model_is_loaded(capsys, host, words):
    status, said = refused_without_loading(capsys, "--host", host, "--without-key", "--port", 0)
    assert (status, words in said) == (6, True), said


def test_an_ipv6_address_may_stand_in_brackets_and_the_link_has_them(serve_bundle):
    require_ipv6()
    for host in ("[::1]", "::1"):
        with command(serve_bundle, "--host", host) as (process, url):
            port = url.rpartition(":")[2]
            line = next(each for each in map(json.loads, process.stderr) if each["message"] == "listening")
            assert line["urls"] == [f"http://[::1]:{port}"]
            wait_until(partial(is_up, f"http://[::1]:{port}"))
            assert not is_up(url)  # IPv4


def require_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error}")


def test_links_have_brackets_around_ipv6_alone():
    assert [url_of(address) for address in [("::1", 8000, 0, 0), ("127.0.0.1", 1), ("0.0.0.0", 80)]] == [
        "http://[::1]:8000",
        "http://127.0.0.1:1",
        "http://0.0.0.0:80",
    ]
    assert [listen_host_of(text) for text in ("[::1]", "::1", "[a]", "localhost", "[", "")] == [
        *("::1", "::1", "[a]", "localhost", "[", "")
    ]


def test_a_missing_extra_is_said_before_the_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr(cli_module, "LIBRARIES", ("fastapi", "no_such_library"))
    status, words = refused_without_loading(capsys)
    assert status == BackendUnavailable.exit_code
    assert "needs no_such_library" in words
    assert "'.[serve]'" in words


def test_of_two_servers_that_start_at_once_the_second_says_so(bare):
    first, second = (bind("127.0.0.1", port) for port in [free_port()] * 2)
    first[0].listen()
    with pytest.raises(CannotListen, match="in use"):
        serve(create_app(bare), second, drain_s=1)
    for bound in (*first, *second):
        bound.close()
