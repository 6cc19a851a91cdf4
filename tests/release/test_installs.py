"""The wheel in empty environments, one per extra: it draws, serves, or says in words which extra is missing."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from certificates import KEYS, Authority
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image

pytestmark = pytest.mark.dist

GOLDEN = """
import sys
from sdturbo import Pipeline
from sdturbo.golden import golden_distance
pipe = Pipeline.load(backend=sys.argv[1])
assert golden_distance(pipe) >= pipe.bundle.golden.min_psnr
"""
HEIC = """
import sys, PIL.Image, pillow_heif
pillow_heif.register_heif_opener()
PIL.Image.new("RGB", (512, 512), "red").save(sys.argv[1])
"""
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SDTURBO_BUNDLE")}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(bin_, program, *arguments):
    line = [bin_ / program, *arguments]
    return subprocess.run(line, cwd=bin_, env=CLEAN, capture_output=True, text=True, check=False)


@contextmanager
def serving(bin_, *arguments):
    """The address of the installed server, once it is ready. It must end well."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    process = subprocess.Popen([bin_ / "sdturbo-serve", "--port", str(port), *arguments], cwd=bin_, env=CLEAN)
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            try:
                if urllib.request.urlopen(f"{url}/readyz").status == 200:
                    break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def post(url, data, content_type):
    request = urllib.request.Request(url, data, {"Content-Type": content_type})
    return json.load(urllib.request.urlopen(request, timeout=60))


def test_alone_it_says_which_extra_is_missing(installed):
    bin_ = installed()
    assert run(bin_, "sdturbo", "info", "--json").returncode == 0
    assert '"onnxruntime": null' in run(bin_, "sdturbo", "doctor", "--json").stdout
    for program, arguments, extra in (
        ("sdturbo", ["generate", "a red cat"], "cpu"),
        ("sdturbo-serve", [], "serve"),
        ("sdturbo-export", ["build", "--model", "tiny", "--out", "bundle"], "export"),
    ):
        done = run(bin_, program, *arguments)
        assert done.returncode == 4, done.stderr
        assert f"[{extra}]" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("extra", "backend"), [("cpu", "onnxruntime"), ("openvino", "openvino")])
def test_with_a_backend_it_draws_the_golden_picture(installed, tmp_path, extra, backend):
    bin_ = installed(extra)
    picture = tmp_path / "cat.png"
    done = run(bin_, "sdturbo", "generate", "a red cat in the snow", "--out", picture)
    assert done.returncode == 0, done.stderr
    with Image.open(picture) as image:
        assert image.size == (512, 512)
        assert len(image.getcolors(2**18)) > 1000
    assert run(bin_, "python", "-c", GOLDEN, backend).returncode == 0


def test_with_the_server_it_serves_pictures_and_the_page(installed):
    with serving(installed("cpu", "serve")) as url:
        answer = post(f"{url}/v1/images/generations", b'{"prompt": "a red cat", "seed": 1}', "application/json")
        assert answer["data"][0]["b64_json"]
        page = urllib.request.urlopen(f"{url}/").read().decode()
        assert "<html" in page
        for name in ("page.js", "page.css"):
            assert urllib.request.urlopen(f"{url}/page/{name}").status == 200, name


def test_the_server_without_a_backend_says_which_extra_is_missing(installed):
    done = run(installed("serve"), "sdturbo-serve", "--port", "0")
    assert done.returncode == 4
    assert "[cpu]" in done.stderr


def test_with_heif_the_server_reads_photos_of_phones(installed, tmp_path):
    bin_ = installed("cpu", "serve", "heif")
    assert run(bin_, "python", "-c", HEIC, tmp_path / "photo.heic").returncode == 0
    photo = (tmp_path / "photo.heic").read_bytes()
    fields = {"prompt": b"a red cat", "steps": b"2", "strength": b"0.5", 'image"; filename="photo.heic': photo}
    parts = [
        f'--X\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + data for name, data in fields.items()
    ]
    with serving(bin_) as url:
        answer = post(f"{url}/v1/images/edits", b"\r\n".join([*parts, b"--X--\r\n"]), "multipart/form-data; boundary=X")
    assert answer["data"][0]["b64_json"]


def test_with_credentials_a_picture_is_signed(installed, tmp_path):
    bin_ = installed("cpu", "credentials")
    authority, key = Authority(), KEYS["Es256"]()
    files = (tmp_path / "chain.pem", tmp_path / "key.pem")
    files[0].write_bytes(authority.issue(key) + authority.pem)
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    done = run(bin_, "sdturbo", "generate", "a red cat", "--content-credentials", *files, "--out", tmp_path / "cat.png")
    assert done.returncode == 0, done.stderr
    assert b"c2pa" in (tmp_path / "cat.png").read_bytes()


def test_with_hub_a_bundle_is_asked_for_and_without_it_the_extra_is_named(installed):
    asked = ("sdturbo", "info", "--bundle", "someone/nothing", "--revision", "main")
    without, with_hub = (run(installed("cpu", *extra), *asked) for extra in ((), ("hub",)))
    assert without.returncode == 4
    assert "[hub]" in without.stderr
    assert with_hub.returncode == 7, with_hub.stderr
    assert "Traceback" not in with_hub.stderr
