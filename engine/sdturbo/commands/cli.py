"""The command `sdturbo`: generate, walk, info, doctor, bench. Exit codes are those of `sdturbo.errors`, 2 for wrong usage."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdturbo import __version__
from sdturbo.backends import BackendChoice
from sdturbo.commands import console
from sdturbo.commands.bundles import BundleChoice, bundle_options, load_bundle, load_pipeline
from sdturbo.commands.console import (
    FILE,
    SHOW_DEFAULTS,
    drawn_seed,
    json_option,
    print_json,
    seed_or_none,
)
from sdturbo.commands.options import backend_options, credentials_option, metadata_option, open_marks, size_option
from sdturbo.errors import InvalidRequest

if TYPE_CHECKING:
    from sdturbo.bundle.description import Size


@click.group(
    context_settings=SHOW_DEFAULTS,
    epilog="Examples:\n\n  sdturbo generate 'a red cat in the snow'\n\n"
    "  sdturbo generate 'a photo of a cat' --bundle build/sd-turbo\n\n  sdturbo doctor",
)
@click.version_option(__version__)
def cli() -> None:
    """Draw pictures with a compiled bundle of SD-Turbo."""


@cli.command(
    epilog="Examples:\n\n  sdturbo generate 'a red fox in snow' --seed 7 --steps 2 --out fox.png\n\n"
    "  sdturbo generate 'a watercolour' --image photo.jpg --strength 0.5 --steps 2 --count 4\n\n"
    "  sdturbo generate 'a blue cat' --image photo.png --mask mask.png --steps 4\n\n"
    "  sdturbo generate --prompts prompts.txt --out pictures/p.webp\n\n"
    "  sdturbo generate 'a red cat' --out - > cat.png"
)
@click.argument("prompt", required=False)
@click.option("--prompts", type=FILE, help="A text file with a prompt per line, or - for standard input.")
@bundle_options
@click.option(
    "--out",
    type=FILE,
    default="image.png",
    help="PNG, JPEG or WebP to write, by its suffix. With several pictures, a number is added: image-0.png. - is standard"
    " output.",
)
@click.option("--steps", type=int, default=1, help="num_inference_steps, 1 to 4.")
@click.option(
    "--seed",
    default="0",
    metavar="INTEGER|random",
    callback=seed_or_none,
    help="Seed of the first image, or `random`. Image i of a prompt takes seed + i.",
)
@click.option("--count", type=int, default=1, help="Number of images per prompt.")
@click.option("--image", type=FILE, help="Picture to start from (image-to-image).")
@click.option(
    "--mask",
    type=FILE,
    help="Picture whose white or transparent part is drawn anew (inpainting). The rest of --image stays as it is.",
)
@click.option(
    "--strength",
    type=float,
    help="How much of --image is drawn anew, up to 1. Default: 0.5, or 1 with one step or --mask.",
)
@metadata_option
@credentials_option
@size_option
@backend_options
@json_option
def generate(
    prompt: str | None,
    prompts: Path | None,
    bundle: BundleChoice,
    out: Path,
    steps: int,
    seed: int | None,
    count: int,
    image: Path | None,
    mask: Path | None,
    strength: float | None,
    metadata: bool,
    content_credentials: tuple[Path, Path] | None,
    size: Size | tuple[None, None],
    choice: BackendChoice,
    as_json: bool,
) -> None:
    """Draw a prompt as files.

    Each file carries prompt, seed, steps and bundle id, and the mark that a model drew it.
    """
    from sdturbo.commands.generate import STANDARD, check_out, entry, prompts_of, report, write
    from sdturbo.image import read_image
    from sdturbo.request import check_count, check_seeds

    check_count(count, "--count")
    seeds = check_seeds(seed, count)
    texts = prompts_of(prompt, prompts)
    pictures = count * len(texts)
    check_out(out, pictures)
    if as_json and out == STANDARD:
        raise InvalidRequest("Got --json and --out -. Both write to standard output. Name a file.")
    if mask is not None and image is None:
        raise InvalidRequest("Got --mask without --image. A mask says which part of an image is drawn anew.")
    credentials = open_marks(metadata, content_credentials)
    start, mask_image = (None if file is None else read_image(file) for file in (image, mask))
    pipe = load_pipeline(bundle, choice, image_to_image=start is not None)
    written: list[dict[str, Any]] = []
    with _bar(pictures, "images", as_json or pictures == 1) as tick:
        for text in texts:
            for i in range(count):
                result = pipe(
                    text,
                    start,
                    mask_image=mask_image,
                    strength=strength,
                    height=size[0],
                    width=size[1],
                    num_inference_steps=steps,
                    seed=seeds[i],
                )
                (picture,) = result.images
                path = write(picture, out, len(written), pictures, metadata=metadata, credentials=credentials)
                written.append(entry(path, text, result))
                tick()
    report(pipe, written, as_json=as_json, to_error=out == STANDARD)


@cli.command(
    epilog="Examples:\n\n  sdturbo walk 'a red cat' 'a blue boat' --seed 1 --to-seed 2 --frames 24 --out frames/\n\n"
    "  sdturbo walk 'a red cat' 'a red cat' --seed 1 --to-seed 2"
)
@click.argument("prompt")
@click.argument("to_prompt")
@bundle_options
@click.option("--out", type=FILE, default="frames", help="Directory for the frames: 0000.png, 0001.png and so on.")
@click.option("--frames", type=int, default=24, help="Number of pictures, 2 or more.")
@click.option("--steps", type=int, default=1, help="num_inference_steps, 1 to 4.")
@click.option(
    "--seed", default="0", metavar="INTEGER|random", callback=seed_or_none, help="Seed of the first frame, or `random`."
)
@click.option(
    "--to-seed",
    metavar="INTEGER|random",
    callback=drawn_seed,
    help="Seed of the last frame, or `random`. Default: that of the first.",
)
@metadata_option
@credentials_option
@size_option
@backend_options
@json_option
def walk(
    prompt: str,
    to_prompt: str,
    bundle: BundleChoice,
    out: Path,
    frames: int,
    steps: int,
    seed: int | None,
    to_seed: int | None,
    metadata: bool,
    content_credentials: tuple[Path, Path] | None,
    size: Size | tuple[None, None],
    choice: BackendChoice,
    as_json: bool,
) -> None:
    """Draw the pictures between two prompts.

    The first and the last frame are those of `generate`. Between them, meaning and noise change evenly.
    """
    from sdturbo.blend import check_frames
    from sdturbo.commands.walk import check_directory, draw, report
    from sdturbo.request import check_seeds

    check_frames(frames)
    (first_seed,) = check_seeds(seed, 1)
    (last_seed,) = check_seeds(first_seed if to_seed is None else to_seed, 1)
    check_directory(out)
    credentials = open_marks(metadata, content_credentials)
    pipe = load_pipeline(bundle, choice, image_to_image=False)
    start, end = (prompt, first_seed), (to_prompt, last_seed)
    written: list[dict[str, Any]] = []
    with _bar(frames, "frames", as_json) as tick:
        options = {"num_inference_steps": steps, "height": size[0], "width": size[1]}
        for frame in draw(pipe, start, end, frames, out, metadata=metadata, credentials=credentials, **options):
            written.append(frame)
            tick()
    report(pipe, written, (first_seed, last_seed), as_json=as_json)


@cli.command(epilog="Example:\n\n  sdturbo info --bundle build/sd-turbo --json")
@bundle_options
@json_option
def info(bundle: BundleChoice, as_json: bool) -> None:
    """Validate a bundle, hashes included, and describe it."""
    loaded = load_bundle(bundle)
    size = sum(size for _, size in loaded.files.values())
    document = {
        "path": str(loaded.path),
        "bundle_id": loaded.bundle_id,
        "model": dict(loaded.model),
        "decoder": loaded.decoder,
        "precision": loaded.precision,
        "weight_format": loaded.weight_format,
        "sizes": [f"{width}x{height}" for height, width in loaded.sizes],
        "batch_sizes": list(loaded.batch_sizes),
        "bytes": size,
        "parity": dict(loaded.parity),
        "quality": dict(loaded.quality),
    }
    if as_json:
        print_json(document)
        return
    loras = ", ".join(f"{lora['file']} x {lora['scale']:g}" for lora in loaded.model.get("loras", []))
    click.echo(f"{loaded.path}: bundle {loaded.bundle_id}, whole and unaltered")
    click.echo(
        f"model      {loaded.model.get('name')} from {loaded.model.get('source')}{f' with {loras}' if loras else ''}"
    )
    click.echo(f"decoder    {loaded.decoder}")
    sizes = ", ".join(f"{width}x{height}" for height, width in loaded.sizes)
    click.echo(f"pictures   {sizes}, batch sizes {', '.join(map(str, loaded.batch_sizes))}")
    rounded = f", weights stored in {loaded.weight_format}" if loaded.weight_format != "fp32" else ""
    click.echo(f"precision  {loaded.precision}{rounded}, {size / 1e6:.0f} MB in {len(loaded.files)} files")
    for name, parity in loaded.parity.items():
        click.echo(
            f"parity     {name}: relative L2 {parity['relative_l2']:.1e} to PyTorch (bound {parity['bound']:.0e})"
        )
    if quality := loaded.quality:
        verdict = "" if quality["passed"] else ". BELOW ITS GATE, built with --allow-low-quality"
        click.echo(
            f"quality    median {quality['median_psnr_db']:.1f} dB (worst {quality['worst_psnr_db']:.1f}), SSIM"
            f" {quality['median_ssim']:.3f} (worst {quality['worst_ssim']:.3f}) to fp32 over {quality['prompts']} prompts"
            f" (gate {quality['min_psnr_db']:.0f} dB){verdict}"
        )


@cli.command(epilog="Example:\n\n  sdturbo doctor")
@json_option
def doctor(as_json: bool) -> int:
    """List what runs on this machine.

    Reasons stand beside what does not run. Exit code 4 if nothing runs.
    """
    from sdturbo.commands.doctor import report

    machine = report()
    status = 0 if any(backend["runs"] for backend in machine["backends"].values()) else 4
    if as_json:
        print_json(machine)
        return status
    cpu = machine["cpu"]
    click.echo(f"sdturbo {machine['sdturbo']}, Python {machine['python']}, {machine['platform']}")
    click.echo(f"{cpu['name']}, {cpu['count']} CPUs, {' '.join(cpu['features'])}, {machine['memory_gb']} GB of memory")
    click.echo("packages: " + ", ".join(f"{name} {v or 'absent'}" for name, v in machine["packages"].items()))
    for name, backend in machine["backends"].items():
        for device, precisions in backend.get("devices", {}).items():
            for precision, verdict in precisions.items():
                click.echo(f"{name} {device} {precision}: {verdict}")
        if "reason" in backend:
            click.echo(f"{name}: {backend['reason']}")
    click.echo("A bundle is built in fp32, fp16 or int8 and runs in that. bf16 is computed from a bundle in fp32.")
    return status


@cli.command(epilog="Example:\n\n  sdturbo bench --bundle build/sd-turbo --runs 20 --backend onnxruntime")
@bundle_options
@click.option("--runs", type=click.IntRange(1), default=10, help="Pictures to time.")
@click.option("--steps", type=click.IntRange(1, 4), default=1, help="num_inference_steps.")
@click.option("--throughput", is_flag=True, help="Also pictures per second, called one by one and streamed.")
@backend_options
@json_option
def bench(bundle: BundleChoice, runs: int, steps: int, throughput: bool, choice: BackendChoice, as_json: bool) -> None:
    """Time whole requests and their parts on this machine."""
    from sdturbo.commands.bench import measure

    load = functools.partial(load_pipeline, bundle, choice, image_to_image=False)
    with _bar((3 if throughput else 1) * runs + 1, "pictures", as_json) as tick:
        figures = measure(load, runs=runs, num_inference_steps=steps, throughput=throughput, tick=tick)
    if not as_json:
        connected = f"{figures['backend']} {figures['backend_version']}, {figures['precision']}"
        click.echo(f"{figures['model']} with {figures['decoder']} on {connected}")
        click.echo(f"load {figures['load_ms']:.0f} ms, first picture {figures['first_image_ms']:.0f} ms")
        for name, part in figures["parts_ms"].items():
            click.echo(f"{name:>16}  median {part['median']:9.2f} ms  p95 {part['p95']:9.2f} ms")
        for name, rate in figures.get("pictures_per_second", {}).items():
            click.echo(f"{name:>16}  {rate:9.2f} pictures/s")
    print_json(figures)


@contextmanager
def _bar(length: int, label: str, hidden: bool) -> Generator[Callable[[], None]]:
    """A progress bar on standard error. Gives a function that moves it by one."""
    if hidden:
        yield lambda: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def main() -> None:
    """Entry point of the command `sdturbo`."""
    console.main(cli, "sdturbo")
