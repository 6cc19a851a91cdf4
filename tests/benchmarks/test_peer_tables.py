"""Tables, figures asked for and charts, of rows made by hand."""

import pytest

from benchmarks import charts
from benchmarks.tables import document_tables
from benchmarks.targets import verdicts

CEILING = {"before": 1e12, "after": 1e12, "best": 1e12, "draws": []}


def side(program, precision="bf16", decoder="KL"):
    return {"program": program, "settings": f"as {program} likes it", "precision": precision, "decoder": decoder}


def row(name, theirs, ours=None, asked=None, times=(2.0,) * 9, **more):
    loads = {
        "theirs": {"cold": [{"load": 900.0, "first": 100.0}], "warm": [{"load": 300.0, "first": 100.0}]},
        "ours": {"cold": [{"load": 400.0, "first": 100.0}], "warm": [{"load": 100.0, "first": 60.0}]},
    }
    return {
        "key": {"row": name},
        "theirs": theirs,
        "ours": ours or side("sdturbo"),
        "asked": asked,
        "measured": {},
        "times_ms": {"theirs": list(times), "ours": [1.0] * len(times)},
        "loads_ms": loads,
        "memory_mb": {name: {"peak": 5000.0, "anonymous": 2600.0} for name in ("theirs", "ours")},
        "psnr_db": {"theirs": 40.5, "ours": 48.8},
        "conversion_ms": {"theirs": 84252.0, "ours": None},
        "ceiling": CEILING,
        **more,
    }


def document(*rows, name="seeded"):
    cpu = {"name": "CPU", "count": 2, "features": []}
    return {
        "suite": "peers",
        "name": name,
        "settings": {},
        "rows": list(rows),
        "machine": {"cpu": cpu},
        "finished": "now",
    }


EQUAL = row("genai-bf16", side("GenAI"), asked=1.25)
MIXED = row("genai-bf16-beside-int8", side("GenAI"), side("sdturbo", "int8"), asked=2.1)
TINY = row("tiny-beside-kl", side("GenAI", decoder="tiny"))


def parts(text):
    """The tables of a text, by their first header."""
    return {part.splitlines()[0].split("|")[1].strip(): part for part in text.split("\n\n") if part.startswith("|")}


def test_other_decoders_or_precisions_stand_in_a_table_of_their_own():
    text = document_tables(document(EQUAL, MIXED, TINY))
    first, _, second = text.partition("Pairs of other decoders or precisions")
    assert "genai-bf16`" in first
    assert "beside" not in first
    second = second.split("\n\n")[1]
    assert "bf16 / int8" in second
    assert "tiny / KL" in second
    assert "Pairs of other" not in document_tables(document(EQUAL))


def test_a_ratio_shows_its_interval_and_its_pairs():
    text = document_tables(document(row("a", side("GenAI"), times=[1.0 + i / 10 for i in range(9)])))
    assert [cell.strip() for cell in text.splitlines()[2].split("|")[6:8]] == ["1.40 (1.10–1.70)", "9"]


def test_cold_meets_cold_and_warm_meets_warm():
    loads = parts(document_tables(document(EQUAL)))["load and first picture, ms"].splitlines()[-1]
    assert [cell.strip() for cell in loads.split("|")[2:-1]] == ["1000", "500", "2.00", "400", "160", "2.50", "84252"]


def test_a_load_that_was_not_stored_is_no_figure():
    old = row("old", side("GenAI"))
    for loads in old["loads_ms"].values():
        loads["cold"] = []
    del old["memory_mb"], old["ceiling"]
    text = document_tables(document(old, name="x"))
    assert [cell.strip() for cell in parts(text)["load and first picture, ms"].splitlines()[-1].split("|")[2:5]] == [
        "–"
    ] * 3
    assert "memory, MB" not in parts(text)
    assert "\\* the machine's steadiness was not measured: `old`." in text


def test_a_row_of_an_unsteady_machine_is_marked():
    moved = row("moved", side("GenAI"), ceiling={**CEILING, "after": 8e11})
    slow = row("slow", side("GenAI"), ceiling={**CEILING, "before": 8e11, "after": 8e11, "best": 8e11})
    text = document_tables(document(EQUAL, moved, slow))
    marked = [line.split("`")[1] for line in text.splitlines() if " * |" in line]
    assert marked == ["moved", "slow"]  # the second beside the ceiling of the first
    assert "\\* the ceiling moved by -20 %: `moved`." in text
    assert "\\* the ceiling was at 80 % of this CPU's best: `slow`." in text


def test_a_failed_row_says_why_and_has_no_figures():
    failed = {name: EQUAL[name] for name in ("key", "theirs", "ours", "asked")} | {"error": "no | memory"}
    text = document_tables(document(failed))
    assert "| GenAI (`genai-bf16`): no / memory |" in text
    assert list(verdicts(document(failed))) == []


def test_figures_asked_for_stand_beside_the_measured():
    rows = {verdict.what: (verdict.measured, verdict.holds) for verdict in verdicts(document(EQUAL, MIXED, TINY))}
    assert rows == {
        "`genai-bf16`: their time / ours": (2.0, True),
        "`genai-bf16`: warm ratio of load and first picture": (2.5, True),
        "`genai-bf16`: our anonymous memory, MB": (2600.0, True),
        "`genai-bf16`: our PSNR beyond theirs, dB": (pytest.approx(8.3), True),
        "`genai-bf16-beside-int8`: their time / ours": (2.0, False),
    }
    text = document_tables(document(MIXED))
    assert "| `genai-bf16-beside-int8`: their time / ours |     2.00 |  >= 2.1 |    no |" in text
    assert "asked of" not in document_tables(document(MIXED, name="tiny"))


def test_shares_of_the_ceiling_are_asked_for_too():
    rows = [
        {"key": {"ceiling": "bf16"}, "conv": 100.0, "matmul": 80.0},
        {"key": {"ceiling": "int8"}, "error": "none"},
        {"key": {"backend": "openvino", "precision": "bf16"}, "stages": {"whole": {"flops": 88.0, "seconds": 1.0}}},
        {"key": {"backend": "openvino", "precision": "int8"}, "stages": {"whole": {"flops": 88.0, "seconds": 1.0}}},
    ]
    (verdict,) = verdicts({**document(*rows), "suite": "roofline"})
    assert (verdict.what, verdict.measured, verdict.holds) == ("openvino bf16: share of the ceiling, %", 88.0, True)


def test_settings_of_every_row_are_named():
    assert "GenAI: as GenAI likes it" in parts(document_tables(document(EQUAL)))["row"]


def test_charts_are_pictures_and_the_readmes_has_equal_pairs_alone(tmp_path):
    drawn = charts.draw(document(EQUAL, MIXED, TINY), tmp_path)
    assert [path.name for path in drawn] == ["peers-seeded.png", "peers-seeded-leading.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in drawn)
    assert charts._groups([EQUAL, MIXED, TINY], leading=True) == {"same decoder, same precision": [EQUAL]}
    assert list(charts._groups([EQUAL, MIXED, TINY], leading=False).values()) == [[EQUAL], [MIXED, TINY]]
