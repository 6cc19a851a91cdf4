"""Is a bundle still what it says it is? Golden picture on every backend; with its checkpoint, every stage and picture
against PyTorch and diffusers' own pipelines."""

from __future__ import annotations

import gc
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdturbo import Pipeline, backends
from sdturbo.backends import Backend, EngineChoice, Offer
from sdturbo.bundle import Bundle
from sdturbo.errors import BackendUnavailable, InvalidRequest
from sdturbo.files import sha256_file
from sdturbo.golden import difference, golden_distance

if TYPE_CHECKING:
    from sdturbo_export.weights.checkpoint import Checkpoint

# what is compared with diffusers: (num_inference_steps, strength or None for text-to-image)
REQUESTS = ((1, None), (2, None), (3, None), (4, None), (1, 1.0), (2, 0.5), (4, 0.3), (4, 0.75))
LIMITS = {"fp32": (50.0, 2), "fp16": (55.0, 2)}  # by the weights' format: dB and pixel values, fp32 on uint8
PROMPT, SEED = "a lighthouse on a cliff, 灯台, evening", 7

Line = dict[str, Any]


def verify_bundle(bundle: Bundle, checkpoint: Checkpoint | None) -> Iterator[Line]:
    """Check after check, as {what, ok, found, expected}. The bundle's hashes were checked when it was loaded.

    Raises InvalidRequest if bundle and checkpoint have decoders of different classes, BackendUnavailable if nothing runs.
    """
    if checkpoint is not None and bundle.decoder.split()[0] != checkpoint.decoder_name.split()[0]:
        raise InvalidRequest(
            f"The bundle's decoder is {bundle.decoder}, the checkpoint's is {checkpoint.decoder_name}: pass --decoder with the"
            " directory the bundle was made with, or leave it out."
        )
    yield _line("files", True, f"{len(bundle.files)} files whole and unaltered", "sha256 of bundle.json")
    if checkpoint is not None:
        hashes = checkpoint.hashes()
        yield _line(
            "checkpoint",
            hashes == dict(bundle.model["weights"]),
            checkpoint.source,
            "the weights the bundle was made from",
        )
        loras = [
            {"file": lora.path.name, "sha256": sha256_file(lora.path), "scale": lora.scale} for lora in checkpoint.loras
        ]
        made_with = bundle.model.get("loras", [])
        if loras or made_with:
            names = [
                ", ".join(f"{one['file']} x {one['scale']:g}" for one in some) or "none" for some in (loras, made_with)
            ]
            yield _line("LoRAs", _without_names(loras) == _without_names(made_with), *names)
    for backend in _backends(bundle):
        yield _golden(bundle, backend)
        if checkpoint is not None:
            yield from _stages(bundle, checkpoint, backend)
    if checkpoint is not None and bundle.precision == "fp32":
        yield from compare_with_diffusers(bundle, checkpoint)
    elif checkpoint is not None and bundle.precision == "int8":
        yield from judge_against_diffusers(bundle, checkpoint)


def _without_names(loras: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    return [(lora["sha256"], lora["scale"]) for lora in loras]


def _backends(bundle: Bundle) -> Iterator[Backend]:
    """Every device and precision that runs here. Raises BackendUnavailable if none does: nothing would be verified."""
    offers = _offers(bundle)
    for offer in offers:
        if offer.runs:
            yield _connect(offer, bundle)
    if not any(offer.runs for offer in offers):
        reasons = "\n".join(f"  - {offer.reason}" for offer in offers)
        raise BackendUnavailable(f"No backend can run here, so nothing was drawn:\n{reasons}")


def _offers(bundle: Bundle) -> list[Offer]:
    return [offer for name in backends.names(automatic=True) for offer in backends.offers(name, bundle)]


def _connect(offer: Offer, bundle: Bundle) -> Backend:
    return backends.connect(EngineChoice(offer.backend, offer.device, offer.precision), bundle)


def _golden(bundle: Bundle, backend: Backend) -> Line:
    least = bundle.golden.min_psnr
    distance = golden_distance(Pipeline(bundle, backend, image_to_image=False))
    what = f"golden picture, {_name(backend)} {backend.precision}"
    return _line(what, distance >= least, f"{distance:.1f} dB", f">= {least:.0f} dB")


def _stages(bundle: Bundle, checkpoint: Checkpoint, backend: Backend) -> Iterator[Line]:
    from sdturbo_export.proof.distance import BOUNDS, bound, stage_precision
    from sdturbo_export.proof.parity import stage_parity
    from sdturbo_export.stages import PLANS

    with tempfile.TemporaryDirectory() as workspace:
        for plan in PLANS:
            precision = stage_precision(plan.name, backend.precision)
            if precision not in BOUNDS:
                continue  # int8: its pictures are judged
            most = bound(precision, bundle.weight_format)
            graphs = {size: bundle.graph(plan.name, size) for size in bundle.batch_sizes}
            distance = stage_parity(plan, checkpoint, graphs, backend, Path(workspace))
            what = f"{plan.name} against PyTorch, {_name(backend)} {backend.precision}"
            yield _line(what, distance <= most, f"relative L2 {distance:.1e}", f"<= {most:.0e}")


def compare_with_diffusers(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[Line]:
    """The requests of `REQUESTS` in fp32 against StableDiffusionPipeline and StableDiffusionImg2ImgPipeline."""
    least, most = LIMITS[bundle.weight_format]
    for name, distances in _from_diffusers(bundle, checkpoint):
        for (steps, strength), (distance, off) in zip(REQUESTS, distances, strict=True):
            kind = "text-to-image" if strength is None else f"image-to-image, strength {strength:g}"
            yield _line(
                f"diffusers' picture, {steps} steps, {kind}, {name} fp32",
                distance >= least and off <= most,
                f"{distance:.1f} dB, largest difference {off}",
                f">= {least:.0f} dB, <= {most}",
            )


def judge_against_diffusers(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[Line]:
    """The same requests of a bundle in int8, by the limit that it was built with."""
    from sdturbo_export.int8.quality import MIN_PSNR as LEAST

    held = bundle.quality.get("passed", False)
    for name, distances in _from_diffusers(bundle, checkpoint):
        median = statistics.median(distance for distance, _ in distances)
        yield _line(
            f"diffusers' pictures, median of {len(distances)} requests, {name} int8",
            median >= LEAST or not held,
            f"{median:.1f} dB",
            f">= {LEAST:.0f} dB" if held else "no limit: built with --allow-low-quality",
        )


def _from_diffusers(bundle: Bundle, checkpoint: Checkpoint) -> Iterator[tuple[str, list[tuple[float, int]]]]:
    """For each backend and device, by name: (PSNR in dB, largest difference of a value) of each request.

    In the bundle's own precision.
    """
    from sdturbo_export.proof.diffusers_reference import draw

    start = _start_image(bundle)
    expected = draw(checkpoint, PROMPT, SEED, start, REQUESTS)
    gc.collect()  # diffusers' pipelines hold reference cycles; the weights are gigabytes
    for offer in _offers(bundle):
        if not offer.runs or offer.precision != bundle.precision:
            continue  # `sdturbo doctor` says why
        backend = _connect(offer, bundle)
        pipe = Pipeline(bundle, backend)
        distances: list[tuple[float, int]] = []
        for (steps, strength), picture in zip(REQUESTS, expected, strict=True):
            image = start if strength is not None else None
            result = pipe(PROMPT, image, strength=strength, num_inference_steps=steps, seed=SEED, output_type="np")
            distances.append(difference(result.images[0], picture))
        yield _name(backend), distances
        del pipe  # its memory, before the next one is loaded


def _name(backend: Backend) -> str:
    """With its device, where that is not the CPU."""
    return backend.name if backend.device == "cpu" else f"{backend.name} {backend.device}"


def _start_image(bundle: Bundle) -> Image.Image:
    """A picture to start from: smooth colours, larger than the frame, so that it is resized."""
    noise = np.random.default_rng(SEED).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((bundle.width + 128, bundle.height + 64), Image.Resampling.BICUBIC)


def _line(what: str, ok: bool, found: str, expected: str) -> Line:
    return {"what": what, "ok": bool(ok), "found": found, "expected": expected}
