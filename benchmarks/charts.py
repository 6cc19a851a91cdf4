"""Stored results as PNG charts, beside the files they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

STAGES = {
    "text_encoder": "text encoder",
    "denoiser": "denoiser",
    "decoder": "decoder",
    "outside_engines": "outside engines",
}
AXES = ("threads", "batch_size", "steps")


def names(document: Row) -> list[str]:
    """The file names of a run's charts."""
    stem = document_stem(document)
    if document["suite"] == "bench":
        return [f"{stem}-stages.png", f"{stem}-scaling.png"]
    return [f"{stem}.png"] if document["suite"] == "peers" else []


def document_stem(document: Row) -> str:
    return f"{document['suite']}-{document['name']}".lower().replace("/", "-")


def draw(document: Row, directory: Path) -> list[Path]:
    """Draw a run's charts into `directory`."""
    from matplotlib.figure import Figure

    rows = [row for row in document["rows"] if "error" not in row]
    drawn: list[Path] = []
    for name in names(document) if rows else []:
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        if name.endswith("-stages.png"):
            _stages(figure, _base(document, rows))
        elif name.endswith("-scaling.png"):
            _scaling(figure, document, rows)
        else:
            _peers(figure, rows)
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


def _peers(figure: Any, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    labels = [f"{row['key']['peer']} / {row['key']['backend']} {row['key']['precision']}" for row in rows]
    places = range(len(rows))
    axes.barh([i - 0.2 for i in places], [row["median_ms"] for row in rows], height=0.4, label="peer")
    axes.barh(
        [i + 0.2 for i in places], [row["our_median_ms"] for row in rows], height=0.4, label="sdturbo, in turn with it"
    )
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_xlabel("median milliseconds per picture")
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
