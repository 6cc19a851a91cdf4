"""A request's id. Its answer and the logs of every program on the way carry the same one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def read_request_id(headers: Mapping[str, str]) -> str:
    """The X-Request-Id of a request, or a new one if it has none or an invalid one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
