import re

import pytest

from benchmarks import readme
from benchmarks.results import DIRECTORY, ROOT, Results, stored
from benchmarks.tables import document_tables

README = (ROOT / "README.md").read_text(encoding="utf-8")
PARTS = {
    name: {"median": 5.0, "p95": 6.0} for name in ("total", "text_encoder", "denoiser", "decoder", "outside_engines")
}


@pytest.fixture
def directory(tmp_path):
    rows = Results(tmp_path, "bench", "fake", {"threads": [1]})
    key = {"backend": "null", "precision": "fp32", "threads": 1, "batch_size": 1, "steps": 1}
    figures = {
        "cold_load_ms": 9.0,
        "load_ms": 7.0,
        "first_image_ms": 8.0,
        "peak_memory_mb": 90.0,
        "anonymous_memory_mb": 10.0,
    }
    rows.add(key, {"parts_ms": PARTS, **figures})
    rows.add({**key, "steps": 2}, {"parts_ms": PARTS, **figures, "batch_size": 1})
    rows.finish()
    return tmp_path


def test_readme_figures_are_those_of_the_stored_results():
    assert readme.with_section(README, readme.section(DIRECTORY)) == README


def test_pictures_of_the_figures_exist():
    pictures = re.findall(r"\]\((benchmarks/results/[^)]+)\)", README)
    assert [name for name in pictures if not (ROOT / name).is_file()] == []


def test_section_is_made_of_the_results(directory):
    text = readme.section(directory)
    assert "| null fp32" in text
    assert "sdturbo 0" in text
    assert "| scaling" not in text  # a chart shows it
    assert "| scaling" in document_tables(next(stored(directory)))
    assert re.search(r"\d{4}-\d\d-\d\d", text)
    changed = readme.with_section(README, text)
    assert changed != README
    assert readme.with_section(changed, readme.section(directory)) == changed
    assert readme.with_section(changed, "").count("## Figures") == 0


def test_markers_must_be_there():
    with pytest.raises(ValueError, match="one pair"):
        readme.with_section("# sdturbo\n", "")
