"""Origins and host names as an operator may write them, in the spelling that browsers send.

A spelling that no browser would ever send is refused with the right one, so that no name is accepted and never matched.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from sdturbo.errors import InvalidRequest

ALL = "*"
OPAQUE = "null"  # the origin of files and sandboxed frames
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")


def origin_of(text: str) -> str:
    """The origin that a browser sends for the page `text`, or "*" for all. Raises InvalidRequest.

    Capitals, a closing slash and a scheme's default port make no difference.
    """
    given = text.strip()
    if given in (ALL, OPAQUE):
        return given
    what = f"Got the origin {text[:200]!r}."
    if "://" not in given:
        raise InvalidRequest(
            f"{what} An origin begins with a scheme. Write http://{given or 'example.org'} or https://…."
        )
    parts = _split(given, what)
    scheme = parts.scheme.lower()
    if scheme == "file":
        raise InvalidRequest(f"{what} Browsers send the word null for files. Write null.")
    if not _SCHEME.fullmatch(scheme) or "@" in parts.netloc:
        raise InvalidRequest(f"{what} Expected a scheme and a host, such as https://example.org.")
    port = _port(parts, what)
    is_default = port == _DEFAULT_PORTS.get(scheme)
    origin = f"{scheme}://{_host(parts.hostname or '', what)}" + ("" if port is None or is_default else f":{port}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidRequest(f"{what} An origin has no path. Write {origin}.")
    return origin


def public_url_of(text: str) -> str:
    """An address under which clients reach this server, without a closing slash. Raises InvalidRequest."""
    what = f"Got the public address {text[:200]!r}."
    parts = _split(text.strip(), what)
    if parts.scheme.lower() not in _DEFAULT_PORTS or parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidRequest(f"{what} Expected one such as https://example.org or https://example.org/pictures.")
    origin = origin_of(f"{parts.scheme}://{parts.netloc}")
    return origin + quote(parts.path.rstrip("/"), safe="/%")


def host_name_of(text: str) -> str:
    """The name in the Host header of requests to `text`, without a port, or "*" for all. Raises InvalidRequest."""
    given = text.strip()
    if given == ALL:
        return ALL
    what = f"Got the host name {text[:200]!r}."
    if "://" in given or "/" in given:
        name = _split(given if "://" in given else f"//{given}", what).hostname or ""
        raise InvalidRequest(f"{what} A host name has no scheme and no path. Write {_host(name, what)}.")
    if _is_address(given):  # IPv6 without its brackets
        return _host(given, what)
    parts = _split(f"//{given}", what)
    _port(parts, what)
    if "@" in given:
        raise InvalidRequest(f"{what} Expected a name such as example.org.")
    return _host(parts.hostname or "", what)


def listen_host_of(text: str) -> str:
    """The host to listen on, of `text` as an operator writes it: IPv6 with or without the brackets that links need."""
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else ""
    return inside if ":" in inside else text


def url_of(address: Sequence[Any]) -> str:
    """The link to a server on a socket's address, (host, port) or longer."""
    host, port, *_ = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _split(text: str, what: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise InvalidRequest(f"{what} It cannot be read: {error}.") from error


def _port(parts: SplitResult, what: str) -> int | None:
    try:
        return parts.port
    except ValueError as error:
        raise InvalidRequest(f"{what} Its port is no number from 0 to 65535.") from error


def _host(name: str, what: str) -> str:
    """A host in the spelling of a URL: small letters, IPv6 in brackets, other alphabets in Punycode."""
    if "*" in name:
        text = "A part of a name cannot stand for others. Give the option once per name, or write * alone for all."
        raise InvalidRequest(f"{what} {text}")
    if _is_address(name):
        address = ipaddress.ip_address(name)
        return f"[{address}]" if address.version == 6 else str(address)
    try:
        ascii_name = name.lower().rstrip(".").encode("idna").decode()
    except UnicodeError:
        ascii_name = ""
    if not all(_LABEL.fullmatch(label) for label in ascii_name.split(".")):
        raise InvalidRequest(f"{what} Expected one name, such as example.org. Give the option once per name.")
    return ascii_name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
