"""One request: what a caller may give, its check, the state that the stages hand on, and the result that comes of it.

Shared by a call (`Pipeline.__call__`) and a stream of them (`stream.py`). Runs no stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Required, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdturbo import request
from sdturbo.backends import Backend
from sdturbo.bundle import Bundle
from sdturbo.clock import CancelToken, Clock
from sdturbo.errors import InvalidRequest
from sdturbo.image import ImageInput
from sdturbo.tokenizer import Tokens

F32 = NDArray[np.float32]


class Request(TypedDict, total=False):
    """The arguments of `Pipeline.__call__`, by name."""

    prompt: Required[str | Sequence[str]]
    image: ImageInput | None
    strength: float | None
    num_inference_steps: int
    num_images_per_prompt: int
    seed: request.Seeds
    latents: F32 | None
    output_type: str
    cancel: CancelToken | None


@dataclass(frozen=True, slots=True)
class Result:
    """What a call returns.

    images: a list of PIL images; with output_type "np" uint8 (N, H, W, 3); with "latent" float32 (N, 4, H/8, W/8).
    seeds: the seed of each image; empty where `latents` were given. timings: milliseconds a part, and "total".
    dropped: for each prompt, the text beyond 77 tokens that the model did not see ("" if it saw all).
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


@dataclass(slots=True)
class Job:
    """A checked request of N images on its way.

    rows: the schedule's rows that will run. images_per_prompt: image i belongs to prompt i // images_per_prompt.
    Filled in on the way: tokens a prompt; x, latents float32 (N, 4, H/8, W/8); prompt_embeds, float32 (77, 1024) an image;
    images, uint8 (N, H, W, 3).
    """

    prompts: list[str]
    image: ImageInput | None
    strength: float | None
    num_inference_steps: int
    rows: range
    images_per_prompt: int
    seeds: list[int]
    latents: F32 | None
    output_type: str
    clock: Clock
    tokens: list[Tokens] = field(default_factory=list[Tokens])
    x: F32 = field(default_factory=lambda: np.empty(0, np.float32))
    prompt_embeds: list[F32] = field(default_factory=list[F32])
    images: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def ends_in_pictures(self) -> bool:
        return self.output_type != "latent"


def accept(
    bundle: Bundle,
    prompt: str | Sequence[str],
    image: ImageInput | None = None,
    *,
    strength: float | None = None,
    num_inference_steps: int = 1,
    num_images_per_prompt: int = 1,
    seed: request.Seeds = 0,
    latents: F32 | None = None,
    output_type: str = "pil",
    cancel: CancelToken | None = None,
    image_to_image: bool,
) -> Job:
    """The job of a call's arguments, its clock started. image_to_image: whether the encoder is loaded.

    Raises InvalidRequest.
    """
    prompts = request.check_prompts(prompt)
    steps = request.check_count(num_inference_steps, "num_inference_steps", len(bundle.step_counts))
    per_prompt = request.check_count(num_images_per_prompt, "num_images_per_prompt", request.MAX_IMAGES)
    seeds = request.check_seeds(seed, len(prompts) * per_prompt)
    output_type = request.check_output_type(output_type)
    request.check_cancel(cancel)
    rows = bundle.steps(steps)
    if image is not None:
        if latents is not None:
            raise InvalidRequest("Got both image and latents; image-to-image draws its own noise from the seed.")
        if not image_to_image:
            raise InvalidRequest("Got an image, but the pipeline was loaded with image_to_image=False.")
        strength = request.check_strength(strength, steps)
        rows = rows[request.first_step(steps, strength) :]
    elif strength is not None:
        raise InvalidRequest(f"Got strength={strength} without an image; strength belongs to image-to-image.")
    return Job(prompts, image, strength, steps, rows, per_prompt, seeds, latents, output_type, Clock(cancel))


def finish(job: Job, bundle: Bundle, backend: Backend) -> Result:
    """The result of a job whose stages are done."""
    images: Any = job.images if job.ends_in_pictures else job.x
    if job.output_type == "pil":
        with job.clock.part("output"):
            images = [_to_pil(job, i, bundle) for i in range(len(job.images))]
    return Result(
        images=images,
        seeds=job.seeds if job.latents is None else [],
        timings=job.clock.stop(),
        dropped=[one.dropped for one in job.tokens],
        num_inference_steps=job.num_inference_steps,
        strength=job.strength,
        backend=backend.name,
        device=backend.device,
        precision=backend.precision,
        bundle_id=bundle.bundle_id,
        decoder=bundle.decoder,
    )


def _to_pil(job: Job, i: int, bundle: Bundle) -> Image.Image:
    """Image i for PIL; its `info["parameters"]` says how it was made, in AUTOMATIC1111's form."""
    picture = Image.fromarray(job.images[i])
    denoising = f", Denoising strength: {job.strength:g}" if job.strength is not None else ""
    vae = f", VAE: {bundle.decoder}" if bundle.decoder != "AutoencoderKL" else ""
    seeded = f", Seed: {job.seeds[i]}" if job.latents is None else ""
    picture.info["parameters"] = (
        f"{job.prompts[i // job.images_per_prompt]}\nSteps: {job.num_inference_steps}, Sampler: Euler, Schedule type:"
        f" Trailing, CFG scale: 1{seeded}, Size: {picture.width}x{picture.height}, Model hash: {bundle.bundle_id},"
        f" Model: {bundle.model['name']}{vae}{denoising}, Version: sdturbo"
    )
    return picture
