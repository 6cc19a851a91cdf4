"""Stored results as tables: Markdown, which reads as well in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [_line(header, widths)]
    lines.append("|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|")
    return "\n".join(lines + [_line(row, widths) for row in rows])


def document_tables(document: Row, *, beside_charts: bool = False) -> str:
    """The tables of one stored run. beside_charts: leave out the scaling, which a chart shows."""
    parts = _TABLES[document["suite"]](document)
    if beside_charts and document["suite"] == "bench":
        parts = parts[:1]
    return "\n\n".join(part for part in parts if part)


def provenance(document: Row) -> str:
    """One sentence with date, machine and versions."""
    cpu = document["machine"]["cpu"]
    packages = document["machine"]["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("onnxruntime", "openvino", "torch") if name in packages
    )
    return (
        f"`{document['name']}`, {document['finished'][:10]}, {cpu['name']}, {cpu['count']} CPUs"
        f" ({', '.join(cpu['features']) or 'no listed instructions'}), sdturbo {document['machine']['sdturbo']}, {versions}."
    )


def ms(value: float | None) -> str:
    """Milliseconds with three digits that count."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bench(document: Row) -> list[str]:
    rows = document["rows"]
    full = document["settings"]["threads"]
    base = [
        r for r in rows if (r["key"]["batch_size"], r["key"]["steps"]) == (1, 1) and r["key"]["threads"] == full[-1]
    ]
    header = (
        "engine, ms", "median", "p95", "text", "denoiser", "decoder", "outside", "cold load", "load", "first", "peak MB",
        "anonymous MB",
    )  # fmt: skip
    lines = [_bench_line(row) for row in base]
    scaling = [row for row in rows if row not in base]
    return [
        table(header, lines) if lines else "",
        table(
            ("scaling", "batch", "threads", "steps", "median ms", "ms per picture"), [_scaling(row) for row in scaling]
        )
        if scaling
        else "",
    ]


def _engine(row: Row) -> str:
    return f"{row['key']['backend']} {row['key']['precision']}"


def _bench_line(row: Row) -> list[str]:
    if "error" in row:
        return [f"{_engine(row)}: {_short(row['error'])}", *["–"] * 11]
    parts = row["parts_ms"]
    total = parts["total"]
    stages = [parts[name]["median"] if name in parts else None for name in ("text_encoder", "denoiser", "decoder")]
    memory = [f"{row[name]:.0f}" if row[name] else "–" for name in ("peak_memory_mb", "anonymous_memory_mb")]
    times = [total["median"], total["p95"], *stages, parts["outside_engines"]["median"]]
    loads = [row.get("cold_load_ms"), row["load_ms"], row["first_image_ms"]]
    return [_engine(row), *map(ms, [*times, *loads]), *memory]


def _scaling(row: Row) -> list[str]:
    key = row["key"]
    numbers = [str(key["batch_size"]), str(key["threads"]), str(key["steps"])]
    if "error" in row:
        return [f"{_engine(row)}: {_short(row['error'])}", *numbers, "–", "–"]
    median = row["parts_ms"]["total"]["median"]
    return [_engine(row), *numbers, ms(median), ms(median / key["batch_size"])]


def _roofline(document: Row) -> list[str]:
    best = {row["key"]["ceiling"]: row for row in document["rows"] if "ceiling" in row["key"]}
    lines = [
        [f"{name}: {_short(row['error'])}", "–", "–"]
        if "error" in row
        else [name, *(f"{row[kind] / 1e9:.0f}" for kind in ("conv", "matmul"))]
        for name, row in best.items()
    ]
    shares: list[list[str]] = []
    for row in document["rows"]:
        for stage, part in row.get("stages", {}).items():
            rate = part["flops"] / part["seconds"]
            top = best.get(row["key"]["precision"], {"error": ""})
            share = "–" if "error" in top else f"{100 * rate / max(top['conv'], top['matmul']):.0f} %"
            numbers = [f"{part['flops'] / 1e9:.0f}", ms(part["seconds"] * 1e3), f"{rate / 1e9:.0f}", share]
            shares.append([f"{_engine(row)}, {stage.replace('_', ' ')}", *numbers])
    failed = [[f"{_engine(row)}: {_short(row['error'])}", *["–"] * 4] for row in document["rows"]
              if "error" in row and "ceiling" not in row["key"]]  # fmt: skip
    return [
        table(("ceiling, GFLOP/s", "convolution", "matrix product"), lines),
        table(("stage", "GFLOP", "ms", "GFLOP/s", "of the ceiling"), shares + failed),
    ]


def _peers(document: Row) -> list[str]:
    lines: list[list[str]] = []
    for row in document["rows"]:
        name = f"{row['key']['peer']} / {_engine(row)}"
        if "error" in row:
            lines.append([f"{name}: {_short(row['error'])}", *["–"] * 7])
            continue
        spread = f"{row['ratio']:.2f} ({min(row['ratios']):.2f}–{max(row['ratios']):.2f})"
        start = row["load_and_first_ms"] / row["our_load_and_first_ms"]
        distances = [f"{row[name]:.1f}" if row[name] is not None else "–" for name in ("psnr", "our_psnr")]
        medians = [ms(row["median_ms"]), ms(row["our_median_ms"])]
        lines.append([name, *medians, spread, f"{start:.2f}", *distances, ms(row.get("prepare_ms"))])
    header = (
        "peer / our engine", "its ms", "our ms", "ratio per pair", "load + first", "its PSNR, dB", "our PSNR, dB",
        "its conversion, ms",
    )  # fmt: skip
    return [table(header, lines)]


def _short(text: str) -> str:
    first = " ".join(text.split()).replace("|", "/")
    return first if len(first) <= 120 else f"{first[:119]}…"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(padded)} |"


def _quality(document: Row) -> list[str]:
    header = ("engine", "median PSNR dB", "worst PSNR dB", "median SSIM", "worst SSIM")
    figures = (("median_psnr_db", ".1f"), ("worst_psnr_db", ".1f"), ("median_ssim", ".4f"), ("worst_ssim", ".4f"))
    lines = [
        [f"{_engine(row)}: {_short(row['error'])}", *["–"] * 4]
        if "error" in row
        else [_engine(row), *(format(row[name], form) for name, form in figures)]
        for row in document["rows"]
    ]
    return [
        f"{len(document['settings']['prompts'])} prompts, num_inference_steps {document['settings']['steps']}",
        table(header, lines),
    ]


_TABLES: dict[str, Callable[[Row], list[str]]] = {
    "bench": _bench,
    "peers": _peers,
    "quality": _quality,
    "roofline": _roofline,
}
