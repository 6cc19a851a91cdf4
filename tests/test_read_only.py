"""Where nothing can be written: a read-only root, no home, no directory for temporary files, a user without a name."""

import io
import json
import sys

from isolation import HERE, read_only
from PIL import Image


def test_a_server_starts_draws_and_takes_large_uploads(tmp_path):
    line = [sys.executable, HERE / "served.py", "--backend", "openvino", "--threads", 1]
    done = read_only(line, SDTURBO_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["status"], report["drawn"] > 1000, report["edited"] > 1000) == (0, True, True)
    lines = [json.loads(text) for text in done.stderr.splitlines() if text.startswith(b"{")]
    not_used = [line["message"] for line in lines if "the cache of compiled is not used" in line["message"]]
    assert len(not_used) == 1
    assert f"{tmp_path / 'cache'}: Read-only file system. To load in less time" in not_used[0]
    assert "Traceback" not in str(done.stderr)


def test_a_picture_goes_to_standard_output():
    line = [sys.executable, "-m", "sdturbo", "generate", "a red cat", "--out", "-"]
    done = read_only([*line, "--backend", "onnxruntime", "--threads", 1])
    assert done.returncode == 0, done.stderr
    assert Image.open(io.BytesIO(done.stdout)).size == (512, 512)
    assert b"Could not determine home directory. To load in less time" in done.stderr


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    line = [sys.executable, "-m", "sdturbo", "generate", "a red cat", "--out", tmp_path / "cat.png"]
    done = read_only([*line, "--backend", "null"])
    assert done.returncode == 2
    assert b"Read-only file system" in done.stderr
