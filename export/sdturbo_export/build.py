"""From a checkpoint to a published bundle: export each stage, measure parity, assemble, rename."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from sdturbo import backends
from sdturbo.bundle import Bundle
from sdturbo.bundle.description import MANIFEST, PLAIN
from sdturbo.errors import InvalidRequest
from sdturbo.tokenizer import PromptTokenizer
from sdturbo_export import stage_store
from sdturbo_export.bundle_writer import write_bundle
from sdturbo_export.errors import BuildError, ParityError
from sdturbo_export.exchange import exchange, partial_name, unfinished, waiting_name
from sdturbo_export.int8.prompts import prompts_for
from sdturbo_export.int8.recipe import Int8Build
from sdturbo_export.options import BuildOptions
from sdturbo_export.progress import Progress
from sdturbo_export.proof.distance import bound, relative_l2
from sdturbo_export.proof.golden import GOLDEN, golden_walk
from sdturbo_export.proof.parity import (
    engine_output,
    golden_output,
    golden_picture,
    half_output,
    stage_parity,
    torch_output,
)
from sdturbo_export.proof.walk import Walk
from sdturbo_export.stage_store import StoredStage
from sdturbo_export.stage_store.graphs import write_graphs
from sdturbo_export.stages import StageDefinition, stage_definitions
from sdturbo_export.tensorrt.plan_writer import keep_plans, locked
from sdturbo_export.weights.checkpoint import Checkpoint
from sdturbo_export.weights.lora_files import lora_hashes
from sdturbo_export.weights.tokenizer_files import tokenizer_json

_DEFAULT = BuildOptions()
# part of a build -> its rough share of the time
_SHARES = {"hash the weights": 4, "text_encoder": 12, "denoiser": 55, "decoder": 35, "encoder": 20, "bundle": 4}


def build(
    checkpoint: Checkpoint,
    out: Path,
    options: BuildOptions = _DEFAULT,
    *,
    store: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export `checkpoint` to the bundle directory `out` and return it. An older bundle there is replaced at the end.

    store: where finished stages are noted for the next build, by default `.stages` beside `out`. say: takes lines of
    progress.
    A stage whose inputs did not change is taken from the store. TensorRT plans in `out` whose graph did not change are
    kept. Wherever the build stops, `out` is the new bundle or the old one. On file systems without an exchange of names it
    may be missing for a moment (see `exchange`): then the next build puts the old bundle back.
    Raises ParityError, QualityError, BuildError (disk, permissions), CheckpointError, InvalidRequest.
    """
    prompts = prompts_for(checkpoint, options.calibration) if options.precision == "int8" else None
    out = out.resolve()
    store = (store or out.parent / ".stages").resolve()
    _require_replaceable(out)
    progress = Progress(_SHARES | ({"int8": 100} if prompts else {}), say)
    with _plain_disk_errors(out), _lock(store):
        _clear_remains(store, out)
        with progress.part("hash the weights"):
            hashes = checkpoint.hashes() | lora_hashes(checkpoint.loras)
        tokenizer = PromptTokenizer(tokenizer_json(checkpoint.path / "tokenizer"))
        golden_ids = tokenizer(GOLDEN.prompt).input_ids
        walk = golden_walk(checkpoint, golden_ids, options.batch_sizes[0], options.sizes[0])
        definitions = stage_definitions(checkpoint)
        stages: dict[str, StoredStage] = {}
        for name, definition in definitions.items():
            with progress.part(name):
                key = stage_store.stage_key(definition, hashes, options)
                reused = stage_store.find(store, key)
                stages[name] = stage = reused or _export_stage(definition, options, walk, store, key)
                walk.outputs[name] = golden_output(definition, stage, options.exported_precision, walk)
                origin = "reused, not changed" if reused else "exported"
                say(f"      {origin}, relative L2 distance to PyTorch {stage.parity:.1e}")
        quantized = None
        if prompts:
            with progress.part("int8"):
                int8_build = Int8Build(definitions, stages, tokenizer, prompts, walk, store, progress)
                quantized = int8_build.quantize(allow_low_quality=options.allow_low_quality)
                stages |= quantized.stages
        with progress.part("bundle"):
            with unfinished(out) as partial:
                pictures = {options.sizes[0]: walk.picture()}
                for size in options.sizes[1:]:
                    other = golden_walk(checkpoint, golden_ids, options.batch_sizes[0], size)
                    pictures[size] = golden_picture(other, stages, options.precision)
                write_bundle(partial, checkpoint, hashes, stages, pictures, options, quantized=quantized, replaces=out)
                if (out / MANIFEST).exists():
                    with locked(out):  # no plan comes in between
                        keep_plans(out, partial, say)
                        exchange(partial, out)
                else:  # there is nothing, or an empty directory
                    partial.replace(out)
            for stage in stages.values():
                stage_store.hand_over(stage, out / "onnx")
            return Bundle.load(out)


def _export_stage(definition: StageDefinition, options: BuildOptions, walk: Walk, store: Path, key: str) -> StoredStage:
    """Export the stage at every batch size and picture size, compare each graph with PyTorch, and put it into the store."""
    _require_space(store, definition)
    precision = options.exported_precision
    with unfinished(store / key) as partial:
        partial.mkdir()
        graphs = write_graphs(definition, options, partial)
        inputs = walk.inputs(definition.name)
        gc.collect()  # modules hold reference cycles, and the weights are gigabytes
        expected = torch_output(definition, inputs)
        gc.collect()
        backend = backends.connect(backends.BackendChoice("onnxruntime", precision=precision))
        files = {name: partial / file for name, file in graphs.items() if name.form == PLAIN}
        shown = partial / stage_store.plain_file(graphs, len(walk.seeds), walk.size)
        output = engine_output(definition, shown, inputs, backend, store, walk.size)
        files = {name: file for name, file in files.items() if file != shown}
        distance = max(relative_l2(output, expected), stage_parity(definition, files, backend, store))
        if precision == "fp16":
            rounded = half_output(definition, inputs, options.without)
            distance = max(distance, relative_l2(rounded, expected))
        if distance > (most := bound(definition.name, precision, options.weight_format)):
            raise ParityError(
                f"The exported {definition.name} is {distance:.1e} (relative L2 distance) from PyTorch, more than {most:.0e}."
                " No bundle was written. Please report this with the versions that `sdturbo doctor` prints."
            )
        return stage_store.publish(store, key, partial, graphs=graphs, parity=distance, inputs=inputs, output=output)


def _require_replaceable(out: Path) -> None:
    """Refuse an `out` that holds files of another origin. It is deleted when the new bundle is done."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        listed = {MANIFEST, *json.loads((out / MANIFEST).read_bytes())["files"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidRequest(f"{out} exists and is no bundle. It is left alone. Choose another --out.") from error
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if foreign := sorted(present - listed):
        raise InvalidRequest(
            f"{out} holds files that are not the bundle's ({', '.join(foreign[:5])}), and would be deleted with it."
            " Move them away, or choose another --out."
        )


def _require_space(store: Path, definition: StageDefinition) -> None:
    """Refuse early to fill the disk. A stage's float32 graph is as large as its component's float32 weights."""
    need = definition.checkpoint.float32_size(definition.component) * 1.1
    free = shutil.disk_usage(store).free
    if free < need:
        raise BuildError(
            f"The {definition.name} needs about {need / 1e9:.1f} GB in {store}, and {free / 1e9:.1f} GB are free. Free some"
            " space and run the same command again: finished stages are kept."
        )


def _clear_remains(store: Path, out: Path) -> None:
    """Put right the remains of a killed build. Unfinished directories go, a bundle that was on its way out comes back."""
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
        except (BlockingIOError, PermissionError) as error:
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
        raise BuildError(f"Out of memory while building {out}. The full model takes about 10 GB.") from error
