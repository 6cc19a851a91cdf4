"""The figures that a full-size model is asked to reach on a quiet CPU, beside those that were measured. No test asks them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import table
from benchmarks.ratios import ratio, start_ms
from benchmarks.verdicts import Verdict

FULL_SIZE = ("seeded", "seeded-int8", "sd-turbo", "sd-turbo-int8")  # names of stored runs
WARM_START = 2.0  # load and first picture of OpenVINO GenAI per ours, both warm
MEMORY_MB = 2600.0  # anonymous, of our bf16
SHARES = {"bf16": 87.0, "int8": 80.0}  # percent of the ceiling, of the whole picture on OpenVINO
LEADING = "genai-bf16"  # the row whose loads, memory and pictures are asked for

Row = Mapping[str, Any]


def targets(document: Row) -> str:
    """A table of the figures asked for in this run, empty for a small model or without a figure."""
    lines = [
        [verdict.what, f"{verdict.measured:.2f}", f"{verdict.sign} {verdict.limit:g}", "yes" if verdict.holds else "no"]
        for verdict in (verdicts(document) if document["name"] in FULL_SIZE else ())
    ]
    return table(("asked of the full size", "measured", "must be", "holds"), lines) if lines else ""


def verdicts(document: Row) -> Iterator[Verdict]:
    """The document's measured figures, each with its limit."""
    rows = [row for row in document["rows"] if "error" not in row]
    yield from (_peers if document["suite"] == "peers" else _roofline)(rows)


def _peers(rows: list[Row]) -> Iterator[Verdict]:
    for row in rows:
        name = row["key"]["row"]
        if row["asked"] is not None:
            yield Verdict(f"`{name}`: their time / ours", ratio(row).median, ">=", row["asked"])
        if name == LEADING:
            yield from _leading(f"`{name}`", row)


def _leading(name: str, row: Row) -> Iterator[Verdict]:
    theirs, ours = start_ms(row, "theirs", "warm"), start_ms(row, "ours", "warm")
    if theirs and ours:
        yield Verdict(f"{name}: warm ratio of load and first picture", theirs / ours, ">=", WARM_START)
    if (anonymous := row["memory_mb"]["ours"]["anonymous"]) is not None:
        yield Verdict(f"{name}: our anonymous memory, MB", anonymous, "<=", MEMORY_MB)
    distances = row["psnr_db"]
    if None not in distances.values():
        yield Verdict(f"{name}: our PSNR beyond theirs, dB", distances["ours"] - distances["theirs"], ">=", 0.0)


def _roofline(rows: list[Row]) -> Iterator[Verdict]:
    ceilings = {row["key"]["ceiling"]: max(row["conv"], row["matmul"]) for row in rows if "ceiling" in row["key"]}
    for row in rows:
        key, precision = row["key"], row["key"].get("precision")
        if key.get("backend") == "openvino" and precision in SHARES and precision in ceilings:
            whole = row["stages"]["whole"]
            share = 100 * whole["flops"] / whole["seconds"] / ceilings[precision]
            yield Verdict(f"openvino {precision}: share of the ceiling, %", share, ">=", SHARES[precision])
