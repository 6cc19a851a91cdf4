"""What the Hugging Face Hub and huggingface_hub answer, in words, each with the way out.

huggingface_hub is imported when it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Generator
from contextlib import contextmanager

from sdturbo.errors import BackendUnavailable, HubError, InvalidRequest, SDTurboError

# tokens by their form, and of addresses the user with the password, and the query, which may be a signature
_SECRET = re.compile(r"hf_\w+|(?i:(?<=bearer ))[^\s'\"]+|(?<=://)[^\s/@'\"]+(?=@)|(?<=\?)[^\s'\"?]*=[^\s'\"]*")


def require_hub(purpose: str) -> None:
    """Raise BackendUnavailable, with `purpose` in it, unless huggingface_hub is installed.

    It sends no telemetry for us: unless it is loaded already, it is told so before it is imported.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BackendUnavailable(
            f"{purpose} needs huggingface_hub, not installed here. In a clone of sdturbo, `pip install '.[hub]'` brings it."
        )
    disable_telemetry()


def disable_telemetry() -> None:
    """The Hub is then told no versions of libraries. A value that the user has set stays."""
    if not os.environ.get("HF_HUB_DISABLE_TELEMETRY"):
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@contextmanager
def hub_errors(doing: str) -> Generator[None]:
    """Errors of the Hub, of the network and of the disk become a HubError: "{doing}: " and the reason.

    Another name than owner/name becomes an InvalidRequest. huggingface_hub is imported in the block, because it refuses some
    settings at its import.
    """
    try:
        importlib.import_module("huggingface_hub.hf_api")  # by the package's own import, a failure would go to stdout
        yield
    except SDTurboError:  # InvalidRequest is a ValueError
        raise
    except Exception as error:
        classes = type(error).__mro__
        if any(name.__name__ == "HFValidationError" for name in classes):
            raise InvalidRequest(f"{error} Expected owner/name of a repository on the Hub, or a directory.") from error
        # an HTTPError or an InvalidURL of httpx, or of httpx2 in newer versions
        is_of_network = any(name.__module__.partition(".")[0] in ("httpx", "httpx2") for name in classes)
        # hf_xet, its library for transfers, raises RuntimeError. A proxy of SOCKS may need a package, whence ImportError
        if is_of_network or isinstance(error, (OSError, RuntimeError, ValueError, ImportError)):
            raise HubError(f"{doing}: {reason(error)}") from error
        raise


def reason(error: Exception) -> str:
    """The cause in words, and the remedy."""
    is_setting = isinstance(error, (ImportError, ValueError)) and not isinstance(error, OSError)
    if is_setting or type(error).__name__ == "InvalidURL":
        return (
            f"{without_token(f'{type(error).__name__}: {error}')}. Check HF_ENDPOINT and the proxies that the environment"
            " names: ALL_PROXY, HTTPS_PROXY, HTTP_PROXY."
        )
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
    """The text without tokens, passwords and queries of addresses, which a library may quote."""
    if token := _token():
        text = text.replace(token, "(token)")
    return _SECRET.sub("(token)", text)


def _token() -> str | None:
    """That of this user. None if it cannot be read."""
    try:
        from huggingface_hub import get_token

        return get_token()
    except (OSError, RuntimeError, ValueError, ImportError):
        return None
