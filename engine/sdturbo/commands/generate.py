"""The command `sdturbo generate`: pictures of one prompt, or of each line of a file, as files or on standard output."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdturbo.commands.console import print_json
from sdturbo.errors import InvalidRequest
from sdturbo.files import decode_text, read_text

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdturbo.image import ContentCredentials
    from sdturbo.pipeline import Pipeline
    from sdturbo.result import Result

STANDARD = Path("-")  # input or output


def prompts_of(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, or those of the file, one per line. Empty lines are left out. "-" is standard input.

    Raises InvalidRequest without one of both, or for a file that cannot be read or holds no prompt.
    """
    if (prompt is None) == (file is None):
        raise InvalidRequest(
            "Got both a PROMPT and --prompts." if file else "Got no PROMPT. Give one, or --prompts FILE."
        )
    if file is None:
        return [prompt or ""]
    try:
        text = decode_text(sys.stdin.buffer.read()) if file == STANDARD else read_text(file)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"Cannot read the prompts of {file}: {error}. Expected a text file in UTF-8.") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InvalidRequest(f"The file {file} holds no prompt. Expected one per line.")
    return prompts


def check_out(out: Path, pictures: int) -> None:
    """Raise InvalidRequest for an output that cannot take so many pictures, before the first is drawn."""
    from sdturbo.image import format_of

    if out == STANDARD:
        if pictures > 1:
            raise InvalidRequest(f"Got --out - for {pictures} pictures. Standard output takes one. Name a file.")
        if sys.stdout.isatty():
            raise InvalidRequest("Got --out - on a terminal, which shows no picture. Redirect it: `> cat.png`.")
        return
    if os.path.isdir(out):  # noqa: PTH112 (False where Path raises: a name that is too long)
        raise InvalidRequest(f"Got the directory {out} as --out, expected the name of a file.")
    format_of(out)


def write(
    picture: Image, out: Path, number: int, pictures: int, *, metadata: bool, credentials: ContentCredentials | None
) -> Path:
    """Write picture `number` of so many. Returns its path, `out` with the number in it if there are several.

    metadata, credentials: as of `save_image`.
    """
    from sdturbo.image import save_image, write_image

    if out == STANDARD:
        whole = io.BytesIO()
        write_image(picture, whole, "png", metadata=metadata, credentials=credentials)
        sys.stdout.buffer.write(whole.getvalue())
        sys.stdout.buffer.flush()
        return out
    path = out if pictures == 1 else out.with_stem(f"{out.stem}-{number}")
    save_image(picture, path, metadata=metadata, credentials=credentials)
    return path


def entry(path: Path, prompt: str, result: Result) -> dict[str, Any]:
    """What is said of a written picture. dropped: the text that the model did not see."""
    return {
        "path": str(path),
        "prompt": prompt,
        "seed": result.seeds[0],
        "timings_ms": result.timings,
        "dropped": result.dropped[0],
    }


def report(pipe: Pipeline, written: list[dict[str, Any]], *, as_json: bool, to_error: bool) -> None:
    """Say what was written. to_error: on standard error, because standard output has the picture."""
    from sdturbo.result import origin

    if as_json:
        print_json({"images": written, "dropped": written[-1]["dropped"], **origin(pipe.bundle, pipe.backend)})
        return
    for text in dict.fromkeys(each["dropped"] for each in written if each["dropped"]):
        click.echo(f"The model sees 77 tokens. It did not see: {text!r}", err=True)
    backend = pipe.backend
    click.echo(f"{backend.name} {backend.version}, {backend.device}, {backend.precision}", err=to_error)
    for each in written:
        parts = "  ".join(f"{name} {ms:.1f}" for name, ms in each["timings_ms"].items())
        click.echo(f"{each['path']}  seed {each['seed']}  ms: {parts}", err=to_error)
