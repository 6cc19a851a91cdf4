"""SIGTERM ends every command as it ends other programs, and no unfinished file is left."""

import os
import signal
import subprocess
import sys
import time

import pytest

# every file stops when half of it is written, and every directory when it is there
STALLED = """
import contextlib, os, sys, time
from pathlib import Path
from sdturbo import files
from sdturbo_export import exchange

def stall():
    if not Path(os.environ["MARK"]).exists():
        Path(os.environ["MARK"]).touch()
        time.sleep(60)

write, make = files.atomic_write, exchange.unfinished

@contextlib.contextmanager
def half_written(path):
    with write(path) as file:
        if os.environ["STALLS"] in str(path):
            file.write(b"half")
            file.flush()
            stall()
        yield file

@contextlib.contextmanager
def half_made(path):
    with make(path) as partial:
        partial.mkdir()
        (partial / "file").touch()
        stall()
        yield partial

files.atomic_write, exchange.unfinished = half_written, half_made
"""


@pytest.mark.parametrize(
    ("line", "stalls"),
    [
        (("sdturbo", "generate", "a cat", "--backend", "null", "--out", "{}/out/cat.png"), "cat.png"),
        (("sdturbo", "generate", "a cat", "--backend", "openvino", "--out", "{}/out/cat.png"), ".blob"),
        (("sdturbo_serve", "--backend", "openvino", "--port", "0"), ".blob"),
        (("sdturbo_export", "checkpoint", "small", "--out", "{}/out/small"), "nothing"),
    ],
    ids=["picture", "cache", "server", "export"],
)
def test_nothing_unfinished_is_left(tmp_path, bundle_dir, line, stalls):
    (tmp_path / "sitecustomize.py").write_text(STALLED)
    (tmp_path / "out").mkdir()
    mark = tmp_path / "mark"
    settings = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "SDTURBO_BUNDLE": str(bundle_dir),
        "SDTURBO_CACHE_DIR": str(tmp_path / "out/cache"),
        "MARK": str(mark),
        "STALLS": stalls,
    }
    with subprocess.Popen(
        [sys.executable, "-m", *(word.format(tmp_path) for word in line)],
        env=os.environ | settings,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            while not mark.exists() and process.poll() is None:
                time.sleep(0.05)
            assert process.poll() is None, process.stderr.read()
            assert unfinished(tmp_path / "out"), "nothing was begun"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == -signal.SIGTERM, process.stderr.read()
        finally:
            process.kill()
        assert b"Traceback" not in process.stderr.read()
    assert unfinished(tmp_path / "out") == []


def unfinished(folder):
    return [path.name for path in folder.rglob(".*")]
