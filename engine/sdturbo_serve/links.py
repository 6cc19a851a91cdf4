"""Links to pictures: signed, good for minutes, from a store of bounded size.

A link says when it ends, and its signature says that this server made it. So it needs no API key. Servers with the same key
file and the same directory answer each other's links.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool

from sdturbo.errors import InvalidRequest
from sdturbo.files import expanded
from sdturbo_serve.encoding import Format
from sdturbo_serve.errors import ApiError
from sdturbo_serve.schemas import ERRORS
from sdturbo_serve.settings import MIB, Settings, read_keys

LINK_S = 600  # seconds
MAX_FILES, MAX_BYTES = 1000, 256 * MIB  # beyond these the oldest go

_NAME = re.compile(r"(\d{10,12})-[0-9a-f]{32}\.(png|jpeg|webp)")  # when it ends, by `time.time`, then the picture
_OURS = re.compile(_NAME.pattern + r"(\.[0-9a-f]{8}\.part)?")  # a part is a picture that is being written

log = logging.getLogger("sdturbo.serve")
router = APIRouter()


class Store(Protocol):
    """Files by name. Names sort by age."""

    def put(self, name: str, data: bytes) -> None: ...

    def get(self, name: str) -> bytes | None: ...


class MemoryStore:
    """The files of one process."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, name: str, data: bytes) -> None:
        with self._lock:
            self._files[name] = data
            self._bytes += len(data)
            while len(self._files) > MAX_FILES or self._bytes > MAX_BYTES or _has_ended(next(iter(self._files), name)):
                self._bytes -= len(self._files.popitem(last=False)[1])

    def get(self, name: str) -> bytes | None:
        with self._lock:
            return self._files.get(name)


class DirectoryStore:
    """The files of every server that uses the directory, for its user alone. Files of other names in it are left alone.

    `put` and `get` raise ApiError if the directory fails, such as a disk that is full.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        if not directory.is_dir() or not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise InvalidRequest(f"The directory of links {directory} is missing, or this user may not write to it.")

    def put(self, name: str, data: bytes) -> None:
        part = self._directory / f"{name}.{secrets.token_hex(4)}.part"
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            part.replace(self._directory / name)
            self._drop_oldest()
        except OSError as error:
            raise _directory_failed(error) from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    def get(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _directory_failed(error) from error

    def _drop_oldest(self) -> None:
        with os.scandir(self._directory) as entries:
            ours = sorted((entry for entry in entries if _OURS.fullmatch(entry.name)), key=lambda entry: entry.name)
        left = files = 0
        for entry in reversed(ours):
            try:
                left += entry.stat().st_size
                files += 1
                if files > MAX_FILES or left > MAX_BYTES or _has_ended(entry.name):
                    Path(entry.path).unlink()
            except FileNotFoundError:  # another server has dropped it
                continue
            except PermissionError:  # on Windows, a file that is being read stays
                if sys.platform != "win32":
                    raise


class Links:
    """Makes and answers links below `public_url`, an address without a closing slash."""

    def __init__(self, public_url: str, key: bytes, store: Store) -> None:
        self._public_url = public_url
        self._key = key
        self._store = store

    def add(self, data: bytes, output_format: Format) -> str:
        """The address at which `data` can be read for LINK_S seconds."""
        name = f"{int(time.time()) + LINK_S}-{secrets.token_hex(16)}.{output_format}"
        self._store.put(name, data)
        return f"{self._public_url}/links/{name}?signature={self._signature(name)}"

    def read(self, name: str, signature: str) -> tuple[bytes, str, int]:
        """(data, format, seconds that are left) of a link. Raises ApiError: 403, 410, 404."""
        parts = _NAME.fullmatch(name)
        if not parts or not hmac.compare_digest(signature.encode(), self._signature(name).encode()):
            raise ApiError(403, "This is no link of this server, or its signature is wrong.", code="link_invalid")
        if _has_ended(name):
            raise ApiError(410, f"The link has ended. Links are good for {LINK_S // 60} minutes.", code="link_ended")
        data = self._store.get(name)
        if data is None:
            raise ApiError(404, "The picture of this link is gone. Newer ones took its place.", code="link_gone")
        return data, parts[2], int(parts[1]) - int(time.time())

    def _signature(self, name: str) -> str:
        digest = hmac.digest(self._key, f"sdturbo link {name}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def open_links(settings: Settings) -> Links | None:
    """The links of a server, or None without a public address. Raises InvalidRequest."""
    if settings.public_url is None:
        return None
    if settings.link_dir is None or settings.link_key_file is None:
        return Links(settings.public_url, secrets.token_bytes(32), MemoryStore())
    key = read_keys(expanded(settings.link_key_file))[0]
    if len(key) < 16:
        raise InvalidRequest(f"The key in {settings.link_key_file} is too short. Expected 16 or more characters.")
    return Links(settings.public_url, key.encode(), DirectoryStore(expanded(settings.link_dir)))


@router.get(
    "/links/{name}",
    responses={**ERRORS, 410: ERRORS[404], 200: {"content": {"image/*": {}}, "description": "The picture."}},
    response_class=Response,
)
async def linked_picture(name: str, signature: str, request: HttpRequest) -> Response:
    """The picture of a link that an answer with `response_format: "url"` gave."""
    links: Links = request.app.state.service.links
    data, output_format, seconds = await run_in_threadpool(links.read, name, signature)
    headers = {"Cache-Control": f"private, max-age={max(0, seconds)}"}
    return Response(data, media_type=f"image/{output_format}", headers=headers)


def _has_ended(name: str) -> bool:
    return int(name.partition("-")[0]) < time.time()


def _directory_failed(error: OSError) -> ApiError:
    """The answer to a client, which is not told the path. The log is."""
    log.error("the directory of links failed", exc_info=error)
    reason = error.strerror or type(error).__name__
    text = f"The server's directory of links failed: {reason}. Try again later, or ask for response_format 'b64_json'."
    return ApiError(503, text, code="links_failed")
