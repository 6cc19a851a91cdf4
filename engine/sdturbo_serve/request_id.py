"""A request's name, the same in its answer and in the log of whoever it passed through."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def request_id(headers: Mapping[str, str]) -> str:
    """The X-Request-Id that came, or a new one where none came or what came is no name."""
    came = headers.get("x-request-id", "")
    return came if _NAME.fullmatch(came) else uuid.uuid4().hex
