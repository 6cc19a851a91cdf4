"""The command `sdturbo-export`: build, checkpoint, optimum, verify, trt, push. Only commands that need torch load it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdturbo import __version__
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import WEIGHT_FORMATS, parse_size
from sdturbo.bundle.hub_errors import disable_telemetry
from sdturbo.bundle.plans import HARDWARE, LIBRARIES
from sdturbo.commands import console
from sdturbo.commands.console import FILE, SHOW_DEFAULTS, UserPath, json_option, print_json, require_libraries
from sdturbo.errors import InvalidRequest, OutputError
from sdturbo_export.errors import listed
from sdturbo_export.options import PRECISIONS, BuildOptions
from sdturbo_export.rewrites import rewrite_names

if TYPE_CHECKING:
    from sdturbo_export.weights.checkpoint import Checkpoint

MODEL_HELP = (
    "tiny, small, seeded (full size), small:SEED, seeded:SEED, the directory of a checkpoint, a safetensors file in the"
    " layout of latent diffusion (as from Civitai), or a Hub id."
)

model_option = click.option("--model", required=True, help=MODEL_HELP)
new_directory_option = click.option("--out", required=True, type=FILE, help="New directory to write.")
revision_option = click.option("--revision", help="Commit of a Hub id. stabilityai/sd-turbo has a default.")
variant_option = click.option(
    "--variant",
    callback=lambda _context, _option, name: "" if name == "none" else name,
    help="Variant of the weight files, such as fp16, or none. Default: fp16 first from the Hub, none first elsewhere.",
)
license_option = click.option(
    "--accept-license", is_flag=True, help="Accept the licence of weights that are downloaded."
)
lora_option = click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="FILE[:SCALE]",
    help="LoRA to fuse: a safetensors file, or PEFT's directory. Repeatable.",
)
decoder_option = click.option(
    "--decoder",
    type=FILE,
    help="AutoencoderTiny (TAESD) that takes the place of the checkpoint's autoencoder: a directory or a file.",
)
without_option = click.option(
    "--without", multiple=True, type=click.Choice(rewrite_names()), help="Leave out a rewrite. Repeatable."
)
workspace_option = click.option(
    "--workspace",
    type=UserPath(path_type=Path, file_okay=False),
    default=Path("build"),
    help="Directory that keeps generated checkpoints and finished stages.",
)


@click.group(
    context_settings=SHOW_DEFAULTS,
    epilog="Examples:\n\n  sdturbo-export build --model tiny --out build/tiny\n\n"
    "  sdturbo-export verify build/tiny --model tiny",
)
@click.version_option(__version__)
def cli() -> None:
    """Make a bundle from a checkpoint, and prove that both draw the same."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    disable_telemetry()


@cli.command(
    epilog="Examples:\n\n  sdturbo-export build --model seeded --out build/seeded\n\n"
    "  sdturbo-export build --model stabilityai/sd-turbo --accept-license --out build/sd-turbo\n\n"
    "  sdturbo-export build --model ./my-checkpoint --precision int8 --calibration prompts.txt --out build/int8\n\n"
    "  sdturbo-export build --model ./my-checkpoint --lora style.safetensors:0.8 --batch-size 1 --batch-size 4 --out b"
)
@model_option
@click.option("--out", required=True, type=FILE, help="Bundle directory to write.")
@click.option("--name", help="The model's name in the bundle. Default: that of the directory, file or repository.")
@revision_option
@variant_option
@license_option
@lora_option
@decoder_option
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=int,
    default=[1],
    help="Batch size to make graphs for. Repeatable.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    default=["512x512"],
    callback=lambda _context, _option, texts: tuple(map(parse_size, texts)),
    help="Width x height of the pictures. Repeatable, the first is the default. SD-Turbo was trained for 512x512.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    help="Of the graphs. fp16 is for NVIDIA GPUs. int8 is for CPUs, and is refused if the pictures suffer.",
)
@click.option(
    "--weight-format",
    type=click.Choice(WEIGHT_FORMATS),
    default="fp32",
    help="fp16 stores 2 bytes per weight instead of 4. The arithmetic stays fp32 or bf16.",
)
@click.option(
    "--calibration",
    type=FILE,
    help="For int8: a text file with one prompt per line, typical for the model. Default: a built-in list.",
)
@click.option(
    "--allow-low-quality", is_flag=True, help="For int8: write the bundle even if its pictures are below the limit."
)
@without_option
@workspace_option
@json_option
def build(model: str, out: Path, workspace: Path, as_json: bool, **options: Any) -> None:
    """Export a model to a bundle of four ONNX graphs. Each graph is compared with PyTorch before the bundle appears."""
    _require_torch("build")
    from sdturbo_export.build import build as build_bundle

    ask = (lambda question: click.confirm(question, err=True)) if sys.stdin.isatty() and not as_json else None
    source = {name: options.pop(name) for name in ("loras", "revision", "variant", "name", "accept_license", "decoder")}
    checkpoint = _resolve(model, workspace, ask=ask, **source)
    bundle = build_bundle(checkpoint, out, BuildOptions(**options), store=workspace / "stages", say=_say)
    document = {"path": str(out), "bundle_id": bundle.bundle_id, "parity": dict(bundle.parity)}
    _print(as_json, document, f"{out}: bundle {bundle.bundle_id}")


@cli.command(
    epilog="Examples:\n\n  sdturbo-export checkpoint seeded --out ./seeded --fp16\n\n"
    "  sdturbo-export checkpoint taesd --out ./taesd"
)
@click.argument("kind", type=click.Choice(["small", "seeded", "taesd"]))
@new_directory_option
@click.option("--seed", type=click.IntRange(0), default=0, help="Another seed gives other weights.")
@click.option("--fp16", is_flag=True, help="Write the fp16 variant.")
@json_option
def checkpoint(kind: str, out: Path, seed: int, fp16: bool, as_json: bool) -> None:
    """Write a checkpoint with pseudo-random weights in the Hub's layout: small, or seeded in SD-Turbo's size.

    taesd is a decoder in TAESD's size, for `build --decoder`.
    """
    _require_torch("checkpoint")
    from sdturbo_export.weights.seeded import write_seeded, write_seeded_taesd

    if out.exists():
        raise InvalidRequest(f"{out} exists. Expected the name of a new directory.")
    if kind == "taesd":
        write_seeded_taesd(out, seed=seed, fp16=fp16)
    else:
        write_seeded(out, seed=seed, small=kind == "small", fp16=fp16)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    _print(as_json, {"path": str(out), "bytes": size}, f"{out}: {size / 1e6:.0f} MB")


@cli.command(epilog="Example:\n\n  sdturbo-export optimum --model seeded --out build/seeded-optimum")
@model_option
@new_directory_option
@revision_option
@variant_option
@license_option
@without_option
@workspace_option
@json_option
def optimum(model: str, out: Path, without: Sequence[str], workspace: Path, as_json: bool, **source: Any) -> None:
    """Write a model as a directory that ORTStableDiffusionPipeline of optimum-onnx loads."""
    _require_torch("optimum")
    from sdturbo_export.publish.optimum import write_optimum

    checkpoint = _resolve(model, workspace, **source)
    write_optimum(checkpoint, out, without=without, say=_say)
    _print(as_json, {"path": str(out)}, str(out))


@cli.command(
    epilog="Examples:\n\n  sdturbo-export verify build/tiny\n\n  sdturbo-export verify build/tiny --model tiny --json"
)
@click.argument("bundle", type=FILE)
@click.option("--model", help=f"Compare with PyTorch: the checkpoint the bundle was made from. {MODEL_HELP}")
@revision_option
@variant_option
@lora_option
@decoder_option
@workspace_option
@json_option
def verify(bundle: Path, model: str | None, workspace: Path, as_json: bool, **source: Any) -> int:
    """Check a bundle again: hashes, the golden picture on every backend, and with --model each stage against PyTorch.

    LoRAs and decoder are those that the bundle was made with.
    """
    if model is None and any(value not in (None, ()) for value in source.values()):
        raise InvalidRequest(
            "Got --lora, --decoder, --revision or --variant without --model. They belong to its weights."
        )
    loaded = Bundle.load(bundle)
    checkpoint = None
    if model is not None:
        _require_torch("verify --model")
        checkpoint = _resolve(model, workspace, **source)
    from sdturbo_export.verify import verify_bundle

    lines: list[dict[str, Any]] = []
    for line in verify_bundle(loaded, checkpoint):
        lines.append(line)
        if not as_json:
            click.echo(f"{'ok  ' if line['ok'] else 'FAIL'}  {line['what']}: {line['found']}  ({line['expected']})")
    passed = all(line["ok"] for line in lines)
    if as_json:
        print_json({"bundle_id": loaded.bundle_id, "ok": passed, "checks": lines})
    elif checkpoint is None:
        click.echo("Not compared with PyTorch: pass --model with the checkpoint the bundle was made from.")
    return 0 if passed else OutputError.exit_code


@cli.command(
    epilog="Examples:\n\n  sdturbo-export trt build/seeded\n\n"
    "  sdturbo-export trt build/seeded --device cuda:1 --hardware ampere_plus --version-compatible\n\n"
    "  sdturbo-export trt build/seeded --library tensorrt-rtx --capability 8.9 --capability 12.0"
)
@click.argument("bundle", type=FILE)
@click.option(
    "--library",
    "library_name",
    type=click.Choice(LIBRARIES),
    help="tensorrt compiles for this machine's GPU, and on it. tensorrt-rtx compiles for all RTX cards and needs no GPU."
    " Default: the one that is installed, tensorrt if both are.",
)
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    help="With tensorrt-rtx: compute capability of the cards to compile for, such as 8.9. Repeatable. Default: all that the"
    " library lists.",
)
@click.option("--device", show_default="cuda:0", help="GPU to compile for, and on. Not with tensorrt-rtx.")
@click.option(
    "--workspace-gb",
    type=click.FloatRange(0.25),
    help="GPU memory per layer in GiB. Default: all that is free, at most 4, and 1 with tensorrt-rtx.",
)
@click.option("--optimization-level", type=click.IntRange(0, 5), default=4, help="Of TensorRT's builder.")
@click.option(
    "--tries",
    type=click.IntRange(1),
    show_default="2",
    help="Builds per graph. The fastest right one is kept. Not with tensorrt-rtx.",
)
@click.option(
    "--hardware",
    type=click.Choice(HARDWARE),
    default="none",
    help="Other GPUs that the plans may run on. Such plans are slower. Not with tensorrt-rtx.",
)
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Make plans that later versions of this TensorRT run too. They are slower. Not with tensorrt-rtx.",
)
@workspace_option
@json_option
def trt(bundle: Path, library_name: str | None, workspace: Path, as_json: bool, **given: Any) -> None:
    """Compile BUNDLE's graphs to TensorRT plans and put them into the bundle. Takes minutes.

    They are for this machine's GPU, or with TensorRT for RTX for RTX cards of any machine.
    """
    from sdturbo.bundle.plans import read_plans
    from sdturbo_export.tensorrt.command import add_plans_of

    compiled, line = add_plans_of(
        Bundle.load(bundle), library_name, given, timing_caches=workspace / "tensorrt", say=_say
    )
    plans = read_plans(compiled)
    document = {"path": str(bundle), "bundle_id": compiled.bundle_id, "plans": [plan.to_json() for plan in plans]}
    _print(as_json, document, f"{bundle}: bundle {compiled.bundle_id}, {len(plans)} plans{line}")


@cli.command(
    epilog="Examples:\n\n  sdturbo-export push build/sd-turbo me/sd-turbo-onnx --private\n\n"
    "  sdturbo-export push build/int8 me/sd-turbo-onnx --revision int8 --message 'int8 for CPUs'"
)
@click.argument("bundle", type=FILE)
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private if it is new. A public one is refused.")
@click.option("--revision", "branch", show_default="main", help="Branch to push to. It is made if it is missing.")
@click.option("--message", help="Of the commit. Default: the bundle's id.")
@json_option
def push(bundle: Path, repository: str, private: bool, branch: str | None, message: str | None, as_json: bool) -> None:
    """Push BUNDLE to the Hugging Face Hub as one commit, its licence, notice and a model card with it.

    Every hash is checked first. The token is that of `hf auth login`, or HF_TOKEN. Prints the commit to load.
    """
    from sdturbo_export.publish.hub import push as push_bundle
    from sdturbo_export.publish.hub import unlisted

    loaded = Bundle.load(bundle)
    if others := unlisted(loaded):
        _say(f"not pushed, because the bundle does not list them: {listed(others)}")
    pushed = push_bundle(loaded, repository, private=private, branch=branch, message=message, say=_say)
    document = {"url": pushed.url, "repository": pushed.repo_id, "revision": pushed.commit, "files": pushed.files}
    _print(as_json, document, f'{pushed.url}\nPipeline.load("{pushed.repo_id}", revision="{pushed.commit}")')


def _resolve(model: str, workspace: Path, loras: Sequence[str] = (), **source: Any) -> Checkpoint:
    """The checkpoint `model`. loras: as on the command line. source: more of the arguments of `resolve`."""
    from sdturbo_export.weights.lora_files import parse_lora
    from sdturbo_export.weights.resolve import resolve

    return resolve(model, workspace / "checkpoints", loras=[parse_lora(text) for text in loras], **source)


def _require_torch(command: str) -> None:
    require_libraries(f"sdturbo-export {command}", ("torch", "diffusers", "transformers", "onnx"), "export")


def _print(as_json: bool, document: dict[str, Any], line: str) -> None:
    """One of both forms of a command's result."""
    print_json(document) if as_json else click.echo(line)


def _say(line: str) -> None:
    """A line of progress."""
    click.echo(line, err=True)


def main() -> None:
    """Entry point of the command `sdturbo-export`."""
    console.main(cli, "sdturbo-export")
