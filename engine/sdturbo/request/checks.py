"""The checks of a request's arguments, one by one. Each raises InvalidRequest that says what came and what was expected."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Sequence
from typing import SupportsIndex, cast

import numpy as np

from sdturbo.bundle.description import MAX_STEPS, Size
from sdturbo.errors import InvalidRequest
from sdturbo.image import as_number
from sdturbo.noise import F32

MAX_SEED = 2**64 - 1
MOST_BITS = 4096  # Python refuses to print numbers of thousands of digits
MAX_LATENT = 1e4  # a standard normal stays below 10


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


def check_prompt_embeds(value: object, shape: tuple[int, ...]) -> F32:
    """Prompt embeddings, float32 (N, *shape) of finite values, for N prompts."""
    expected = f"float32 (N, {', '.join(map(str, shape))}) for N prompts, as `encode_prompt` gives"
    if not isinstance(value, np.ndarray):
        raise InvalidRequest(f"Got prompt_embeds of type {type(value).__name__}, expected an array {expected}.")
    embeds = cast("F32", value)
    if embeds.dtype != np.float32 or embeds.shape[1:] != shape or len(embeds) == 0:
        raise InvalidRequest(f"Got prompt_embeds {embeds.dtype} {embeds.shape}, expected {expected}.")
    if not np.isfinite(embeds).all():
        bad = np.count_nonzero(~np.isfinite(embeds))
        raise InvalidRequest(f"Got prompt_embeds with {bad} values of {embeds.size} not finite, expected {expected}.")
    return embeds


def check_seeds(seed: object, count: int) -> list[int]:
    """A seed per image: seed + i, or the i-th of a list, range or array of exactly `count`. None draws the first."""
    if seed is None:
        seed = random_seed()
    if isinstance(seed, (list, tuple, range)) or (isinstance(seed, np.ndarray) and seed.ndim == 1):
        values = cast("Sequence[object]", seed)
        if (given := _length(values)) != count:  # before a value is looked at: a range may hold any number
            raise InvalidRequest(f"Got {given} seeds for {count} images, expected one per image, or a single seed.")
        seeds = [_integer(value, f"seed[{i}]") for i, value in enumerate(values)]
    else:
        first = _integer(cast("object", seed), "seed")
        seeds = [first + i for i in range(count)]
    for value in seeds:
        if not 0 <= value <= MAX_SEED:
            raise InvalidRequest(
                f"Got seed {value}, expected 0 to 2**64 - 1, for every image (image i takes seed + i)."
            )
    return seeds


def random_seed() -> int:
    """A seed from the system's randomness, below 2³²: more bits draw nothing else."""
    return secrets.randbits(32)


def check_size(height: object, width: object, sizes: Sequence[Size]) -> Size:
    """Height and width in pixels, one of the bundle's `sizes`. None stands for the side of the first, its default."""
    size = tuple(
        default if side is None else _integer(side, name)
        for side, default, name in zip((height, width), sizes[0], ("height", "width"), strict=True)
    )
    for known in sizes:
        if known == size:
            return known
    offered = ", ".join(f"{columns}x{rows}" for rows, columns in sizes)
    raise InvalidRequest(
        f"Got the size {size[1]}x{size[0]} (width x height). This bundle draws {offered}. `sdturbo-export build --size` makes"
        " others."
    )


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


def check_flag(value: object, name: str) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidRequest(f"Got {name}={value!r:.80} of type {type(value).__name__}, expected True or False.")
    return bool(cast("bool", value))


def check_strength(value: object, num_inference_steps: int, *, masked: bool = False) -> float:
    """A strength from 0 to 1. None means 0.5, or 1.0 with one step, so that a step runs. With a mask it means 1.0."""
    if value is None:
        return 1.0 if masked else max(0.5, 1 / num_inference_steps)
    return check_share(value, "strength")


def check_share(value: object, name: str) -> float:
    """A number from 0 to 1."""
    share = as_number(value)
    if not 0 <= share <= 1:  # refuses NaN too
        raise InvalidRequest(f"Got {name}={value!r:.80}, expected a number from 0 to 1.")
    return share


def _length(values: Sequence[object]) -> int:
    """Its length. `len` fails for a range of 2⁶³ numbers and more."""
    return max(0, -((values.start - values.stop) // values.step)) if isinstance(values, range) else len(values)


def _integer(value: object, name: str) -> int:
    try:
        if not isinstance(value, bool):
            number = operator.index(cast("SupportsIndex", value))
            if number.bit_length() <= MOST_BITS:
                return number
            raise InvalidRequest(f"Got {name} of {number.bit_length()} bits, expected a smaller number.")
    except TypeError:  # numpy arrays have __index__ whatever they hold
        pass
    raise InvalidRequest(f"Got {name}={value!r:.80} of type {type(value).__name__}, expected a whole number.")
