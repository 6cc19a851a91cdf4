"""OpenAI's client for JavaScript against a real server (make test-javascript)."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from serving import png_of, start_and_mask

SITE = os.environ.get("SDTURBO_OPENAI_JS")


@pytest.mark.skipif(not SITE, reason="OpenAI's JavaScript client is not here: make test-javascript")
def test_its_fields_change_nothing_at_their_defaults_and_at_null(server, tmp_path):
    (tmp_path / "start.png").write_bytes(png_of(start_and_mask()[0]))
    script, site = Path(__file__).parent / "openai_client.mjs", Path(SITE).resolve()
    line = ["node", str(script), str(site), server, str(tmp_path / "start.png")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    pictures = json.loads(done.stdout)
    assert pictures["fields"] == pictures["plain"]
    assert pictures["edit_fields"] == pictures["edit_words"] == pictures["edit"]
    assert len({pictures[name][0]["b64_json"] for name in ("plain", "edit", "mask")}) == 3
