"""Nothing phones home: no connection is tried and no file is written, beyond what the user named.

A command runs without a network, and strace follows its system calls and those of all its children.
"""

import ast
import importlib
import json
import os
import sys
import types

import pytest
from isolation import HERE, ROOT, Trace, offline

from sdturbo.backends.telemetry import telemetry_off

LIBRARIES = {"onnxruntime", "openvino"}
# their functions take a model of OpenVINO, whose backend has imported it
TAKE_A_MODEL = {f"engine/sdturbo/backends/openvino/{name}.py" for name in ("upsample", "weights")}


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("sdturbo", ("doctor", "--json")),
        ("sdturbo", ("generate", "a red cat", "--backend", "onnxruntime", "--threads", 1)),
        ("sdturbo", ("generate", "a red cat", "--backend", "openvino", "--threads", 1)),
    ],
    ids=["doctor", "onnxruntime", "openvino"],
)
def test_a_command_connects_to_nothing_and_writes_where_it_was_told(tmp_path, module, arguments):
    done, trace = offline([sys.executable, "-m", module, *arguments], tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_silent(trace, tmp_path / "run")
    if "generate" in arguments:
        assert [file.name for file in (tmp_path / "run/out").iterdir()] == ["image.png"]
        assert any("image.png" in path for path in trace.written())
    else:
        assert {name for name, backend in json.loads(done.stdout)["backends"].items() if backend["runs"]} >= LIBRARIES


def test_a_server_that_draws_connects_to_nothing(tmp_path):
    line = [sys.executable, HERE / "served.py", "--backend", "openvino", "--threads", 1]
    done, trace = offline(line, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["status"], report["drawn"] > 1000, report["edited"] > 1000) == (0, True, True)
    assert any("127.0.0.1" in line for line in trace.lines), "nothing was followed"
    assert_silent(trace, tmp_path / "run")


@pytest.mark.offline
def test_an_export_connects_to_nothing(tmp_path):
    line = [sys.executable, "-m", "sdturbo_export", "build", "--model", "small", "--out", "bundle"]
    done, trace = offline(line, tmp_path / "run", timeout=1800)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/out/bundle/bundle.json").exists()
    assert_silent(trace, tmp_path / "run", "/dev/shm")  # shared memory, whose names go at once


@pytest.mark.parametrize("before", [None, "0"])
def test_the_program_around_us_keeps_what_it_has_set_up(monkeypatch, before):
    reporter = types.ModuleType("openvino_telemetry")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setitem(sys.modules, "openvino_telemetry", reporter)
    if before is None:
        monkeypatch.delitem(sys.modules, "openvino_telemetry")
    else:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before)
    with pytest.raises(ValueError, match="broken"), telemetry_off(), telemetry_off():
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
        with pytest.raises(ImportError):
            importlib.import_module("openvino_telemetry")
        raise ValueError("a broken installation")
    assert os.environ.get("ORT_DISABLE_TELEMETRY") == before
    assert sys.modules.get("openvino_telemetry") is (reporter if before else None)


def test_what_a_trace_shows_is_judged():
    lines = """\
1 connect(6<socket:[1]>, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16) = 0
2 connect(6, {sa_family=AF_INET6, sin6_port=htons(443), inet_pton(AF_INET6, "2a00::1", &sin6_addr)}, 28 <unfinished ...>
3 sendto(3, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(9), sin_addr=inet_addr("10.0.0.1")}, 16) = 1
4 connect(5, {sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io.systemd.Resolve"}, 42) = 0
5 connect(6, {sa_family=AF_INET, sin_port=htons(8000), sin_addr=inet_addr("127.0.0.1")}, 16) = 0
6 openat(AT_FDCWD, "/home/u/stats", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0666) = 3
7 openat(AT_FDCWD, "/home/u/link.py", O_RDONLY|O_CLOEXEC) = 3
8 renameat2(AT_FDCWD, "/run/a", AT_FDCWD, "/elsewhere/b", 0 <unfinished ...>
9 mkdir("/run2", 0777) = -1 EROFS (Read-only file system)
"""
    trace = Trace(lines)
    assert [line.split()[0] for line in trace.connections()] == ["1", "2", "3", "4"]
    assert trace.written_outside("/run") == ["/elsewhere/b", "/home/u/stats", "/run2"]


def test_a_module_that_imports_a_library_that_reports_turns_that_off_first():
    doors, others = set(), set()
    for path in (path for folder in ("engine", "export", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        first = next(imports(ast.parse(path.read_text(encoding="utf-8"))), None)
        # scripts of other environments, where `lines.py` hides what reports
        elsewhere = path.match("benchmarks/peers/*_worker.py") or path.match("benchmarks/peers/*_converter.py")
        if first is not None and not elsewhere:
            (doors if first else others).add(path.relative_to(ROOT).as_posix())
    assert others == TAKE_A_MODEL
    assert len(doors) > 3


def imports(node, guarded=False):
    """For each import of one of LIBRARIES at run time, in the order of the text: whether `telemetry_off` is around it."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
        names = [ast.unparse(node.args[0]).strip("'")]
    if LIBRARIES & {name.split(".")[0] for name in names}:
        yield guarded
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    is_guard = isinstance(node, ast.With) and any("telemetry_off()" in ast.unparse(item) for item in node.items)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, guarded or is_guard)


def assert_silent(trace, folder, *others):
    assert trace.connections() == []
    assert trace.written_outside(*(folder / name for name in ("cache", "tmp", "out")), *others) == []
