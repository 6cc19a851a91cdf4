"""The Python examples of the documents are run as they stand."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


def run(code, name, names):
    exec(compile(code, name, "exec"), names)


def test_example_runs_and_draws(tmp_path, monkeypatch):
    code = blocks("README.md")[0]
    assert len(code.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    names = {}
    run(code, "README.md", names)
    assert (tmp_path / "cat.png").stat().st_size > 10_000
    assert names["result"].strength == 0.5


def test_examples_of_embedding_run_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("engine/README.md"):
        run(code, "engine/README.md", names)
    assert (tmp_path / "cat.png").stat().st_size > 10_000
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[-1] == names["pipe"].bundle.bundle_id
    assert printed[1] == "no dragons"
    assert printed[2:6] == ["[0]", "[0]", "[0]", "[1]"]  # three streamed, one awaited
    assert "cancel" in printed[6].lower()
