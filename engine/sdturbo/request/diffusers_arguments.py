"""Arguments that diffusers' pipelines take and a call here does not: what they mean, or why they are refused.

Those that change nothing are taken. A fresh `torch.Generator` of the CPU is its seed. torch is not imported. A caller
with a generator has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sdturbo.errors import InvalidRequest

# argument -> the values that change nothing, and why others are refused
_WITHOUT_EFFECT: dict[str, tuple[tuple[object, ...], str]] = {
    "guidance_scale": ((None, 0), "SD-Turbo was trained without guidance. Leave it out, or pass 0"),
    "negative_prompt": ((None, ""), "It works through guidance, which SD-Turbo has none of. Leave it out"),
    "callback_on_step_end": (
        (None,),
        "Steps are not interrupted. `cancel` stops a call, `stream` draws several requests",
    ),
}


def understood(
    others: Mapping[str, Any], sizes: Sequence[tuple[int, int]], known: Sequence[str]
) -> int | list[int] | None:
    """The seeds that the arguments `others` ask for, None if they name none.

    sizes: (height, width) of the bundle. known: the arguments of a call.
    Raises InvalidRequest for an argument that diffusers would have honoured, and for unknown ones.
    """
    left = dict(others)
    for name, (harmless, reason) in _WITHOUT_EFFECT.items():
        if name in left and not _is_one_of(value := left.pop(name), harmless):
            raise InvalidRequest(f"Got {name}={value!r:.80}. {reason}.")
    _check_size(left, sizes)
    generator = left.pop("generator", None)
    if left:
        raise InvalidRequest(f"Got a request with {list(left)!r:.80}, expected names of {', '.join(known)}.")
    if generator is None:
        return None
    if isinstance(generator, (list, tuple)):
        return [_seed_of(each, f"generator[{i}]") for i, each in enumerate(cast("Sequence[object]", generator))]
    return [_seed_of(generator, "generator")]


def _is_one_of(value: object, harmless: tuple[object, ...]) -> bool:
    """Whether it is one of them. Arrays are not compared."""
    return value is None or (isinstance(value, (int, float, str)) and value in harmless)


def _check_size(left: dict[str, Any], sizes: Sequence[tuple[int, int]]) -> None:
    """Take height and width out of `left`. Raises InvalidRequest unless a picture of the bundle has them."""
    height, width = left.pop("height", None), left.pop("width", None)
    if any(height in (None, high) and width in (None, wide) for high, wide in sizes[:1]):
        return
    offered = ", ".join(f"{high}x{wide}" for high, wide in sizes)
    raise InvalidRequest(
        f"Got height={height!r:.20} and width={width!r:.20}. This bundle draws {offered} (height x width)."
    )


def _seed_of(generator: Any, name: str) -> int:
    """The seed of a `torch.Generator` that has drawn nothing yet.

    Only then the noise of a seed is what it would draw next.
    """
    try:
        seed, state, device = int(generator.initial_seed()), generator.get_state(), str(generator.device)
        fresh = type(generator)()
        fresh.manual_seed(seed)
        is_fresh = bool((fresh.get_state() == state).all())
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        kind = type(generator).__name__
        raise InvalidRequest(
            f"Got {name} of type {kind}, expected a torch.Generator, or seed=… in its place."
        ) from error
    if device != "cpu":
        raise InvalidRequest(f"Got {name} on {device}, whose noise is another. Expected one on the CPU, or seed=….")
    if not is_fresh:
        raise InvalidRequest(f"Got {name} that has drawn already. Expected a fresh one, or seed=… in its place.")
    return seed
