"""Stored results as PNG charts, beside the files they are drawn from. Those of other programs show ratios with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import steadiness
from benchmarks.peer_tables import is_equal
from benchmarks.ratios import ratio

Row = Mapping[str, Any]

STAGES = {
    "text_encoder": "text encoder",
    "denoiser": "denoiser",
    "decoder": "decoder",
    "outside_engines": "outside engines",
}
PRECISIONS = ("fp32", "bf16", "int8")
AXES = ("threads", "batch_size", "steps")
LEADING = "-leading.png"  # of the pairs with equal decoder and precision alone, for the top README


def names(document: Row) -> list[str]:
    """The file names of a run's charts."""
    stem = document_stem(document)
    if document["suite"] == "bench":
        return [f"{stem}-stages.png", f"{stem}-scaling.png"]
    return [f"{stem}.png", f"{stem}{LEADING}"] if document["suite"] == "peers" else []


def document_stem(document: Row) -> str:
    return f"{document['suite']}-{document['name']}".lower().replace("/", "-")


def draw(document: Row, directory: Path) -> list[Path]:
    """Draw a run's charts into `directory`."""
    from matplotlib.figure import Figure

    rows = [row for row in document["rows"] if "error" not in row]
    drawn: list[Path] = []
    for name in names(document) if rows else []:
        figure = Figure(figsize=(8, _height(name, rows)), layout="constrained")
        if name.endswith("-stages.png"):
            _stages(figure, _base(document, rows))
        elif name.endswith("-scaling.png"):
            _scaling(figure, document, rows)
        else:
            _ratios(figure, rows, leading=name.endswith(LEADING))
        figure.suptitle(f"{document['name']} on {document['machine']['cpu']['name']}", fontsize=10)
        figure.savefig(directory / name, dpi=110, metadata={"Software": None})
        drawn.append(directory / name)
    return drawn


def _base(document: Row, rows: Sequence[Row]) -> list[Row]:
    most = document["settings"]["threads"][-1]
    return [
        row for row in rows if row["key"]["threads"] == most and row["key"]["batch_size"] == row["key"]["steps"] == 1
    ]


def _stages(figure: Any, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    labels = [f"{row['key']['backend']} {row['key']['precision']}" for row in rows]
    left = [0.0] * len(rows)
    for name, label in STAGES.items():
        widths = [row["parts_ms"].get(name, {"median": 0.0})["median"] for row in rows]
        axes.barh(labels, widths, left=left, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("median milliseconds per picture, batch 1, 1 step")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(STAGES), fontsize=8)


def _scaling(figure: Any, document: Row, rows: Sequence[Row]) -> None:
    most = document["settings"]["threads"][-1]
    fixed = {"threads": most, "batch_size": 1, "steps": 1}
    varied = [axis for axis in AXES if len({row["key"][axis] for row in rows}) > 1] or list(AXES[:1])
    for axes, axis in zip(figure.subplots(1, len(varied), squeeze=False)[0], varied, strict=True):
        for engine in sorted({(row["key"]["backend"], row["key"]["precision"]) for row in rows}):
            shared = {"backend": engine[0], "precision": engine[1], **fixed}
            del shared[axis]
            line = sorted(
                (row["key"][axis], row["parts_ms"]["total"]["median"] / row["key"]["batch_size"])
                for row in rows
                if shared.items() <= row["key"].items()
            )
            axes.plot(*zip(*line, strict=True), marker="o", label=" ".join(engine)) if line else None
        axes.set_xlabel(axis.replace("_", " "))
        axes.set_ylim(bottom=0)
        axes.set_xticks(sorted({row["key"][axis] for row in rows}))
    figure.axes[0].set_ylabel("ms per picture")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)


def _groups(rows: Sequence[Row], *, leading: bool) -> dict[str, list[Row]]:
    """The rows of each part of the chart, the closest ratio first."""
    ordered = sorted(rows, key=lambda row: ratio(row).median)
    groups = {"same decoder, same precision": [row for row in ordered if is_equal(row)]}
    if not leading:
        groups["other pairs"] = [row for row in ordered if not is_equal(row)]
    return {name: group for name, group in groups.items() if group}


def _height(name: str, rows: Sequence[Row]) -> float:
    """Inches."""
    if name.endswith(("-stages.png", "-scaling.png")):
        return 3.2
    groups = _groups(rows, leading=name.endswith(LEADING))
    return 0.9 + sum(0.6 + 0.3 * len(group) for group in groups.values())


def _ratios(figure: Any, rows: Sequence[Row], *, leading: bool) -> None:
    """A point per row with its interval, on a logarithmic axis. Hollow: the machine was not steady."""
    groups = _groups(rows, leading=leading)
    best = max((row["ceiling"]["best"] for row in rows if "ceiling" in row), default=0.0)
    heights = [0.6 + 0.3 * len(group) for group in groups.values()]
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, group) in zip(panels, groups.items(), strict=True):
        for place, row in enumerate(group):
            interval = ratio(row)
            ends = [[interval.median - interval.low], [interval.high - interval.median]]
            color = f"C{PRECISIONS.index(row['ours']['precision'])}"
            fill = "white" if steadiness.fault(row, best) else color
            axes.errorbar(interval.median, place, xerr=ends, fmt="o", color=color, markerfacecolor=fill, capsize=3)
            axes.annotate(
                f"{interval.median:.2f}", (interval.high, place), (6, -3), textcoords="offset points", fontsize=8
            )
        axes.axvline(1, color="grey", linewidth=1)
        axes.set_yticks(range(len(group)), [_label(row) for row in group], fontsize=8)
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.set_title(title, fontsize=9)
    ends = [end for group in groups.values() for row in group for end in (ratio(row).low, ratio(row).high)]
    least, most = min(1.0, *ends), max(1.0, *ends)
    panels[-1].set_xscale("log")
    panels[-1].set_xlim(least * (least / most) ** 0.05, most * (most / least) ** 0.12)
    panels[-1].set_xticks(ticks := _ticks(least, most), [f"{tick:g}" for tick in ticks])
    panels[-1].minorticks_off()
    figure.supxlabel(
        "its time / sdturbo's: median and 95 % interval. Hollow: the machine was not shown to be steady", fontsize=9
    )


def _label(row: Row) -> str:
    theirs, ours = row["theirs"], row["ours"]
    sides = [f"{side['precision']}{', tiny decoder' if side['decoder'] == 'tiny' else ''}" for side in (theirs, ours)]
    return f"{theirs['program']}, {sides[0]}" if is_equal(row) else f"{theirs['program']}, {sides[0]} / ours {sides[1]}"


def _ticks(least: float, most: float) -> list[float]:
    marks = (
        (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 2.5) if most / least < 3 else (0.5, 1, 1.5, 2, 3, 4, 6, 10, 15, 25)
    )
    return [mark for mark in marks if least <= mark <= most]
