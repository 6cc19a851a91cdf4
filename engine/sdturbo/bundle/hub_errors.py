"""What the Hugging Face Hub and huggingface_hub answer, in words, each with the way out.

huggingface_hub is imported when it is used.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Generator
from contextlib import contextmanager

from sdturbo.errors import BackendUnavailable, HubError, InvalidRequest, SDTurboError

_TOKEN = re.compile(r"hf_\w+|(?<=Bearer )[^\s'\"]+")


def require_hub(purpose: str) -> None:
    """Raise BackendUnavailable, with `purpose` in it, unless huggingface_hub is installed.

    It sends no telemetry for us: unless it is loaded already, it is told so before it is imported.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BackendUnavailable(
            f"{purpose} needs huggingface_hub, not installed here. In a clone of sdturbo, `pip install '.[hub]'` brings it."
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextmanager
def hub_errors(doing: str) -> Generator[None]:
    """Errors of the Hub, of the network and of the disk become a HubError: "{doing}: " and the reason.

    Another name than owner/name becomes an InvalidRequest.
    """
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] (httpx's, or httpx2's in newer versions)
    )

    try:
        yield
    except SDTurboError:  # InvalidRequest is a ValueError
        raise
    except HFValidationError as error:
        raise InvalidRequest(f"{error} Expected owner/name of a repository on the Hub, or a directory.") from error
    except (
        OSError,
        HTTPError,
        RuntimeError,
        ValueError,
    ) as error:  # hf_xet, its library for transfers, raises RuntimeError
        raise HubError(f"{doing}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The cause in words, and the remedy."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(cause, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the Hub's cache does not hold all its files. Unset it."
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if isinstance(cause, RevisionNotFoundError):
        return f"the Hub answered {status}: the repository is there, but has no such revision. Check it."
    if isinstance(cause, GatedRepoError):
        return (
            f"the Hub answered {status}: the repository is gated. Ask for access on its page, and log in with `hf auth"
            " login` or set HF_TOKEN."
        )
    if status in (401, 403):
        return (
            f"the Hub answered {status}: the name is wrong, or the repository is private or gated, or the token in use does"
            " not open it. Check the name. Ask for access on the repository's page if it is gated, and log in with `hf auth"
            " login` or set HF_TOKEN."
        )
    if status == 404:
        return "the Hub answered 404: there is no such repository, or no such revision in it. Check both."
    return (
        f"{without_token(f'{type(cause).__name__}: {cause}')}. Check the connection and the free disk space, then try again:"
        " finished files are kept."
    )


def without_token(text: str) -> str:
    """The text without tokens, which a library may quote."""
    return _TOKEN.sub("(token)", text)
