"""Requests, checked before anything runs. Names and meanings are those of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, SupportsIndex, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle import Bundle
from sdturbo.bundle.description import LATENT_SCALE, MAX_STEPS, Size
from sdturbo.clock import CancelToken, Clock
from sdturbo.errors import InvalidRequest
from sdturbo.image import ImageInput, Mask, of_alpha, read_image, reduced, to_mask
from sdturbo.noise import F32
from sdturbo.request.checks import (
    check_count,
    check_flag,
    check_latents,
    check_prompt_embeds,
    check_prompts,
    check_seeds,
    check_size,
    check_strength,
    first_step,
)
from sdturbo.request.diffusers_arguments import understood
from sdturbo.request.inpainting import Inpainting
from sdturbo.tokenizer import Tokens

# other arguments are None where a request leaves them out
DEFAULT_STEPS = 1
DEFAULT_IMAGES = 1  # per prompt
DEFAULT_SEED = 0
DEFAULT_OUTPUT = "pil"

MAX_IMAGES = 1000  # per prompt of a call
OUTPUT_TYPES = ("pil", "np", "latent")

Seeds = SupportsIndex | Sequence[SupportsIndex] | NDArray[np.integer[Any]] | None


class Request(TypedDict, total=False):
    """The arguments of `Pipeline.__call__`, by name."""

    prompt: str | Sequence[str] | None
    image: ImageInput | None
    mask_image: ImageInput | None
    keep_unmasked: bool
    strength: float | None
    height: int | None
    width: int | None
    num_inference_steps: int
    num_images_per_prompt: int
    seed: Seeds
    latents: F32 | None
    prompt_embeds: F32 | None
    output_type: str
    cancel: CancelToken | None


@dataclass(slots=True)
class Job:
    """A checked request of N images, and the tensors that the stages make of it.

    prompts: empty texts if the request gave prompt_embeds. inpainting: what is kept of the image, None if all of it is drawn
    anew. size: height and width of the pictures in pixels. rows: the schedule's rows that will run.
    images_per_prompt: image i belongs to prompt i // images_per_prompt.
    The stages fill in the rest. tokens: one per prompt. start: by name, the rows of `latents` (noise), or from an image those
    of the encoder's inputs. x: latents, float32 (N, 4, H/8, W/8). prompt_embeds: float32 (77, 1024) per image, there from the
    beginning if the request gave them. images: uint8 (N, H, W, 3).
    """

    prompts: list[str]
    image: ImageInput | None
    inpainting: Inpainting | None
    strength: float | None
    size: Size
    num_inference_steps: int
    rows: range
    images_per_prompt: int
    seeds: list[int]
    latents: F32 | None
    output_type: str
    clock: Clock
    tokens: list[Tokens] = field(default_factory=list[Tokens])
    start: dict[str, Any] = field(default_factory=dict[str, Any])
    x: F32 = field(default_factory=lambda: np.empty(0, np.float32))
    prompt_embeds: list[F32] = field(default_factory=list[F32])
    images: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def ends_in_pictures(self) -> bool:
        return self.output_type != "latent"

    @property
    def is_uninterrupted(self) -> bool:
        """Before it runs: it goes from text to pictures, so a device may run it as one recording."""
        return self.ends_in_pictures and not self.prompt_embeds


def accept(bundle: Bundle, request: Request) -> Job:
    """The job of a request, its clock started. Missing arguments take their defaults. Raises InvalidRequest."""
    request = named(request)
    cancel = request.get("cancel")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise InvalidRequest(f"Got cancel={cancel!r:.80}, expected something with is_set(), such as threading.Event().")
    clock = Clock(cancel)
    prompts, embeds = _prompts(request, bundle)
    steps = check_count(request.get("num_inference_steps", DEFAULT_STEPS), "num_inference_steps", MAX_STEPS)
    per_prompt = check_count(request.get("num_images_per_prompt", DEFAULT_IMAGES), "num_images_per_prompt", MAX_IMAGES)
    seeds = check_seeds(request.get("seed", DEFAULT_SEED), len(prompts) * per_prompt)
    output_type: object = request.get("output_type", DEFAULT_OUTPUT)
    if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
        raise InvalidRequest(f"Got output_type={output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}.")
    size = check_size(request.get("height"), request.get("width"), bundle.sizes)
    latents_shape = bundle.declared["denoiser"].outputs[0].at(*size).shape_at(1)
    keep_unmasked = check_flag(request.get("keep_unmasked", True), "keep_unmasked")
    image, mask = _image(request, size, clock)
    strength, latents = request.get("strength"), request.get("latents")
    rows = bundle.steps(steps)
    if latents is not None:
        if image is not None:
            raise InvalidRequest("Got both image and latents. Image-to-image draws its own noise from the seed.")
        check_latents(latents, (len(seeds), *latents_shape[1:]))
    inpainting = None
    if image is not None:
        strength = check_strength(strength, steps, masked=mask is not None)
        rows = rows[first_step(steps, strength) :]
        if mask is not None:
            inpainting = Inpainting(mask, keep_unmasked, pure=strength == 1)
    elif strength is not None:
        raise InvalidRequest(f"Got strength={strength} without an image. Strength belongs to image-to-image.")
    job = Job(prompts, image, inpainting, strength, size, steps, rows, per_prompt, seeds, latents, output_type, clock)
    if embeds is not None:
        embeds = embeds.copy()  # the caller may fill the array anew while a stream is under way
        job.prompt_embeds = [embeds[i // per_prompt] for i in range(len(seeds))]
    return job


def _prompts(request: Request, bundle: Bundle) -> tuple[list[str], F32 | None]:
    """The prompts, or empty texts and the embeddings that stand in their place."""
    prompt, embeds = request.get("prompt"), request.get("prompt_embeds")
    if prompt is None and embeds is None:
        raise InvalidRequest("Got a request without a prompt, expected text or a list of it, or prompt_embeds.")
    if embeds is None:
        return check_prompts(prompt), None
    if prompt is not None:
        raise InvalidRequest("Got both prompt and prompt_embeds. Expected one of them.")
    embeds = check_prompt_embeds(embeds, bundle.stages["text_encoder"].outputs[0].shape_at(1)[1:])
    return [""] * len(embeds), embeds


def _image(request: Request, size: Size, clock: Clock) -> tuple[ImageInput | None, Mask | None]:
    """The start picture, and the mask of what is drawn anew: `mask_image`, or else the picture's transparent pixels."""
    image, mask_image = request.get("image"), request.get("mask_image")
    if image is None:
        if mask_image is not None:
            raise InvalidRequest("Got mask_image without an image. A mask says which part of an image is drawn anew.")
        return None, None
    with clock.part("image"):
        if isinstance(image, (str, PathLike)):
            image = read_image(image)
        return image, mask_of(image, mask_image, size)


def mask_of(image: ImageInput, mask_image: ImageInput | None, size: Size) -> Mask | None:
    """The part of an image that is drawn anew, bool (H, W): `mask_image`, or else the image's transparent pixels.

    None means all of it. size: height and width of the pictures in pixels.
    Raises InvalidRequest, also for a mask in which no latent is drawn anew.
    """
    mask = of_alpha(image, *size) if mask_image is None else to_mask(mask_image, *size)
    if mask is not None and not reduced(mask, *(side // LATENT_SCALE for side in size)).any():
        if mask_image is None:  # specks of a picture that is opaque on the whole
            return None
        raise InvalidRequest(
            f"Got a mask of {int(mask.sum())} pixels, which is too small: one latent stands for 8x8 pixels and counts if its"
            " first pixel is white. Expected a larger area."
        )
    return mask


def named(request: object) -> Request:
    """A call's arguments by name. Those of diffusers that mean something here are translated."""
    if not isinstance(request, Mapping):
        raise InvalidRequest(f"Got a request of type {type(request).__name__}, expected a call's arguments by name.")
    names = cast("Mapping[str, Any]", request)
    known = {name: value for name, value in names.items() if name in Request.__annotations__}
    others = {name: value for name, value in names.items() if name not in known}
    seed = understood(others, tuple(Request.__annotations__))
    if seed is not None:
        given = known.get("seed")
        if given is not None and not (isinstance(given, int) and given == DEFAULT_SEED):
            raise InvalidRequest("Got both seed and generator. Expected one of them.")
        known["seed"] = seed
    return cast("Request", known)
