"""What exists on Linux alone is not needed. Windows and macOS are imitated here, by taking away what they lack."""

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath, PureWindowsPath

import sdturbo
import sdturbo_serve
from sdturbo.cache.hashes import LARGE, HashMemory
from sdturbo.cpu import available_cpus
from sdturbo.files import sha256_file

PACKAGES = [Path(package.__file__).parent for package in (sdturbo, sdturbo_serve)]

# libraries ask for the platform when they are imported, so they come first, and are not judged here
LIKE_WINDOWS = """
import os, socket, sys
import asyncio, click, concurrent.futures, ctypes, fastapi, multiprocessing, numpy, PIL.Image, platform, prometheus_client
import pydantic, subprocess, tempfile, tokenizers, urllib.request, uuid, uvicorn
import starlette.staticfiles, fastapi.middleware.cors, fastapi.responses
import uvicorn.protocols.http.httptools_impl, uvicorn.protocols.websockets.websockets_sansio_impl
platform.platform(), platform.uname(), PIL.Image.preinit()

for name in ("fcntl", "resource", "pwd", "grp", "termios", "syslog", "posix", "openvino", "onnxruntime"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "sched_setaffinity", "fork", "geteuid", "getuid", "getgid", "sysconf", "killpg", "setsid",
             "uname", "fchmod", "O_NOFOLLOW", "O_DIRECTORY", "O_TMPFILE", "sendfile", "getloadavg", "posix_fadvise"):
    delattr(os, name)
for name in ("AF_UNIX", "TCP_USER_TIMEOUT"):
    delattr(socket, name)
socket.SO_EXCLUSIVEADDRUSE = socket.SO_KEEPALIVE
sys.platform = "win32"

import importlib, pkgutil
import sdturbo, sdturbo_serve
for package in (sdturbo, sdturbo_serve):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "ray_app", "ray_proxy")):
            importlib.import_module(module.name)

from sdturbo.commands import doctor
from sdturbo.commands.cli import cli
from sdturbo.commands.console import run
from sdturbo_serve import server
assert doctor.report()["cpu"]["count"] >= 1
bundle, picture = sys.argv[1:]
pipe = sdturbo.Pipeline.load(bundle, "null", trust_unchanged=True)
sdturbo.save_png(pipe("a cat", seed=1).images[0], picture)
assert run(cli, "sdturbo", ["info", "--bundle", bundle, "--json"]) == 0
(bound,) = server.bind("127.0.0.1", 0)
assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE)
assert not bound.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
server._allow_many_sockets()
"""


def test_runtime_and_server_need_nothing_that_windows_lacks(bundle_dir, tmp_path):
    picture = tmp_path / "picture.png"
    command = [sys.executable, "-c", LIKE_WINDOWS, str(bundle_dir), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 0


def test_without_affinity_every_cpu_counts(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cpus() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus() == 1


def test_where_ctime_does_not_show_a_write_every_file_is_hashed(monkeypatch, tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(LARGE))
    HashMemory().remember(file, "0" * 64)
    assert HashMemory().sha256(file) == "0" * 64
    monkeypatch.setattr(sys, "platform", "win32")
    assert HashMemory().sha256(file) == sha256_file(file)


def test_every_file_has_a_name_that_windows_takes():
    names = [path.relative_to(package) for package in PACKAGES for path in package.rglob("*")]
    assert len(names) > 100
    refused = [name for name in names if set(name.as_posix()) & set('<>:"|?*\\') or name.name.endswith((".", " "))]
    assert refused == []
    assert [name for name in names if any(PureWindowsPath(part).is_reserved() for part in name.parts)] == []
    for package in PACKAGES:
        folded = Counter(str(path).casefold() for path in package.rglob("*"))
        assert [name for name, count in folded.items() if count > 1] == []


def test_names_in_a_bundle_mean_the_same_file_on_windows():
    bundle = sdturbo.bundle.Bundle.load(PACKAGES[0] / "bundles/tiny")
    assert len(bundle.files) > 5
    for name in bundle.files:
        assert PureWindowsPath(name).parts == PurePosixPath(name).parts
        assert PureWindowsPath("D:/bundle", name).is_relative_to("D:/bundle")


def test_text_files_name_their_encoding():
    """Windows reads and writes files in an encoding of the country, if none is named."""
    calls = [
        (path.name, node)
        for package in PACKAGES
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    texts = [(name, node) for name, node in calls if node.func.attr in ("read_text", "write_text")]
    assert texts
    assert [name for name, node in texts if "encoding" not in {word.arg for word in node.keywords}] == []
