"""Shared by all command lines: errors in words with their exit code, and one JSON document for machines."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from sdturbo.bundle.description import Size, parse_size
from sdturbo.errors import BackendUnavailable, Cancelled, SDTurboError
from sdturbo.files import expanded

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
TIDYING_S = 5.0


class UserPath(click.Path):
    """A path as a user writes it, which `expanded` reads."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        return super().convert(expanded(value), param, ctx)


class _Terminated(BaseException):
    """SIGTERM. As with KeyboardInterrupt, whatever is under way ends, and takes its unfinished files away."""


FILE = UserPath(path_type=Path)
SHOW_DEFAULTS = {"show_default": True}  # settings of a command line
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document for machines.")


def size_or_none(_context: click.Context, _option: click.Parameter, text: str | None) -> Size | tuple[None, None]:
    """(height, width) of `--size`, (None, None) without it."""
    return (None, None) if text is None else parse_size(text)


def turned(_context: click.Context, _option: click.Parameter, is_given: bool) -> bool:
    """The value of an option that switches something off: True without it."""
    return not is_given


def seed_or_none(context: click.Context, parameter: click.Parameter, value: str) -> int | None:
    """The value of an option for a seed: a whole number, or None for the word "random"."""
    if value == "random":
        return None
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a whole number nor the word random.") from None


def drawn_seed(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """As `seed_or_none`, with a seed drawn for the word "random". None without the option."""
    from sdturbo.request import random_seed

    if value is None:
        return None
    seed = seed_or_none(context, parameter, value)
    return random_seed() if seed is None else seed


def main(command: click.Command, name: str) -> NoReturn:
    """Run a command line and end the process with its exit status. SIGTERM ends it too, once no unfinished file is left."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a parent may have it ignored
        signal.signal(signal.SIGTERM, _Unwind())
    try:
        status = run(command, name)
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        status = 128 + signal.SIGTERM  # the first process of a container is not ended by its own signal
    sys.exit(status)


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status. No error reaches the user as a stack trace."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    try:
        result = command.main(args=list(arguments), prog_name=name, standalone_mode=False)
    except SDTurboError as error:
        return _fail(name, error, error.exit_code, as_json=as_json)
    except click.UsageError as error:
        if as_json:
            return _fail(name, error, error.exit_code, as_json=True)
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail(name, Cancelled("Interrupted."), Cancelled.exit_code, as_json=as_json)
    except BrokenPipeError:  # the reader of our output went away, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("SDTURBO_TRACEBACK"):
            raise
        text = f"internal error, {type(error).__name__}: {error}. Set SDTURBO_TRACEBACK=1 to see where, and report it."
        return _fail(name, RuntimeError(text), INTERNAL_ERROR, as_json=as_json)
    return result if isinstance(result, int) else 0


def require_libraries(command: str, libraries: Sequence[str], extra: str) -> None:
    """Raise BackendUnavailable unless a command's libraries are installed. extra: of sdturbo, brings them."""
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        raise BackendUnavailable(
            f"`{command}` needs {', '.join(missing)}, not installed here. In a clone of sdturbo, `pip install '.[{extra}]'`"
            " brings them."
        )


def print_json(document: Any) -> None:
    """One JSON document on one line of standard output."""
    click.echo(json.dumps(document, ensure_ascii=True))


class _Unwind:
    """The handler of SIGTERM. A second signal must not disturb the tidying, unless the first was lost.

    Python loses an exception that is raised while it destroys an object.
    """

    def __init__(self) -> None:
        self._again = 0.0

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if time.monotonic() >= self._again:
            self._again = time.monotonic() + TIDYING_S
            raise _Terminated


def _fail(name: str, error: Exception, status: int, *, as_json: bool) -> int:
    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": message, "exit_code": status}})
    click.echo(f"{name}: {message}", err=True)
    return status
