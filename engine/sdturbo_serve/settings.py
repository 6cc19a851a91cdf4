"""The operator's settings, checked before the server listens."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from sdturbo.errors import InvalidRequest
from sdturbo.files import read_text
from sdturbo_serve.names import host_name_of, origin_of, public_url_of

MIB = 2**20
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and keys of one server. Times are seconds.

    api_keys: each opens /v1 and /metrics, and without any they are open to all. allow_origins: origins of pages that may
    call, such as "https://example.org", or "*". allow_hosts: names in the Host header that are answered, such as LOOPBACK.
    If it is empty or has "*", all names are answered. Both are stored as `names` spells them. max_queue: pictures that wait
    for the engine or for the filter's verdict. deadline_s: from a request to its answer. body_s: for a request's body.
    max_upload_bytes: of a form with an image. max_image_pixels: of that image. max_live: open live connections.

    model_aliases: further names of the bundle's model. lenient: leave out what cannot be honoured, and say so in the answer.
    public_url: the address of this server for clients, below which links to pictures stand. None: no links. link_dir,
    link_key_file: a directory and a key that several servers share, so that each answers the links of all.

    a1111: answer AUTOMATIC1111's API too. api_auth: "name:password", each of which opens it in the place of a key.

    metadata: whether files of pictures say how they were made. All say that a model drew them.
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
    model_aliases: tuple[str, ...] = ()
    lenient: bool = False
    public_url: str | None = None
    link_dir: Path | None = None
    link_key_file: Path | None = None
    a1111: bool = False
    api_auth: tuple[str, ...] = ()
    metadata: bool = True

    def __post_init__(self) -> None:
        for name in ("max_queue", "deadline_s", "body_s", "max_upload_bytes", "max_image_pixels", "max_live"):
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"Got {name}={getattr(self, name)}. Expected more than 0.")
        object.__setattr__(self, "allow_origins", tuple(origin_of(text) for text in self.allow_origins))
        object.__setattr__(self, "allow_hosts", tuple(host_name_of(text) for text in self.allow_hosts))
        self._check_links()
        if self.api_auth and not self.a1111:
            raise InvalidRequest("Got --api-auth without --a1111, the API that it opens. API keys open the others.")
        if any(not all(login.partition(":")) for login in self.api_auth):
            raise InvalidRequest(
                "Got a value of --api-auth of another form. Expected name:password, several by commas."
            )
        if any(not 0 < len(name) <= 200 for name in self.model_aliases):
            raise InvalidRequest("Got an alias of the model that is empty or too long. Expected 1 to 200 characters.")
        for key in self.api_keys:
            if len(key) < 8 or not (key.isascii() and key.isprintable()) or " " in key:
                text = "Got an API key that is too short or has other characters. Expected 8 or more printable ASCII"
                raise InvalidRequest(f"{text} characters without spaces.")

    def _check_links(self) -> None:
        """Spell the public address, and answer its host. Raises InvalidRequest."""
        if (self.link_dir is None) != (self.link_key_file is None):
            raise InvalidRequest(
                "Got one of link_dir and link_key_file. Servers that answer each other's links need both."
            )
        if self.public_url is None:
            if self.link_dir is not None:
                raise InvalidRequest("Got link_dir without public_url, the address that links begin with.")
            return
        address = public_url_of(self.public_url)
        object.__setattr__(self, "public_url", address)
        if self.allow_hosts:
            name = host_name_of(urlsplit(address).netloc)
            object.__setattr__(self, "allow_hosts", tuple(dict.fromkeys((*self.allow_hosts, name))))


def find_keys(path: Path | None) -> tuple[str, ...]:
    """The API keys of a file, or without a file those of the variable SDTURBO_API_KEYS, separated by commas."""
    if path is not None:
        return read_keys(path)
    return tuple(key.strip() for key in os.environ.get("SDTURBO_API_KEYS", "").split(",") if key.strip())


def find_logins(text: str | None = None) -> tuple[str, ...]:
    """The names and passwords of a text, or without a text those of the variable SDTURBO_API_AUTH, separated by commas.

    Raises InvalidRequest for a text or a variable without any, which would leave the API open.
    """
    given = os.environ.get("SDTURBO_API_AUTH", "") if text is None else text
    logins = tuple(login.strip() for login in given.split(",") if login.strip())
    if not logins and (given or text is not None):
        source = "SDTURBO_API_AUTH=" if text is None else "--api-auth "
        raise InvalidRequest(
            f"Got {source}{given!r}, which holds no login. Expected name:password, several by commas. To take those of"
            " SDTURBO_API_AUTH, leave the option out. To ask for none, leave both out."
        )
    return logins


def read_keys(path: Path) -> tuple[str, ...]:
    """The API keys of a file, one per line. Empty lines and lines that start with # are skipped."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"The key file {path} cannot be read: {error}.") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise InvalidRequest(f"The key file {path} holds no key. Write one per line.")
    return keys


def check_shared_links(settings: Settings) -> None:
    """Raise InvalidRequest for links that other replicas could not answer, because one process keeps them in memory."""
    if settings.public_url is not None and settings.link_dir is None:
        raise InvalidRequest(
            "Got public_url without link_dir and link_key_file. Each replica would answer its own links alone. Give a"
            " directory and a key file that all replicas can read, or leave public_url out."
        )


def check_listen(host: str, *, has_key: bool, without_key: bool) -> None:
    """Raise InvalidRequest for an address that other machines can reach, unless there is a key or `without_key`."""
    if has_key or without_key or is_loopback(host):
        return
    raise InvalidRequest(
        f"Got --host {host}, which other machines can reach, and no API key. Anybody could use this engine."
        " Give --api-key-file (or SDTURBO_API_KEYS), or say --without-key."
    )


def answered_hosts(host: str, others: Sequence[str], *, has_key: bool) -> tuple[str, ...]:
    """`Settings.allow_hosts` of a server that listens on `host`.

    On loopback without a key they keep foreign pages out: LOOPBACK, `host` and `others`. Elsewhere all names are answered.
    """
    if has_key or not is_loopback(host):
        return ()
    return (*LOOPBACK, host, *others)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. Names other than localhost count as reachable from elsewhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
