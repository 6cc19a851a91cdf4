"""Check a finished bundle again: its golden picture on every backend that runs here.

With its checkpoint, every stage and picture is compared with PyTorch and diffusers' own pipelines.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdturbo import Pipeline, backends
from sdturbo.backends import Backend, BackendChoice
from sdturbo.bundle import Bundle
from sdturbo.errors import BackendUnavailable, InvalidRequest
from sdturbo.golden import difference, golden_distance

if TYPE_CHECKING:
    from sdturbo_export.proof.diffusers_reference import Asked
    from sdturbo_export.weights.checkpoint import Checkpoint

# the requests that are compared with diffusers: num_inference_steps and strength of text-to-image, image-to-image, inpainting
REQUESTS = (
    *((steps, None, False) for steps in (1, 2, 3, 4)),
    *((steps, strength, False) for steps, strength in ((1, 1.0), (2, 0.5), (4, 0.3), (4, 0.75))),
    *((steps, strength, True) for steps, strength in ((1, 1.0), (2, 0.5), (4, 0.75), (4, 1.0))),
)
AT_OTHER_SIZES = ((1, None, False), (2, 0.5, False), (2, 0.5, True))
LIMITS = {"fp32": (50.0, 2), "fp16": (55.0, 2)}  # by the weights' format: decibels and pixel values, fp32 on uint8
PROMPT, SEED = "a lighthouse on a cliff, 灯台, evening", 7

Line = dict[str, Any]


def verify_bundle(bundle: Bundle, checkpoint: Checkpoint | None) -> Iterator[Line]:
    """Check after check, as {what, ok, found, expected}. The bundle's hashes were checked when it was loaded.

    Raises InvalidRequest if bundle and checkpoint have decoders of different classes, and BackendUnavailable if no backend
    runs here.
    """
    if checkpoint is not None and bundle.decoder.split()[0] != checkpoint.decoder_name.split()[0]:
        raise InvalidRequest(
            f"The bundle's decoder is {bundle.decoder}, the checkpoint's is {checkpoint.decoder_name}: pass --decoder with the"
            " directory the bundle was made with, or leave it out."
        )
    yield _line("files", True, f"{len(bundle.files)} files whole and unaltered", "sha256 of bundle.json")
    if checkpoint is not None:
        from sdturbo_export.weights.lora_files import lora_entries, lora_hashes

        hashes = checkpoint.hashes()
        yield _line(
            "checkpoint",
            hashes == dict(bundle.model["weights"]),
            checkpoint.source,
            "the weights the bundle was made from",
        )
        loras = lora_entries(checkpoint.loras, lora_hashes(checkpoint.loras))
        bundle_loras = bundle.model.get("loras", [])
        if loras or bundle_loras:
            same = _without_names(loras) == _without_names(bundle_loras)
            yield _line("LoRAs", same, _listed(loras), _listed(bundle_loras))
    for backend in _backends(bundle):
        yield _golden(bundle, backend)
        if checkpoint is not None:
            yield from _stages(bundle, checkpoint, backend)
    if checkpoint is not None and bundle.precision == "fp32":
        yield from compare_with_diffusers(bundle, checkpoint)
    elif checkpoint is not None and bundle.precision == "int8":
        yield from judge_against_diffusers(bundle, checkpoint)


def _without_names(loras: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    return [(lora["sha256"], lora.get("settings_sha256", ""), lora["scale"]) for lora in loras]


def _listed(loras: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{lora['file']} x {lora['scale']:g}" for lora in loras) or "none"


def _backends(bundle: Bundle, precision: str | None = None) -> Iterator[Backend]:
    """A backend per device and precision that runs here, or per device in one. Raises BackendUnavailable if nothing runs."""
    offers = [offer for name in backends.names(automatic=True) for offer in backends.offers(name, bundle)]
    for offer in offers:
        if offer.runs and precision in (None, offer.precision):
            yield backends.connect(BackendChoice(offer.backend, offer.device, offer.precision), bundle)
    if not any(offer.runs for offer in offers):
        reasons = "\n".join(f"  - {offer.reason}" for offer in offers)
        raise BackendUnavailable(f"No backend can run here, so nothing was drawn:\n{reasons}")


def _golden(bundle: Bundle, backend: Backend) -> Line:
    least = bundle.golden.min_psnr
    distance = golden_distance(Pipeline(bundle, backend, image_to_image=False))
    what = f"golden picture, {_name(backend)} {backend.precision}"
    return _line(what, distance >= least, f"{distance:.1f} dB", f">= {least:.0f} dB")


def _stages(bundle: Bundle, checkpoint: Checkpoint, backend: Backend) -> Iterator[Line]:
    from sdturbo_export.proof.distance import bound
    from sdturbo_export.proof.parity import stage_parity
    from sdturbo_export.stages import stage_definitions

    for name, definition in stage_definitions(checkpoint).items():
        most = bound(name, backend.precision, bundle.weight_format)
        if np.isinf(most):
            continue  # its pictures are judged
        graphs = {
            graph: bundle.graph(name, graph.batch_size, height=graph.height, width=graph.width, form=backend.form)
            for graph in definition.graph_names(bundle.batch_sizes, bundle.sizes)
        }
        distance = stage_parity(definition, graphs, backend)
        what = f"{name} against PyTorch, {_name(backend)} {backend.precision}"
        yield _line(what, distance <= most, f"relative L2 distance {distance:.1e}", f"<= {most:.0e}")


def compare_with_diffusers(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[Line]:
    """The requests of `REQUESTS` in fp32 against diffusers' pipelines for text-to-image, image-to-image and inpainting."""
    least, most = LIMITS[bundle.weight_format]
    for name, distances in _from_diffusers(bundle, checkpoint):
        for asked, (psnr, largest) in distances:
            yield _line(
                f"diffusers' picture, {asked.num_inference_steps} steps, {asked.kind}, {name} fp32",
                psnr >= least and largest <= most,
                f"{psnr:.1f} dB, largest difference {largest}",
                f">= {least:.0f} dB, <= {most}",
            )


def judge_against_diffusers(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[Line]:
    """The same requests to a bundle in int8, held to the limit that it was built with."""
    from sdturbo_export.int8.quality import MIN_PSNR as LEAST

    held = bundle.quality.get("passed", False)
    for name, distances in _from_diffusers(bundle, checkpoint):
        median = statistics.median(psnr for _, (psnr, _) in distances)
        yield _line(
            f"diffusers' pictures, median of {len(distances)} requests, {name} int8",
            median >= LEAST or not held,
            f"{median:.1f} dB",
            f">= {LEAST:.0f} dB" if held else "no limit: built with --allow-low-quality",
        )


def _from_diffusers(
    bundle: Bundle, checkpoint: Checkpoint
) -> Iterator[tuple[str, list[tuple[Asked, tuple[float, int]]]]]:
    """For each backend and device, by name: each request with (PSNR in dB, largest difference of a value).

    PSNR is the peak signal-to-noise ratio. Pictures are drawn in the bundle's own precision.
    """
    from sdturbo_export.proof.diffusers_reference import Asked, draw

    requests = [Asked(*request, bundle.sizes[0]) for request in REQUESTS]
    requests += [Asked(*request, size) for size in bundle.sizes[1:] for request in AT_OTHER_SIZES]
    noise = np.random.default_rng(SEED).integers(0, 256, (12, 16, 3), np.uint8)
    larger = (bundle.width + 128, bundle.height + 64)  # so that it is resized
    start = Image.fromarray(noise).resize(larger, Image.Resampling.BICUBIC)
    levels = (
        np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) * 2
    )  # dark to light across, so that half is drawn anew
    mask = Image.fromarray(levels)
    expected = draw(checkpoint, PROMPT, SEED, start, mask, requests)
    gc.collect()  # diffusers' pipelines hold reference cycles, and the weights are gigabytes
    for backend in _backends(bundle, bundle.precision):
        pipe = Pipeline(bundle, backend)
        distances: list[tuple[Asked, tuple[float, int]]] = []
        for asked, picture in zip(requests, expected, strict=True):
            height, width = asked.size
            options: dict[str, Any] = {"num_inference_steps": asked.num_inference_steps, "strength": asked.strength}
            options |= {"height": height, "width": width}
            if asked.strength is not None:
                options["image"] = start
            if asked.masked:
                options |= {"mask_image": mask, "keep_unmasked": False}
            result = pipe(PROMPT, **options, seed=SEED, output_type="np")
            distances.append((asked, difference(result.images[0], picture)))
        yield _name(backend), distances
        del pipe  # its memory, before the next one is loaded


def _name(backend: Backend) -> str:
    """The backend's name, with its device where that is not the CPU."""
    return backend.name if backend.device == "cpu" else f"{backend.name} {backend.device}"


def _line(what: str, ok: bool, result: str, expected: str) -> Line:
    return {"what": what, "ok": bool(ok), "found": result, "expected": expected}
