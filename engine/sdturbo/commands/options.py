"""Options that several commands share: the backend, the pictures' size, and what their files say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdturbo import backends
from sdturbo.backends import PRECISIONS, BackendChoice
from sdturbo.commands.console import FILE, size_or_none, turned

if TYPE_CHECKING:
    from sdturbo.image import ContentCredentials

WITHOUT_METADATA = (
    "--no-metadata: the files do not say how they were made: prompt, seed, steps, size, model and bundle id. They do say that a"
    " model drew them."
)


size_option = click.option(
    "--size",
    callback=size_or_none,
    help="Width x height of the pictures, such as 768x512. `sdturbo info` lists those of the bundle. Default: the first.",
)

metadata_option = click.option(
    "--no-metadata",
    "metadata",
    is_flag=True,
    callback=turned,
    help="Leave out of the files how they were made: prompt, seed, steps, size, model and bundle id. The mark that a model drew"
    " them stays in.",
)
credentials_option = click.option(
    "--content-credentials",
    type=FILE,
    nargs=2,
    metavar="CERT KEY",
    help="Sign every picture with C2PA. Two PEM files: the certificate with those of its issuers, and its private key.",
)


def backend_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose the backend. `function` takes them as one argument, `choice: BackendChoice`."""

    @click.option("--backend", default="auto", help=f"auto, or one of {', '.join(backends.names())}.")
    @click.option(
        "--device",
        help="Device that `sdturbo doctor` lists, such as cpu or cuda:0. Default: the backend's first that runs.",
    )
    @click.option("--precision", type=click.Choice(PRECISIONS), help="Default: the fastest for device and bundle.")
    @click.option("--threads", type=int, help="CPU threads. Default: all.")
    @functools.wraps(function)
    def with_choice(
        *, backend: str, device: str | None, precision: str | None, threads: int | None, **options: Any
    ) -> Any:
        return function(choice=BackendChoice(backend, device, precision, threads), **options)

    return with_choice


def load_credentials(files: tuple[Path, Path] | None) -> ContentCredentials | None:
    """The credentials of `--content-credentials`, if it was given."""
    from sdturbo.image import ContentCredentials

    return None if files is None else ContentCredentials.load(*files)


def open_marks(metadata: bool, files: tuple[Path, Path] | None) -> ContentCredentials | None:
    """The credentials of a command. Says what `--no-metadata` leaves out."""
    if not metadata:
        click.echo(WITHOUT_METADATA, err=True)
    return load_credentials(files)
