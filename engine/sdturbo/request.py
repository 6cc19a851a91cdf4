"""Requests, checked before anything runs. Names and meanings are those of diffusers."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Required, SupportsIndex, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from sdturbo.bundle import Bundle
from sdturbo.bundle.description import MAX_STEPS
from sdturbo.clock import CancelToken, Clock
from sdturbo.errors import InvalidRequest
from sdturbo.image import ImageInput
from sdturbo.noise import F32
from sdturbo.tokenizer import Tokens

MAX_SEED = 2**64 - 1
MAX_IMAGES = 1000  # per prompt of a call
MAX_LATENT = 1e4  # a standard normal stays below 10
OUTPUT_TYPES = ("pil", "np", "latent")

# other arguments are None where a request leaves them out
DEFAULT_STEPS = 1
DEFAULT_IMAGES = 1  # per prompt
DEFAULT_SEED = 0
DEFAULT_OUTPUT = "pil"

Seeds = SupportsIndex | Sequence[SupportsIndex]


class Request(TypedDict, total=False):
    """The arguments of `Pipeline.__call__`, by name."""

    prompt: Required[str | Sequence[str]]
    image: ImageInput | None
    strength: float | None
    num_inference_steps: int
    num_images_per_prompt: int
    seed: Seeds
    latents: F32 | None
    output_type: str
    cancel: CancelToken | None


@dataclass(slots=True)
class Job:
    """A checked request of N images, and the tensors that the stages make of it.

    rows: the schedule's rows that will run. images_per_prompt: image i belongs to prompt i // images_per_prompt.
    The stages fill in the rest. tokens: one per prompt. start: by name, the rows of `latents` (noise), or from an image those
    of the encoder's inputs. x: latents, float32 (N, 4, H/8, W/8). prompt_embeds: float32 (77, 1024) per image. images: uint8
    (N, H, W, 3).
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
    start: dict[str, Any] = field(default_factory=dict[str, Any])
    x: F32 = field(default_factory=lambda: np.empty(0, np.float32))
    prompt_embeds: list[F32] = field(default_factory=list[F32])
    images: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def ends_in_pictures(self) -> bool:
        return self.output_type != "latent"


def accept(bundle: Bundle, request: Request) -> Job:
    """The job of a request, its clock started. Missing arguments take their defaults. Raises InvalidRequest."""
    check_names(request)
    prompts = check_prompts(request["prompt"])
    steps = check_count(request.get("num_inference_steps", DEFAULT_STEPS), "num_inference_steps", MAX_STEPS)
    per_prompt = check_count(request.get("num_images_per_prompt", DEFAULT_IMAGES), "num_images_per_prompt", MAX_IMAGES)
    seeds = check_seeds(request.get("seed", DEFAULT_SEED), len(prompts) * per_prompt)
    output_type: object = request.get("output_type", DEFAULT_OUTPUT)
    if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
        raise InvalidRequest(f"Got output_type={output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}.")
    image, strength, latents = request.get("image"), request.get("strength"), request.get("latents")
    cancel = request.get("cancel")
    if cancel is not None and not callable(getattr(cancel, "is_set", None)):
        raise InvalidRequest(f"Got cancel={cancel!r:.80}, expected something with is_set(), such as threading.Event().")
    rows = bundle.steps(steps)
    if latents is not None:
        if image is not None:
            raise InvalidRequest("Got both image and latents. Image-to-image draws its own noise from the seed.")
        check_latents(latents, (len(seeds), *bundle.stages["denoiser"].outputs[0].shape_at(1)[1:]))
    if image is not None:
        strength = check_strength(strength, steps)
        rows = rows[first_step(steps, strength) :]
    elif strength is not None:
        raise InvalidRequest(f"Got strength={strength} without an image. Strength belongs to image-to-image.")
    return Job(prompts, image, strength, steps, rows, per_prompt, seeds, latents, output_type, Clock(cancel))


def check_names(request: object) -> None:
    """Refuse anything but a call's arguments by name, with a prompt among them."""
    if not isinstance(request, Mapping):
        raise InvalidRequest(f"Got a request of type {type(request).__name__}, expected a call's arguments by name.")
    known = Request.__annotations__
    names = cast("Mapping[object, object]", request)
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest(f"Got a request with {unknown!r:.80}, expected names of {', '.join(known)}.")
    if "prompt" not in names:
        raise InvalidRequest("Got a request without a prompt.")


def check_prompts(prompt: object) -> list[str]:
    """The prompts as a list. An empty string is a prompt, an empty list is not."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)) or not prompts:
        raise InvalidRequest(
            f"Got a prompt of type {type(prompt).__name__}: {prompt!r:.80}, expected text or a list of it."
        )
    for i, text in enumerate(cast("Sequence[object]", prompts)):
        if not isinstance(text, str):
            raise InvalidRequest(f"Got prompt[{i}] of type {type(text).__name__}: {text!r:.80}, expected text.")
    return list(cast("Sequence[str]", prompts))


def check_seeds(seed: object, count: int) -> list[int]:
    """A seed per image: seed + i, or the i-th of a list of exactly `count`."""
    if isinstance(seed, (list, tuple)):
        seeds = [_integer(value, f"seed[{i}]") for i, value in enumerate(cast("Sequence[object]", seed))]
        if len(seeds) != count:
            raise InvalidRequest(
                f"Got {len(seeds)} seeds for {count} images, expected one per image, or a single seed."
            )
    else:
        first = _integer(seed, "seed")
        seeds = [first + i for i in range(count)]
    for value in seeds:
        if not 0 <= value <= MAX_SEED:
            raise InvalidRequest(
                f"Got seed {value}, expected 0 to 2**64 - 1, for every image (image i takes seed + i)."
            )
    return seeds


def check_count(value: object, name: str, most: int | None = None) -> int:
    """A whole number from 1, up to `most` if given."""
    number = _integer(value, name)
    if number < 1 or (most is not None and number > most):
        raise InvalidRequest(f"Got {name}={number}, expected {f'1 to {most}' if most else '1 or more'}.")
    return number


def check_latents(value: object, shape: tuple[int, ...]) -> None:
    """Refuse anything but standard normals in float32 of that shape."""
    if not isinstance(value, np.ndarray):
        raise InvalidRequest(f"Got latents of type {type(value).__name__}, expected a float32 array {shape}.")
    latents = cast("F32", value)
    if latents.shape != shape or latents.dtype != np.float32:
        raise InvalidRequest(f"Got latents {latents.dtype} {latents.shape}, expected float32 {shape}.")
    if not (np.abs(latents) <= MAX_LATENT).all():  # refuses NaN too
        raise InvalidRequest(f"Got latents beyond ±{MAX_LATENT:g} or not finite, expected standard normals.")


def first_step(num_inference_steps: int, strength: float) -> int:
    """The index of the first step of image-to-image: n - int(n·strength), in Python's doubles as in diffusers.

    strength: 0 to 1. Raises InvalidRequest, with values that work, if no step is left to run.
    """
    count = int(num_inference_steps * strength)
    if count < 1:
        least = next(k / 100 for k in range(1, 101) if int(num_inference_steps * (k / 100)) >= 1)
        options = [f"strength >= {least:g} with num_inference_steps={num_inference_steps}"]
        more = next((n for n in range(1, MAX_STEPS + 1) if int(n * strength) >= 1), None)
        if more:
            options.append(f"num_inference_steps={more} with strength={strength}")
        raise InvalidRequest(
            f"int(num_inference_steps·strength) = int({num_inference_steps}·{strength}) = 0: no step would run."
            f" Use {' or '.join(options)}."
        )
    return num_inference_steps - count


def check_strength(value: object, num_inference_steps: int) -> float:
    """A strength from 0 to 1. None means 0.5, or 1.0 with one step, so that a step runs."""
    if value is None:
        return max(0.5, 1 / num_inference_steps)
    try:
        strength = math.nan if isinstance(value, (bool, str, bytes)) else float(cast("float", value))
    except (TypeError, ValueError, OverflowError):
        strength = math.nan
    if not 0 <= strength <= 1:  # refuses NaN too
        raise InvalidRequest(f"Got strength={value!r:.80}, expected a number from 0 to 1.")
    return strength


def _integer(value: object, name: str) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(cast("SupportsIndex", value))
    except TypeError:  # numpy arrays have __index__ whatever they hold
        pass
    raise InvalidRequest(f"Got {name}={value!r:.80} of type {type(value).__name__}, expected a whole number.")
