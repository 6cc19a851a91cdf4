"""Stored results as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.markdown import ms, short, table
from benchmarks.peer_tables import peer_tables
from benchmarks.ratios import least_runs
from benchmarks.targets import targets

Row = Mapping[str, Any]


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


def _bench(document: Row) -> list[str]:
    rows = document["rows"]
    full = document["settings"]["threads"]
    base = [
        r for r in rows if (r["key"]["batch_size"], r["key"]["steps"]) == (1, 1) and r["key"]["threads"] == full[-1]
    ]
    # fewer runs have no 95th percentile
    with_p95 = document["settings"]["runs"] >= least_runs(95)
    header = (
        "engine, ms", "median", *(["p95"] if with_p95 else []), "text", "denoiser", "decoder", "outside", "cold load",
        "load", "first", "peak MB", "anonymous MB",
    )  # fmt: skip
    lines = [_bench_line(row, len(header), with_p95=with_p95) for row in base]
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


def _bench_line(row: Row, columns: int, *, with_p95: bool) -> list[str]:
    if "error" in row:
        return [f"{_engine(row)}: {short(row['error'])}", *["–"] * (columns - 1)]
    parts = row["parts_ms"]
    total = parts["total"]
    stages = [parts[name]["median"] if name in parts else None for name in ("text_encoder", "denoiser", "decoder")]
    memory = [f"{row[name]:.0f}" if row[name] else "–" for name in ("peak_memory_mb", "anonymous_memory_mb")]
    times = [total["median"], *([total["p95"]] if with_p95 else []), *stages, parts["outside_engines"]["median"]]
    loads = [row.get("cold_load_ms"), row["load_ms"], row["first_image_ms"]]
    return [_engine(row), *map(ms, [*times, *loads]), *memory]


def _scaling(row: Row) -> list[str]:
    key = row["key"]
    numbers = [str(key["batch_size"]), str(key["threads"]), str(key["steps"])]
    if "error" in row:
        return [f"{_engine(row)}: {short(row['error'])}", *numbers, "–", "–"]
    median = row["parts_ms"]["total"]["median"]
    return [_engine(row), *numbers, ms(median), ms(median / key["batch_size"])]


def _roofline(document: Row) -> list[str]:
    best = {row["key"]["ceiling"]: row for row in document["rows"] if "ceiling" in row["key"]}
    lines = [
        [f"{name}: {short(row['error'])}", "–", "–"]
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
    failed = [[f"{_engine(row)}: {short(row['error'])}", *["–"] * 4] for row in document["rows"]
              if "error" in row and "ceiling" not in row["key"]]  # fmt: skip
    return [
        table(("ceiling, GFLOP/s", "convolution", "matrix product"), lines),
        table(("stage", "GFLOP", "ms", "GFLOP/s", "of the ceiling"), shares + failed),
        targets(document),
    ]


def _quality(document: Row) -> list[str]:
    header = ("engine", "median PSNR dB", "worst PSNR dB", "median SSIM", "worst SSIM")
    figures = (("median_psnr_db", ".1f"), ("worst_psnr_db", ".1f"), ("median_ssim", ".4f"), ("worst_ssim", ".4f"))
    lines = [
        [f"{_engine(row)}: {short(row['error'])}", *["–"] * 4]
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
    "peers": peer_tables,
    "quality": _quality,
    "roofline": _roofline,
}
