"""A caller's own filter of prompts and pictures. It fails closed: without its verdict, nothing is given. None is shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from PIL import Image

from sdturbo.errors import FilterFailed, InvalidRequest, Refused
from sdturbo.request.accept import Job

T = TypeVar("T")


class Filter(Protocol):
    """Two questions before a picture is given. Each answers with the reason to refuse, or None.

    Several threads may ask at once.
    """

    def check_prompt(self, prompt: str) -> str | None:
        """Called before anything is drawn, with the whole prompt."""
        ...

    def check_picture(self, picture: Image.Image) -> str | None:
        """Called with every drawn picture, RGB, which stays as it is."""
        ...


def check_filter(candidate: object) -> None:
    """Raise InvalidRequest for an object that lacks one of the methods."""
    lacks = [name for name in ("check_prompt", "check_picture") if not callable(getattr(candidate, name, None))]
    if lacks or isinstance(candidate, type):
        what = f"without {' and '.join(lacks)}" if lacks else "in place of an instance of it"
        raise InvalidRequest(
            f"Got a filter of type {type(candidate).__name__} {what}. Expected an object with check_prompt(prompt) and"
            " check_picture(picture), which return the reason to refuse, or None."
        )


def pass_request(filter: Filter, job: Job) -> None:
    """Raise Refused, or FilterFailed, for a prompt, and InvalidRequest for latents, which the filter cannot see.

    Prompts behind prompt_embeds were seen by `encode_prompt`, if the same pipeline made them. Others are not seen.
    """
    if not job.ends_in_pictures:
        raise InvalidRequest("Got output_type='latent', but the pipeline's filter sees pictures. Take 'np' or 'pil'.")
    if not job.prompt_embeds:
        with job.clock.part("filter"):
            pass_prompts(filter, job.prompts)


def pass_prompts(filter: Filter, prompts: Iterable[str]) -> None:
    """Raise Refused, or FilterFailed, unless all prompts pass."""
    for prompt in prompts:
        _pass(filter.check_prompt, prompt, "check_prompt")


def pass_pictures(filter: Filter, pictures: Iterable[Image.Image]) -> None:
    """Raise Refused, or FilterFailed, unless all pictures pass."""
    for picture in pictures:
        _pass(filter.check_picture, picture, "check_picture")


def _pass(check: Callable[[T], object], subject: T, name: str) -> None:
    try:
        reason = check(subject)
    except (Refused, KeyboardInterrupt):
        raise
    except BaseException as error:  # such as the CancelledError of asyncio.run, or SystemExit
        text = f"The filter's {name} raised {type(error).__name__}, so the request was refused."
        raise FilterFailed(text) from error
    if isinstance(reason, str):
        raise Refused(reason)
    if reason is not None:
        raise FilterFailed(
            f"The filter's {name} returned a {type(reason).__name__}, so the request was refused. Expected the reason to refuse"
            " as text, or None."
        )
