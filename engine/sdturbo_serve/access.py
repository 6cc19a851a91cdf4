"""Access to the server: API keys, the origins of pages, and the names of this machine."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from sdturbo_serve.errors import ApiError
from sdturbo_serve.names import ALL
from sdturbo_serve.service import service_of

SUBPROTOCOL = "sdturbo.live"
KEY_PROTOCOL = "sdturbo.key."  # followed by the key in base64url without padding: browsers let a page set no header
_PORT = re.compile(r":\d*$")


def admit(connection: HTTPConnection) -> None:
    """Raise ApiError for a page of a foreign origin, and for a caller without a key where the settings have keys."""
    settings = service_of(connection).settings
    _check_origin(connection.headers, settings.allow_origins)
    if not settings.api_keys:
        return
    given = _given_key(connection.headers)
    if given is None:
        raise ApiError(401, "No API key. Send the header Authorization: Bearer <key>.", code="missing_api_key")
    matches = [hmac.compare_digest(given, key.encode()) for key in settings.api_keys]  # all: the time tells nothing
    if not any(matches):
        raise ApiError(401, "Wrong API key. Send one of this server's keys.", code="invalid_api_key")


def admit_login(connection: HTTPConnection) -> None:
    """Raise ApiError as `admit` does. A name and password of the settings open in the place of a key, by HTTP Basic."""
    settings = service_of(connection).settings
    scheme, _, given = connection.headers.get("authorization", "").partition(" ")
    if settings.api_auth and scheme.lower() != "bearer":
        _check_origin(connection.headers, settings.allow_origins)
        try:
            login = base64.b64decode(given.strip(), validate=True)
        except (binascii.Error, ValueError):
            login = b""
        matches = [hmac.compare_digest(login, known.encode()) for known in settings.api_auth]
        if scheme.lower() != "basic" or not any(matches):
            text = "No name and password, or wrong ones. Send those of --api-auth by HTTP Basic."
            raise ApiError(401, text, code="invalid_login", headers={"WWW-Authenticate": "Basic"})
    elif settings.api_auth and not settings.api_keys:
        raise ApiError(
            401, "This server has no API keys. Send a name and password by HTTP Basic.", code="invalid_login"
        )
    else:
        admit(connection)


def check_host(headers: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Raise ApiError unless the Host header, without its port, is in `allowed`. If that is empty or has "*", every host passes.

    This stops DNS rebinding. A foreign page can make its own name lead to this machine, and then counts as the same origin.
    Its requests still carry that name.
    """
    name = _PORT.sub("", headers.get("host", "")).lower().rstrip(".")
    if allowed and ALL not in allowed and name not in allowed:
        text = f"The host name {name[:80]!r} is not answered. The server's --allow-host admits it."
        raise ApiError(403, text, code="host")


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
    """Browsers send WebSockets and forms to other origins without asking, so the server checks."""
    origin = headers.get("origin")
    if origin is None or origin in allowed or ALL in allowed:
        return
    try:
        host = urlsplit(origin).netloc
    except ValueError:
        host = ""
    if not host or host != headers.get("host"):
        text = f"Pages of the origin {origin[:80]!r} may not call. The server's --allow-origin admits them."
        raise ApiError(403, text, code="origin")
