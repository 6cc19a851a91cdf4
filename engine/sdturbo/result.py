"""Results: pictures or latents with their origin, and the checks that they pass first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo.backends import Backend
from sdturbo.bundle import Bundle
from sdturbo.errors import OutputError
from sdturbo.image import MarkedImage
from sdturbo.noise import F32
from sdturbo.request import Job


@dataclass(frozen=True, slots=True)
class Result:
    """The pictures of a call, and how they were made.

    images: a list of PIL images. With output_type "np" uint8 (N, H, W, 3), with "latent" float32 (N, 4, H/8, W/8).
    seeds: one per image, none if `latents` were given. timings: milliseconds per part, and "total".
    dropped: per prompt, the text beyond 77 tokens that the model did not see ("" if it saw all, or if it got prompt_embeds).
    lost_recordings: titles of recordings (CUDA graphs) that could not be made, so that the device takes longer.
    """

    images: Any
    seeds: list[int]
    timings: dict[str, float]
    dropped: list[str]
    num_inference_steps: int
    strength: float | None
    backend: str
    device: str
    precision: str
    bundle_id: str
    decoder: str
    lost_recordings: list[str]


def finish(job: Job, bundle: Bundle, backend: Backend, lost_recordings: Sequence[str]) -> Result:
    """The result of a job whose stages are done. lost_recordings: as of `Result`."""
    images: Any = job.images if job.ends_in_pictures else job.x
    if job.output_type == "pil":
        with job.clock.part("output"):
            images = [_to_pil(job, i, bundle) for i in range(len(job.images))]
    return Result(
        images=images,
        seeds=job.seeds if job.latents is None else [],
        timings=job.clock.stop(),
        dropped=[tokens.dropped for tokens in job.tokens] or [""] * len(job.prompts),
        num_inference_steps=job.num_inference_steps,
        strength=job.strength,
        **origin(bundle, backend),
        lost_recordings=list(lost_recordings),
    )


def origin(bundle: Bundle, backend: Backend) -> dict[str, str]:
    """The bundle and the backend of pictures, as results and commands name them."""
    return {
        "bundle_id": bundle.bundle_id,
        "decoder": bundle.decoder,
        "backend": backend.name,
        "device": backend.device,
        "precision": backend.precision,
    }


def _to_pil(job: Job, i: int, bundle: Bundle) -> MarkedImage:
    """Image i for PIL. Its `info["parameters"]` says how it was made, in AUTOMATIC1111's form.

    Its first line is the prompt. The line is empty if the request gave prompt_embeds.
    """
    picture = MarkedImage(Image.fromarray(job.images[i]))
    denoising = f", Denoising strength: {job.strength:g}" if job.strength is not None else ""
    vae = f", VAE: {bundle.decoder}" if bundle.decoder != "AutoencoderKL" else ""
    seeded = f", Seed: {job.seeds[i]}" if job.latents is None else ""
    picture.info["parameters"] = (
        f"{job.prompts[i // job.images_per_prompt]}\nSteps: {job.num_inference_steps}, Sampler: Euler, Schedule type:"
        f" Trailing, CFG scale: 1{seeded}, Size: {picture.width}x{picture.height}, Model hash: {bundle.bundle_id},"
        f" Model: {bundle.model['name']}{vae}{denoising}, Version: sdturbo"
    )
    return picture


def require_finite(values: F32, producer: str) -> None:
    """Raises OutputError for values that are NaN or infinite."""
    if not np.isfinite(values).all():
        raise OutputError(
            f"The {producer} produced {np.count_nonzero(~np.isfinite(values))} non-finite values of {values.size}. No picture"
            " was made from them. Use another precision, or `sdturbo-export verify`."
        )


def require_pictures(images: NDArray[np.uint8], precision: str) -> None:
    """Raises OutputError for an image of a single value."""
    for i, image in enumerate(images):
        if image.min() == image.max():
            raise OutputError(
                f"The decoder drew image {i} in the single value {image.flat[0]}, which no picture is: its numbers"
                f" overflowed. Use another precision than {precision}, or `sdturbo-export verify`."
            )
