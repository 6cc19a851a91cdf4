"""Start the server with the arguments that are given, have it draw and take an upload, and end it with SIGTERM.

Prints one JSON document: the sizes of its answers, and its exit status.
"""

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
from PIL import Image

UPLOAD = 1536 * 1024  # bytes. Frameworks keep forms of up to 1 MiB in memory


def ask(path, data=None, content_type="application/json"):
    request = urllib.request.Request(url + path, data, {"Content-Type": content_type} if data else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def is_ready():
    try:
        ask("/readyz")
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def form(**fields):
    """A body of multipart/form-data. Bytes are files."""
    body = io.BytesIO()
    for name, value in fields.items():
        is_file = isinstance(value, bytes)
        body.write(f'--x\r\nContent-Disposition: form-data; name="{name}"'.encode())
        body.write(b'; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' if is_file else b"\r\n\r\n")
        body.write((value if is_file else value.encode()) + b"\r\n")
    return body.getvalue() + b"--x--\r\n"


def picture(answer):
    return len(base64.b64decode(json.loads(answer)["data"][0]["b64_json"]))


with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
url = f"http://127.0.0.1:{port}"
noise = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (750, 750, 3), dtype=np.uint8)).save(noise, "PNG")
assert len(noise.getvalue()) > UPLOAD

process = subprocess.Popen([sys.executable, "-m", "sdturbo_serve", "--port", str(port), *sys.argv[1:]])
while not is_ready():
    assert process.poll() is None, "the server has ended"
    time.sleep(0.05)
report = {
    "drawn": picture(ask("/v1/images/generations", json.dumps({"prompt": "a red cat", "seed": 1}).encode())),
    "edited": picture(
        ask(
            "/v1/images/edits",
            form(prompt="a red cat", steps="2", image=noise.getvalue()),
            "multipart/form-data; boundary=x",
        )
    ),
}
process.send_signal(signal.SIGTERM)
print(json.dumps(report | {"status": process.wait(30)}))
