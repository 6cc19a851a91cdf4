"""The options of every command that reads a bundle, and the bundle that they name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdturbo.files import expanded

if TYPE_CHECKING:
    from sdturbo.backends import BackendChoice
    from sdturbo.bundle import Bundle
    from sdturbo.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class BundleChoice:
    """path: a directory, or owner/name on the Hub. None is the embedded model. revision: on the Hub, None is main."""

    path: str | None = None
    revision: str | None = None


def bundle_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose the bundle. `function` takes them as one argument, `bundle: BundleChoice`."""

    @click.option(
        "--bundle",
        "path",
        envvar="SDTURBO_BUNDLE",
        help="Bundle directory, or owner/name of a bundle on the Hugging Face Hub. Default: tiny, the toy model that comes"
        " with sdturbo. [env: SDTURBO_BUNDLE]",
    )
    @click.option(
        "--revision", help="Commit, tag or branch of a bundle on the Hub. Default: main. A commit never changes."
    )
    @functools.wraps(function)
    def with_bundle(*, path: str | None, revision: str | None, **options: Any) -> Any:
        return function(bundle=BundleChoice(path, revision), **options)

    return with_bundle


def load_bundle(bundle: BundleChoice) -> Bundle:
    """The whole bundle, every file hashed."""
    from sdturbo.backends.opening import open_bundle

    return open_bundle(_path(bundle), bundle.revision)


def load_pipeline(bundle: BundleChoice, choice: BackendChoice, *, image_to_image: bool = True) -> Pipeline:
    from sdturbo.pipeline import Pipeline

    options = dataclasses.asdict(choice)
    return Pipeline.load(_path(bundle), revision=bundle.revision, image_to_image=image_to_image, **options)


def where(bundle: str | Path) -> str | Path:
    """A directory, with `~` as the home, or a name on the Hub."""
    return expanded(bundle) if str(bundle).startswith("~") else bundle


def _path(bundle: BundleChoice) -> str | Path:
    from sdturbo.bundle import EMBEDDED

    if bundle.path is None:
        note = "No --bundle: this is the embedded toy model `tiny`, not SD-Turbo. `make engines MODEL=…` builds others."
        click.echo(note, err=True)
        return EMBEDDED
    return where(bundle.path)
