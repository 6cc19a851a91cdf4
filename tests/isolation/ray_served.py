"""Run the shipped Ray Serve config, as `make serve-ray` does, have it draw, and end it with SIGINT.

Arguments: the config file, and the address that it serves. Prints the size of the picture.
"""

import base64
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

config, url = sys.argv[1:]
process = subprocess.Popen([sys.executable, "-m", "ray.serve.scripts", "run", config])
end = time.monotonic() + 400
while True:
    assert process.poll() is None, "Ray has ended"
    assert time.monotonic() < end, "no picture came in time"
    try:
        data = json.dumps({"prompt": "a red cat", "seed": 1}).encode()
        request = urllib.request.Request(f"{url}/v1/images/generations", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            picture = json.load(answer)["data"][0]["b64_json"]
        break
    except (urllib.error.URLError, ConnectionError):
        time.sleep(0.5)
print(len(base64.b64decode(picture)))
process.send_signal(signal.SIGINT)
process.wait(120)
