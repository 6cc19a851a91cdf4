"""The README's example is run as it stands."""

import re
from pathlib import Path

from sdturbo.bundle import EMBEDDED

README = Path(__file__).parents[2] / "README.md"


def test_example_runs_and_draws(tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len(code.strip().splitlines()) <= 12
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "tiny").symlink_to(EMBEDDED)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    assert (tmp_path / "cat.png").stat().st_size > 10_000
    assert names["result"].strength == 0.5
