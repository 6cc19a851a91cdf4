"""What TensorRT says, for the log and for error texts.

TensorRT keeps one logger per process, the first that it was given, and every object speaks to that
(github.com/NVIDIA/TensorRT/issues/1475). So there is one, which lives as long as the process. It hands each message to the
`Messages` that listen in the speaker's thread. TensorRT's own threads speak to all that listen.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger("sdturbo")

_listening: list[tuple[int, Messages]] = []  # (thread, listener). Appending and removing are atomic


class Messages:
    """The last errors while it listened."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=4)

    @contextmanager
    def listening(self) -> Generator[None]:
        """Within it, errors that TensorRT reports in this thread, or in threads of its own, are kept."""
        entry = (threading.get_ident(), self)
        _listening.append(entry)
        try:
            yield
        finally:
            _listening.remove(entry)

    def take(self, text: str) -> None:
        self._errors.append(text.strip())

    def last(self) -> str:
        """The last errors as a sentence."""
        return "; ".join(self._errors).rstrip(".") + "." if self._errors else "it gives no reason."


@functools.cache
def logger(kind: type[tensorrt.ILogger]) -> tensorrt.ILogger:
    """The process's logger for a library. kind: its class ILogger. Kept for good: the library holds a bare pointer to it."""
    severities = kind.Severity
    errors = (severities.INTERNAL_ERROR, severities.ERROR)

    class Logger(kind):
        def __init__(self) -> None:
            kind.__init__(self)  # pybind11 wants the class by its name

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            is_error = severity in errors
            log.log(logging.WARNING if is_error else logging.DEBUG, "TensorRT: %s", msg)
            if is_error:
                tell(msg)

    return Logger()


def tell(text: str) -> None:
    """Hand an error to those who listen in this thread, or to all if nobody does."""
    thread, listeners = threading.get_ident(), list(_listening)
    here = {messages for speaker, messages in listeners if speaker == thread}
    for messages in here or {messages for _, messages in listeners}:
        messages.take(text)
