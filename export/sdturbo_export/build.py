"""From a model's name to a published bundle: resolve, export each stage, measure parity, assemble, rename."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sdturbo import backends
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import MANIFEST, WEIGHT_FORMATS
from sdturbo.errors import InvalidRequest
from sdturbo.files import sha256_file
from sdturbo.tokenizer import PromptTokenizer
from sdturbo_export import stage_store
from sdturbo_export.bundle_writer import write_bundle
from sdturbo_export.errors import BuildError, ParityError
from sdturbo_export.exchange import exchange, partial_name, unfinished, waiting_name
from sdturbo_export.int8.prompts import Prompts, prompts_for
from sdturbo_export.int8.recipe import Int8Build
from sdturbo_export.progress import Progress
from sdturbo_export.proof.distance import bound, relative_l2
from sdturbo_export.proof.golden import GOLDEN, digest, golden_inputs, golden_walk
from sdturbo_export.proof.parity import engine_output, golden_output, half_output, stage_parity, torch_output
from sdturbo_export.proof.walk import Walk
from sdturbo_export.rewrites import rewrites_of
from sdturbo_export.stage_store import StoredStage
from sdturbo_export.stage_store.graphs import write_graphs
from sdturbo_export.stages import PLANS, StagePlan
from sdturbo_export.tensorrt.plan_writer import keep_plans, locked
from sdturbo_export.weights.checkpoint import Checkpoint
from sdturbo_export.weights.tokenizer_files import tokenizer_json

PRECISIONS = ("fp32", "fp16", "int8")
_PARTS = [
    ("hash the weights", 4),
    ("text_encoder", 12),
    ("denoiser", 55),
    ("decoder", 35),
    ("encoder", 20),
    ("bundle", 4),
]


def build(
    checkpoint: Checkpoint,
    out: Path,
    *,
    batch_sizes: Sequence[int] = (1,),
    precision: str = "fp32",
    weight_format: str = "fp32",
    without: Collection[str] = (),
    calibration: Path | None = None,
    allow_low_quality: bool = False,
    store: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export `checkpoint` to the bundle directory `out` and return it; an older bundle there is replaced at the end.

    batch_sizes: static batch sizes to hold. precision: of the graphs, "fp32", "fp16" (NVIDIA GPUs) or "int8" (denoiser and
    decoder of CPUs: see `int8`, which `calibration`, a file of prompts, and `allow_low_quality` are for).
    weight_format: how float32 graphs store their weights, "fp32" or "fp16": rounded to it, half the bytes, the arithmetic
    stays float32 or bfloat16. What float16 holds exactly is stored in it either way.
    without: names of rewrites to leave out.
    store: where finished stages are noted for the next build, by default `.stages` beside `out`. say: takes lines of
    progress.
    A stage whose inputs did not change is taken from the store, and TensorRT plans in `out` whose graph did not change are
    kept. Whatever stops the build, and whenever, `out` is the new bundle or the old one (but see `exchange` for odd file
    systems: there the next build puts the old one back).
    Raises ParityError, QualityError, BuildError (disk, permissions), CheckpointError, InvalidRequest.
    """
    _check(batch_sizes, precision, weight_format)
    prompts = _int8_prompts(checkpoint, batch_sizes, calibration) if precision == "int8" else None
    if prompts is None and (calibration is not None or allow_low_quality):
        raise InvalidRequest(
            f"Got calibration prompts or allow_low_quality with {precision}; they are for precision int8."
        )
    exported = "fp32" if prompts else precision
    rewrites = {plan.name: rewrites_of(plan.name, exported, without) for plan in PLANS}
    batch_sizes = sorted(set(batch_sizes))
    out = out.resolve()
    store = (store or out.parent / ".stages").resolve()
    _require_replaceable(out)
    progress = Progress([*_PARTS, ("int8", 100)] if prompts else _PARTS, say)
    with _plain_disk_errors(out), _lock(store):
        _clear_remains(store, out)
        with progress.part("hash the weights"):
            hashes = checkpoint.hashes() | {str(lora.path): sha256_file(lora.path) for lora in checkpoint.loras}
        golden = golden_walk(checkpoint, _tokenizer(checkpoint)(GOLDEN.prompt).input_ids, batch_sizes[0])
        stages: dict[str, StoredStage] = {}
        for plan in PLANS:
            with progress.part(plan.name):
                key = stage_store.stage_key(
                    plan, checkpoint, hashes, batch_sizes, exported, rewrites[plan.name], weight_format
                )
                found = stage_store.find(store, key)
                stages[plan.name] = found or _export_stage(
                    plan, checkpoint, batch_sizes, exported, weight_format, without, golden, store, key
                )
                golden.outputs[plan.name] = golden_output(plan, checkpoint, stages[plan.name], exported, golden)
                origin = "not changed, reused" if found else "exported"
                say(f"      {origin}; relative L2 to PyTorch {stages[plan.name].parity:.1e}")
        quantized = None
        if prompts:
            with progress.part("int8"):
                recipe = Int8Build(checkpoint, stages, _tokenizer(checkpoint), prompts, golden, store, progress)
                quantized = recipe.quantize(allow_low_quality=allow_low_quality)
                stages |= quantized.stages
        with progress.part("bundle"):
            with unfinished(out) as partial:
                write_bundle(
                    partial,
                    checkpoint,
                    hashes,
                    stages,
                    golden.picture(),
                    precision,
                    rewrites,
                    weight_format,
                    quantized=quantized,
                    replaces=out,
                )
                if (out / MANIFEST).exists():
                    with locked(out):  # no plan comes in between
                        keep_plans(out, partial, say)
                        exchange(partial, out)
                elif out.exists():
                    exchange(partial, out)
                else:
                    partial.replace(out)
            for stage in stages.values():
                stage_store.hand_over(stage, out / "onnx")
            return Bundle.load(out)


def _check(batch_sizes: Sequence[int], precision: str, weight_format: str) -> None:
    """Raises InvalidRequest for what no bundle can be made of."""
    if not batch_sizes or any(size < 1 for size in batch_sizes):
        raise InvalidRequest(f"Got batch sizes {list(batch_sizes)}; expected whole numbers from 1.")
    if precision not in PRECISIONS:
        raise InvalidRequest(f"Got precision {precision!r}; expected {' or '.join(PRECISIONS)}.")
    if weight_format not in WEIGHT_FORMATS:
        raise InvalidRequest(f"Got weight format {weight_format!r}; expected {' or '.join(WEIGHT_FORMATS)}.")
    if weight_format == "fp16" and precision != "fp32":
        raise InvalidRequest(
            f"Got weight format fp16 with precision {precision}, whose graphs have weights of their own; it is for fp32."
        )


def _export_stage(
    plan: StagePlan,
    checkpoint: Checkpoint,
    batch_sizes: Sequence[int],
    precision: str,
    weight_format: str,
    without: Collection[str],
    golden: Walk,
    store: Path,
    key: str,
) -> StoredStage:
    """Export the stage at every batch size, compare each graph with PyTorch, and put it into the store."""
    _require_space(store, plan, checkpoint)
    with unfinished(store / key) as partial:
        partial.mkdir()
        graphs = write_graphs(plan, checkpoint, batch_sizes, precision, weight_format, without, partial)
        inputs = golden_inputs(golden, plan.name)
        gc.collect()  # modules hold reference cycles; the weights are gigabytes
        expected = torch_output(plan, checkpoint, inputs)
        gc.collect()
        backend = backends.connect(backends.EngineChoice("onnxruntime", precision=precision))
        with tempfile.TemporaryDirectory(dir=store, prefix=".parity-") as workspace:
            output = engine_output(
                plan, checkpoint, partial / graphs[len(golden.seeds)], inputs, backend, Path(workspace)
            )
            others = {size: partial / name for size, name in graphs.items() if size != len(golden.seeds)}
            distance = max(
                relative_l2(output, expected), stage_parity(plan, checkpoint, others, backend, Path(workspace))
            )
        if precision == "fp16":
            distance = max(distance, relative_l2(half_output(plan, checkpoint, inputs, without), expected))
        if distance > (most := bound(precision, weight_format)):
            raise ParityError(
                f"The exported {plan.name} is {distance:.1e} (relative L2) from PyTorch, more than {most:.0e}."
                " No bundle was written. Please report this with the versions that `sdturbo doctor` prints."
            )
        return stage_store.publish(
            store,
            key,
            partial,
            graphs=graphs,
            parity=distance,
            inputs_sha256=digest(inputs),
            output=output,
        )


def _tokenizer(checkpoint: Checkpoint) -> PromptTokenizer:
    vocabulary = checkpoint.path / "tokenizer"
    return PromptTokenizer(tokenizer_json(vocabulary / "vocab.json", vocabulary / "merges.txt"))


def _int8_prompts(checkpoint: Checkpoint, batch_sizes: Sequence[int], calibration: Path | None) -> Prompts:
    """Raises InvalidRequest for what cannot be calibrated."""
    if 1 not in batch_sizes:
        raise InvalidRequest(f"Got batch sizes {list(batch_sizes)}; int8 is measured at batch size 1: add it to them.")
    return prompts_for(checkpoint, calibration)


def _require_replaceable(out: Path) -> None:
    """`out` may be new, empty, or a bundle with nothing of anybody else's in it: it is deleted when the new one is done."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        listed = {MANIFEST, *json.loads((out / MANIFEST).read_bytes())["files"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidRequest(f"{out} exists and is no bundle; it is left alone. Choose another --out.") from error
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    if foreign := sorted(set(found) - listed):
        raise InvalidRequest(
            f"{out} holds files that are not the bundle's ({', '.join(foreign[:5])}), and would be deleted with it."
            " Move them away, or choose another --out."
        )


def _require_space(store: Path, plan: StagePlan, checkpoint: Checkpoint) -> None:
    """Refuse early what would fill the disk: a stage's float32 graph is as large as its component's float32 weights."""
    names = checkpoint.weights[plan.component]
    need = sum(checkpoint.file(name).stat().st_size * (2 if ".fp16" in name else 1) for name in names) * 1.1
    free = shutil.disk_usage(store).free
    if free < need:
        raise BuildError(
            f"The {plan.name} needs about {need / 1e9:.1f} GB in {store}, and {free / 1e9:.1f} GB are free. Free some space"
            " and run the same command again: finished stages are kept."
        )


def _clear_remains(store: Path, out: Path) -> None:
    """Put right what a killed build left: half-made directories go, a bundle that was on its way out comes back."""
    old = waiting_name(out)
    if old.exists() and not out.exists():
        old.replace(out)
    for path in (partial_name(out), old, *store.glob(".*.partial"), *store.glob(".parity-*")):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _lock(store: Path) -> Generator[None]:
    """One build at a time in a store."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise BuildError(f"Another build is using {store}. Wait for it, or choose another --workspace.") from error
        yield


@contextmanager
def _plain_disk_errors(out: Path) -> Generator[None]:
    """A full disk or a read-only directory in words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "The disk is full. Free some space and run the same command again: finished stages are kept."
        else:
            advice = "Choose directories you may write to with --out and --workspace."
        raise BuildError(f"Cannot write the bundle {out}: {error}. {advice}") from error
    except MemoryError as error:
        raise BuildError(f"Out of memory while building {out}; the full model takes about 10 GB.") from error
