"""Arguments that diffusers' pipelines take and a call here does not: what they mean, or why they are refused.

Those that change nothing are taken. A fresh `torch.Generator` of the CPU is its seed. torch is not imported. A caller
with a generator has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sdturbo.errors import InvalidRequest

# argument -> the values beside None that change nothing, and why others are refused
_WITHOUT_EFFECT: dict[str, tuple[tuple[object, ...], str]] = {
    "guidance_scale": ((0,), "SD-Turbo was trained without guidance. Leave it out, or pass 0"),
    "negative_prompt": (("",), "It works through guidance, which SD-Turbo has none of. Leave it out"),
    "callback_on_step_end": (
        (),
        "Steps are not interrupted. `cancel` stops a call, `stream` draws several requests",
    ),
}


def understood(others: Mapping[str, Any], known: Sequence[str]) -> list[int] | None:
    """The seeds that the arguments `others` ask for, None if they name none.

    known: the arguments of a call.
    Raises InvalidRequest for an argument that diffusers would have honoured, and for unknown ones.
    """
    left = dict(others)
    for name, (harmless, reason) in _WITHOUT_EFFECT.items():
        if name in left and not _is_one_of(value := left.pop(name), harmless):
            raise InvalidRequest(f"Got {name}={value!r:.80}. {reason}.")
    generator = left.pop("generator", None)
    if left:
        raise InvalidRequest(f"Got a request with {list(left)!r:.80}, expected names of {', '.join(known)}.")
    if generator is None:
        return None
    if isinstance(generator, (list, tuple)):
        return [_seed_of(each, f"generator[{i}]") for i, each in enumerate(cast("Sequence[object]", generator))]
    return [_seed_of(generator, "generator")]


def _is_one_of(value: object, harmless: tuple[object, ...]) -> bool:
    """Whether it is None or one of them. Arrays are not compared."""
    return value is None or (isinstance(value, (int, float, str)) and value in harmless)


def _seed_of(generator: Any, name: str) -> int:
    """The seed of a `torch.Generator` that has drawn nothing yet.

    Only then the noise of a seed is what it would draw next.
    """
    try:
        seed, device = int(generator.initial_seed()), str(generator.device)
    except (AttributeError, TypeError, ValueError) as error:
        kind = type(generator).__name__
        raise InvalidRequest(
            f"Got {name} of type {kind}, expected a torch.Generator, or seed=… in its place."
        ) from error
    if device != "cpu":  # its state has another form
        raise InvalidRequest(f"Got {name} on {device}, whose noise is another. Expected one on the CPU, or seed=….")
    fresh = type(generator)()
    fresh.manual_seed(seed)
    if not (fresh.get_state() == generator.get_state()).all():
        raise InvalidRequest(f"Got {name} that has drawn already. Expected a fresh one, or seed=… in its place.")
    return seed
