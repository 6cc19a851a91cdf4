"""Who may call: API keys, pages of which origin, and under which name of this machine."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import cast
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from sdturbo_serve.errors import ApiError
from sdturbo_serve.service import Service

SUBPROTOCOL = "sdturbo.live"
KEY_PROTOCOL = "sdturbo.key."  # followed by the key in base64url without padding: browsers let a page set no header
_PORT = re.compile(r":\d*$")


def admit(connection: HTTPConnection) -> None:
    """Raise ApiError unless the caller has a key, where keys are asked for, and comes from an admitted page."""
    settings = cast("Service", connection.app.state.service).settings
    _check_origin(connection.headers, settings.allow_origins)
    if not settings.api_keys:
        return
    given = _given_key(connection.headers)
    if given is None:
        raise ApiError(401, "No API key. Send the header Authorization: Bearer <key>.", code="missing_api_key")
    fits = [hmac.compare_digest(given, key.encode()) for key in settings.api_keys]  # all of them, whichever fits
    if not any(fits):
        raise ApiError(401, "Wrong API key.", code="invalid_api_key")


def check_host(headers: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Raise ApiError unless the Host header is an allowed one, whatever its port; none allowed means any is.

    Against DNS rebinding: a stranger's page whose name suddenly leads to this machine is of the same origin as the server,
    but its requests carry that name.
    """
    name = _PORT.sub("", headers.get("host", "")).lower()
    if allowed and name not in allowed:
        raise ApiError(403, "This host name is not answered; the server's --allow-host admits it.", code="host")


def _given_key(headers: Mapping[str, str]) -> bytes | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip().encode("latin-1")
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        text = protocol.strip()
        if text.startswith(KEY_PROTOCOL):
            text = text.removeprefix(KEY_PROTOCOL)
            try:
                return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            except (binascii.Error, ValueError):
                return b""
    return None


def _check_origin(headers: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Browsers ask nobody before a WebSocket or a form goes to another origin, so the server has to look."""
    origin = headers.get("origin")
    if origin is None or origin in allowed or _host_of(origin) == headers.get("host"):
        return
    raise ApiError(403, "Pages of this origin may not call; the server's --allow-origin admits them.", code="origin")


def _host_of(origin: str) -> str | None:
    """Host and port of an origin; None where it has none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
