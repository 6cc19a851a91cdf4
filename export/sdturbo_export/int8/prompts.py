"""The prompts that calibrate and the prompts that judge, which are never the same."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sdturbo.errors import InvalidRequest
from sdturbo.files import read_text
from sdturbo_export.int8.quality import LEAST_PROMPTS
from sdturbo_export.weights.checkpoint import Checkpoint
from sdturbo_export.weights.resolve import TINY

CALIBRATION_PROMPTS = 16
MAX_PROMPTS = 256  # of a file, for each is a picture to draw


@dataclass(frozen=True, slots=True)
class Prompts:
    """calibration: the activations' ranges come from these. judging: the gate draws these."""

    calibration: tuple[str, ...]
    judging: tuple[str, ...]


def prompts_for(checkpoint: Checkpoint, calibration: Path | None) -> Prompts:
    """The built-in lists, tiny's own for tiny. `calibration`, a text file with one prompt per line, replaces the first.

    Raises InvalidRequest for a file that cannot be read, or holds no prompt, too many, or one that judges.
    """
    built_in = _tiny() if checkpoint.source == TINY else _general()
    if calibration is None:
        return built_in
    return Prompts(_read(calibration, built_in.judging), built_in.judging)


def _read(file: Path, judging: tuple[str, ...]) -> tuple[str, ...]:
    try:
        lines = read_text(file).splitlines()
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"The calibration prompts cannot be read from {file}: {error}. Expected a text file in UTF-8 with one"
            " prompt per line."
        ) from error
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise InvalidRequest(
            f"{file} holds {len(prompts)} different prompts. Expected 1 to {MAX_PROMPTS}, one per line. Good ranges need 16"
            " or more."
        )
    if shared := sorted(set(prompts) & set(judging)):
        raise InvalidRequest(
            f"{file} holds {len(shared)} of the prompts that judge the result, such as {shared[0]!r}: take them out."
        )
    return prompts


def _tiny() -> Prompts:
    """Captions spread over the combinations that tiny was trained on, and over those that it was not."""
    lists = ("tiny/training_captions.txt", CALIBRATION_PROMPTS), ("tiny/held_out_captions.txt", LEAST_PROMPTS)
    return Prompts(*(_spread(_lines(name), count) for name, count in lists))


def _general() -> Prompts:
    return Prompts(_lines("int8/calibration.txt"), _lines("int8/judging.txt"))


def _lines(name: str) -> tuple[str, ...]:
    return tuple(files("sdturbo_export").joinpath(name).read_text(encoding="utf-8").splitlines())


def _spread(lines: tuple[str, ...], count: int) -> tuple[str, ...]:
    return tuple(lines[i * len(lines) // count] for i in range(count))
