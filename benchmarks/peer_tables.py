"""The tables of sdturbo beside other programs. Decoders and precisions are never mixed in the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from benchmarks import steadiness
from benchmarks.markdown import ms, short, table
from benchmarks.ratios import ratio, start_ms
from benchmarks.targets import targets

Row = Mapping[str, Any]
UNSTEADY = "*"
_SIDES = ("theirs", "ours")
_LOADS: tuple[Literal["cold"], Literal["warm"]] = ("cold", "warm")


def peer_tables(document: Row) -> list[str]:
    """Times of equal pairs, times of other pairs, the marks in them, loads, memory, settings, and the figures asked for."""
    rows = document["rows"]
    measured = [row for row in rows if "error" not in row]
    best = max((row["ceiling"]["best"] for row in measured if "ceiling" in row), default=0.0)
    equal = [row for row in rows if is_equal(row)]
    other = [row for row in rows if not is_equal(row)]
    return [
        _times(equal, best),
        f"Pairs of other decoders or precisions, which show what a user gains by changing both:\n\n{_times(other, best)}"
        if other
        else "",
        _marks(measured, best),
        _loads(measured),
        _memory([row for row in measured if "memory_mb" in row]),
        _settings(rows),
        targets(document),
    ]


def is_equal(row: Row) -> bool:
    """Whether both sides have the same decoder and precision."""
    return all(row["theirs"][name] == row["ours"][name] for name in ("decoder", "precision"))


def label(row: Row) -> str:
    """The other program, and the row's name in brackets."""
    return f"{row['theirs']['program']} (`{row['key']['row']}`)"


def _place(row: Row) -> tuple[str, str, bool, float]:
    """By decoder and precision, and in each the closest ratio first."""
    decoder, precision = _tier(row)
    return decoder, precision, "error" in row, 0.0 if "error" in row else ratio(row).median


def _tier(row: Row) -> list[str]:
    theirs, ours = row["theirs"], row["ours"]
    return [
        theirs[name] if theirs[name] == ours[name] else f"{theirs[name]} / {ours[name]}"
        for name in ("decoder", "precision")
    ]


def _times(rows: Sequence[Row], best: float) -> str:
    lines: list[list[str]] = []
    for row in sorted(rows, key=_place):
        if "error" in row:
            lines.append([f"{label(row)}: {short(row['error'])}", *_tier(row), *["–"] * 6])
            continue
        medians = [ms(median(row["times_ms"][side])) for side in _SIDES]
        mark = f" {UNSTEADY}" if steadiness.fault(row, best) else ""
        distances = [_number(row["psnr_db"][side], ".1f") for side in _SIDES]
        pairs = str(len(row["times_ms"]["ours"]))
        lines.append([label(row), *_tier(row), *medians, f"{ratio(row)}{mark}", pairs, *distances])
    header = (
        "their program (row)", "decoder", "precision", "their ms", "our ms", "their time / ours", "pairs", "their PSNR, dB",
        "our PSNR, dB",
    )  # fmt: skip
    return table(header, lines)


def _marks(rows: Sequence[Row], best: float) -> str:
    faults = {row["key"]["row"]: steadiness.fault(row, best) for row in rows}
    by_fault: dict[str, list[str]] = {}
    for name, fault in faults.items():
        if fault:
            by_fault.setdefault(fault, []).append(f"`{name}`")
    return "\n".join(f"\\{UNSTEADY} {fault}: {', '.join(names)}." for fault, names in by_fault.items())


def _loads(rows: Sequence[Row]) -> str:
    lines: list[list[str]] = []
    for row in rows:
        cells: list[str] = []
        for kind in _LOADS:
            theirs, ours = (start_ms(row, side, kind) for side in _SIDES)
            cells += [ms(theirs), ms(ours), f"{theirs / ours:.2f}" if theirs and ours else "–"]
        lines.append([label(row), *cells, ms(row["conversion_ms"]["theirs"])])
    header = (
        "load and first picture, ms", "their cold", "our cold", "cold ratio", "their warm", "our warm", "warm ratio",
        "their conversion",
    )  # fmt: skip
    return table(header, lines) if lines else ""


def _memory(rows: Sequence[Row]) -> str:
    lines = [
        [
            label(row),
            *(_number(row["memory_mb"][side][kind], ".0f") for kind in ("peak", "anonymous") for side in _SIDES),
        ]
        for row in rows
    ]
    return table(("memory, MB", "their peak", "our peak", "their anonymous", "our anonymous"), lines) if lines else ""


def _settings(rows: Sequence[Row]) -> str:
    lines = [
        [f"`{row['key']['row']}`", *(f"{row[side]['program']}: {row[side]['settings']}" for side in _SIDES)]
        for row in rows
    ]
    return table(("row", "their settings", "our settings"), lines)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
