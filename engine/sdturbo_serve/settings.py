"""What an operator decides, checked before anything listens."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sdturbo.errors import InvalidRequest

MIB = 2**20
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and keys of one server. Times are seconds.

    api_keys: any of them opens /v1 and /metrics; none means open to all. allow_origins: pages of other origins, such as
    "https://example.org", that may call from a browser. allow_hosts: names in the Host header that are answered, without a
    port, such as LOOPBACK; none means any. max_queue: pictures that wait for the engine. deadline_s: from a request's
    arrival to its answer. max_upload_bytes, max_image_pixels: of a picture to start from. max_live: open live streams.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # where a config file gives them

    api_keys: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    max_queue: int = 64
    deadline_s: float = 60.0
    body_s: float = 20.0
    max_upload_bytes: int = 16 * MIB
    max_image_pixels: int = 25_000_000
    max_live: int = 64

    def __post_init__(self) -> None:
        for name in ("max_queue", "deadline_s", "body_s", "max_upload_bytes", "max_image_pixels", "max_live"):
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"Got {name}={getattr(self, name)}; expected more than 0.")
        for key in self.api_keys:
            if len(key) < 8 or not (key.isascii() and key.isprintable()) or " " in key:
                raise InvalidRequest(
                    "Got an API key that is short or odd; expected 8 or more printable ASCII characters."
                )


def find_keys(path: Path | None) -> tuple[str, ...]:
    """The API keys of a file or, without one, of the variable SDTURBO_API_KEYS, separated by commas."""
    if path is not None:
        return read_keys(path)
    return tuple(key.strip() for key in os.environ.get("SDTURBO_API_KEYS", "").split(",") if key.strip())


def read_keys(path: Path) -> tuple[str, ...]:
    """The API keys of a file, one a line; empty lines and lines that start with # are skipped."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"The key file {path} cannot be read: {error}.") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InvalidRequest(f"The key file {path} holds no key; write one a line.")
    return keys


def check_listen(host: str, *, has_key: bool, without_key: bool) -> None:
    """Raise InvalidRequest for an address that others can reach, unless there is a key or it was asked for so."""
    if has_key or without_key or is_loopback(host):
        return
    raise InvalidRequest(
        f"Got --host {host}, which other machines can reach, and no API key: anybody could use this engine."
        " Give --api-key-file (or SDTURBO_API_KEYS), or say --without-key."
    )


def answered_hosts(host: str, more: Sequence[str], *, has_key: bool) -> tuple[str, ...]:
    """`allow_hosts` of a server that listens on `host`: where nothing else keeps a stranger's page out, LOOPBACK and `more`."""
    if has_key or not is_loopback(host):
        return ()
    return (*LOOPBACK, host.lower(), *(name.lower() for name in more))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
