"""The command `sdturbo walk`: the pictures between two prompts, as numbered files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdturbo.blend import walk
from sdturbo.commands.console import print_json
from sdturbo.errors import InvalidRequest
from sdturbo.image import ContentCredentials, save_png
from sdturbo.result import origin

if TYPE_CHECKING:
    from sdturbo.pipeline import Pipeline


def check_directory(out: Path) -> None:
    """Raise InvalidRequest for a path that can be no directory of frames, before the first is drawn."""
    if os.path.lexists(out) and not os.path.isdir(out):  # noqa: PTH112 (False where Path raises: a name that is too long)
        raise InvalidRequest(f"Got the file {out} as --out, expected a directory for the frames.")


def draw(
    pipe: Pipeline,
    start: tuple[str, int],
    end: tuple[str, int],
    frames: int,
    out: Path,
    *,
    metadata: bool,
    credentials: ContentCredentials | None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Write frame after frame, and tell of each. start, end: (prompt, seed). options: as of `blend.walk`.

    The first line of a frame's text is its prompt. Between the ends it names both ends and the frame's place.
    """
    digits = max(4, len(str(frames - 1)))
    ends = " to ".join(f"{prompt!r} with seed {seed}" for prompt, seed in (start, end))
    for i, result in enumerate(walk(pipe, start, end, frames, **options)):
        (picture,) = result.images
        if not result.seeds:
            picture.info["parameters"] = f"Frame {i} of {frames - 1} from {ends}{picture.info['parameters']}"
        path = out / f"{i:0{digits}}.png"
        save_png(picture, path, metadata=metadata, credentials=credentials)
        yield {"path": str(path), "timings_ms": result.timings, "dropped": result.dropped[0]}


def report(pipe: Pipeline, written: list[dict[str, Any]], seeds: tuple[int, int], *, as_json: bool) -> None:
    """Say what was written. seeds: of the first and the last frame."""
    if as_json:
        print_json({"frames": written, "seeds": list(seeds), **origin(pipe.bundle, pipe.backend)})
        return
    for text in dict.fromkeys(frame["dropped"] for frame in written if frame["dropped"]):
        click.echo(f"The model sees 77 tokens. It did not see: {text!r}", err=True)
    backend, total = pipe.backend, sum(frame["timings_ms"]["total"] for frame in written)
    click.echo(f"{backend.name} {backend.version}, {backend.device}, {backend.precision}")
    per_frame = total / len(written)
    first, last = written[0]["path"], written[-1]["path"]
    click.echo(f"{first} to {last}  seeds {seeds[0]} to {seeds[1]}  ms per frame: {per_frame:.1f}")
