import re

import pytest

from benchmarks import readme
from benchmarks.peer_tables import is_equal
from benchmarks.ratios import ratio
from benchmarks.results import DIRECTORY, ROOT, Results, finished_runs
from benchmarks.tables import document_tables

PAGE = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARTS = {
    name: {"median": 5.0, "p95": 6.0} for name in ("total", "text_encoder", "denoiser", "decoder", "outside_engines")
}


@pytest.fixture
def directory(tmp_path):
    rows = Results(tmp_path, "bench", "fake", {"threads": [1], "runs": 10})
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


def test_the_pages_figures_are_those_of_the_stored_results():
    assert readme.with_section(PAGE, readme.section(DIRECTORY)) == PAGE


def median_of(document, backend, precision):
    """Milliseconds of one picture in one step with all threads."""
    key = {"backend": backend, "precision": precision, "threads": 2, "batch_size": 1, "steps": 1}
    (row,) = (row for row in document["rows"] if row["key"] == key)
    return row["parts_ms"]["total"]["median"]


def test_the_readmes_small_table_is_of_the_stored_results_at_equal_precision():
    found = {(document["suite"], document["name"]): document for document in finished_runs()}
    stored = {row["key"]["row"]: row for row in found["peers", "seeded"]["rows"] if is_equal(row)}
    wanted = {
        ("diffusers with torch.compile", "bf16"): stored["diffusers-compiled-bf16"],
        ("diffusers", "bf16"): stored["diffusers-bf16"],
        ("Hugging Face's optimum-onnx, both on ONNX Runtime", "fp32"): stored["optimum-onnx-onnxruntime"],
    }
    rows = re.findall(r"^\| (.+) \| (bf16|fp32) \| (.+) \| (.+) \|$", README, re.MULTILINE)
    shown = {(name, precision): (ratio, how) for name, precision, ratio, how in rows if "not stored" not in how}
    numbers = {3: "three", 9: "nine"}
    assert shown == {
        names: (str(ratio(row)), f"Both programs took turns, {numbers[len(row['times_ms']['ours'])]} times.")
        for names, row in wanted.items()
    }
    assert all(row["ours"]["precision"] == precision for (_, precision), row in wanted.items())


def test_the_readmes_picture_is_of_the_leading_rows():
    (name,) = re.findall(r"\]\(benchmarks/(results/[^)]+\.png)\)", README)
    assert name == "results/peers-seeded-leading.png"
    assert (ROOT / "benchmarks" / name).is_file()


def test_the_readmes_times_are_those_of_the_stored_results():
    found = {document["name"]: document for document in finished_runs() if document["suite"] == "bench"}
    seconds = [f"{median_of(found['seeded'], 'openvino', name) / 1e3:.1f} s in {name}" for name in ("bf16", "fp32")]
    milliseconds = [f"{median_of(found['tiny'], 'openvino', name):.0f} ms in {name}" for name in ("bf16", "fp32")]
    assert f"`seeded` in one step takes {' and '.join(seconds)}, on OpenVINO" in README
    assert f"`tiny` takes {' and '.join(milliseconds)}." in README


def test_pictures_of_the_figures_exist():
    pictures = re.findall(r"\]\((results/[^)]+\.png)\)", PAGE)
    assert len(pictures) > 3
    assert [name for name in pictures if not (ROOT / "benchmarks" / name).is_file()] == []


def test_section_is_made_of_the_results(directory):
    text = readme.section(directory)
    assert "| null fp32" in text
    assert "### sdturbo alone: `fake`" in text
    assert "sdturbo 0" in text
    assert "| scaling" not in text  # a chart shows it
    assert "| scaling" in document_tables(next(finished_runs(directory)))
    assert re.search(r"\d{4}-\d\d-\d\d", text)
    changed = readme.with_section(PAGE, text)
    assert changed != PAGE
    assert readme.with_section(changed, readme.section(directory)) == changed
    assert readme.with_section(changed, "").count("## All figures") == 0


def test_markers_must_be_there():
    with pytest.raises(ValueError, match="one pair"):
        readme.with_section("# sdturbo\n", "")
