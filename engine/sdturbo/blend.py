"""Prompts and seeds between others: weighted means, spherical interpolation, and a walk of pictures from one to another.

Knows embeddings and noise as arrays. The pictures are drawn by the pipeline that the caller brings.
Sources: Ken Shoemake, "Animating rotation with quaternion curves" (SIGGRAPH 1985), for slerp. William Kahan, "How futile are
mindless assessments of roundoff in floating-point computation?" (2006), "Mangled angles", for the angle.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from sdturbo.errors import InvalidRequest
from sdturbo.noise import F32, F64, randn
from sdturbo.request import check_prompts, check_seeds, check_share, check_size

if TYPE_CHECKING:
    from sdturbo.pipeline import Pipeline
    from sdturbo.result import Result

WALK_OPTIONS = ("num_inference_steps", "height", "width", "output_type", "cancel")
MAX_FRAMES = 1_000_000
_VECTORS = {3: (2,), 4: (1, 2, 3)}  # by the number of an array's axes, those that make up one vector
_ROUNDING = 1e-9  # of the weights' absolute sum: a smaller sum is that of rounding
_SMALLEST_ANGLE = 1e-6  # radians: below it, arc and chord are the same in float32

Waypoint = tuple[str, SupportsIndex | None]  # (prompt, seed)


def mix(embeds: F32, weights: Sequence[float]) -> F32:
    """The weighted mean of prompt embeddings, float32 (1, 77, width), for `prompt_embeds` of a call.

    embeds: float32 (N, 77, width), as `Pipeline.encode_prompt` gives for a list. weights: N numbers. They are divided by their
    sum. A negative weight leads away from its prompt.
    Raises InvalidRequest, also for weights whose sum is zero.
    """
    _check_array(embeds, "embeds", 3)
    try:
        shares = np.asarray(weights, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"Got weights={weights!r:.80}, expected a list of numbers.") from error
    if shares.shape != (len(embeds),):
        raise InvalidRequest(f"Got weights of shape {shares.shape} for {len(embeds)} prompts, expected one per prompt.")
    with np.errstate(over="ignore"):  # refused below
        total = float(shares.sum())
        least = _ROUNDING * float(np.abs(shares).sum())
    if not np.isfinite(shares).all() or not np.isfinite(total) or abs(total) <= least:
        raise InvalidRequest(
            f"Got weights={weights!r:.80} with the sum {total:g}, expected finite numbers whose sum is not zero."
        )
    with np.errstate(over="ignore"):  # refused below
        mixed = np.tensordot(shares / total, embeds.astype(np.float64), 1).astype(np.float32)[None]
    if not np.isfinite(mixed).all():
        raise InvalidRequest(
            f"Got weights={weights!r:.80}, which lead too far from the prompts. Expected smaller ones."
        )
    return mixed


def slerp(start: F32, end: F32, t: float) -> F32:
    """Spherical interpolation: `start` at t = 0, `end` at t = 1, bit for bit, and the arc between them at t from 0 to 1.

    start, end: float32 arrays of one shape. The noise of N images (N, 4, H/8, W/8) is N vectors, and the unit variance stays.
    Prompt embeddings (N, 77, width) are a vector per token, so that tokens which both prompts share stay as they are.
    Directions follow Shoemake's formula, lengths change evenly.
    Raises InvalidRequest, also where a vector of `end` is the opposite of that of `start`: no arc is the shortest there.
    """
    _check_array(start, "start", 3, 4)
    _check_array(end, "end", start.ndim)
    if start.shape != end.shape:
        raise InvalidRequest(f"Got start of shape {start.shape} and end of shape {end.shape}, expected one shape.")
    share = check_share(t, "t")
    if share in (0, 1):
        return (end if share else start).copy()
    first, last, axes = start.astype(np.float64), end.astype(np.float64), _VECTORS[start.ndim]
    length, last_length = _length(first, axes), _length(last, axes)
    plain = (length == 0) | (last_length == 0)  # no direction
    direction, last_direction = first / np.where(plain, 1, length), last / np.where(plain, 1, last_length)
    # Kahan: exact for small angles too, where the arc cosine of the dot product is not
    angle = 2 * np.arctan2(_length(direction - last_direction, axes), _length(direction + last_direction, axes))
    if (~plain & (np.pi - angle < _SMALLEST_ANGLE)).any():
        raise InvalidRequest(
            "Got a start and an end that are opposites. Expected others, or a point between them first."
        )
    plain |= angle < _SMALLEST_ANGLE
    sine = np.where(plain, 1, np.sin(angle))
    turned = (np.sin((1 - share) * angle) * direction + np.sin(share * angle) * last_direction) / sine
    arc = ((1 - share) * length + share * last_length) * turned
    return np.where(plain, (1 - share) * first + share * last, arc).astype(np.float32)


def walk(pipe: Pipeline, start: Waypoint, end: Waypoint, frames: int, **options: Any) -> Iterator[Result]:
    """A result of one picture per frame, from one (prompt, seed) to another.

    The first and last frame are the plain calls of `start` and `end`. Between them prompt embeddings and noise are those of
    `slerp`, and the results name neither prompt nor seed. A seed of None is drawn once.
    frames: 2 or more. options: of a call, those in `WALK_OPTIONS`. Arguments are checked before the first frame is drawn.
    Raises InvalidRequest, Cancelled, OutputError.
    """
    (first, first_seed), (last, last_seed) = _waypoint(start, "start"), _waypoint(end, "end")
    count = check_frames(frames)
    if others := [name for name in options if name not in WALK_OPTIONS]:
        raise InvalidRequest(f"Got {', '.join(others)} for a walk, which takes {', '.join(WALK_OPTIONS)}.")
    embeds = [pipe.encode_prompt(prompt) for prompt in (first, last)]  # one by one, as the plain calls do
    size = check_size(options.get("height"), options.get("width"), pipe.bundle.sizes)
    shape = pipe.bundle.declared["denoiser"].outputs[0].at(*size).shape_at(1)
    (noise,) = randn([first_seed, last_seed], shape)

    def draw() -> Iterator[Result]:
        yield pipe(first, seed=first_seed, **options)
        for i in range(1, count - 1):
            t = i / (count - 1)
            between = {"prompt_embeds": slerp(embeds[0], embeds[1], t), "latents": slerp(noise[:1], noise[1:], t)}
            yield pipe(**between, **options)
        yield pipe(last, seed=last_seed, **options)

    return draw()


def check_frames(value: object) -> int:
    """The number of frames of a walk. Raises InvalidRequest."""
    try:
        frames = 0 if isinstance(value, bool) else operator.index(cast("SupportsIndex", value))
    except TypeError:
        frames = 0
    if not 2 <= frames <= MAX_FRAMES:
        given = f"{value!r:.80}" if abs(frames) <= MAX_FRAMES else "a larger number"
        raise InvalidRequest(
            f"Got frames={given}, expected a whole number from 2 to {MAX_FRAMES}: the first and the last are the ends."
        )
    return frames


def _waypoint(value: object, name: str) -> tuple[str, int]:
    if not isinstance(value, (tuple, list)) or len(cast("Sequence[object]", value)) != 2:
        raise InvalidRequest(f"Got {name}={value!r:.80}, expected (prompt, seed).")
    prompt, seed = cast("Sequence[object]", value)
    if not isinstance(prompt, str):
        raise InvalidRequest(f"Got the prompt {prompt!r:.80} in {name}, expected one text.")
    return check_prompts(prompt)[0], check_seeds(seed, 1)[0]


def _check_array(value: object, name: str, *axes: int) -> None:
    """Refuse anything but finite float32 with so many axes."""
    kinds = {3: "prompt embeddings (N, 77, width)", 4: "noise (N, 4, H/8, W/8)"}
    expected = f"expected {' or '.join(kinds[number] for number in axes)} in float32"
    if not isinstance(value, np.ndarray):
        raise InvalidRequest(f"Got {name} of type {type(value).__name__}, {expected}.")
    array = cast("F32", value)
    if array.ndim not in axes or array.dtype != np.float32 or array.size == 0:
        raise InvalidRequest(f"Got {name} {array.dtype} {array.shape}, {expected}.")
    if not np.isfinite(array).all():
        raise InvalidRequest(f"Got {name} with values that are not finite, {expected}.")


def _length(vectors: F64, axes: tuple[int, ...]) -> F64:
    return np.sqrt(np.square(vectors).sum(axis=axes, keepdims=True))
