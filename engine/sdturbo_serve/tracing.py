"""OpenTelemetry spans, where its library is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

INSTALLED = importlib.util.find_spec("opentelemetry") is not None


@contextmanager
def span(name: str, headers: Mapping[str, str] | None = None, **attributes: Any) -> Generator[Any]:
    """A current span, or None without the library. headers: their traceparent, if any, names the parent span."""
    if not INSTALLED:
        yield None
        return
    from opentelemetry import propagate, trace

    parent = propagate.extract(headers) if headers is not None else None
    with trace.get_tracer("sdturbo.serve").start_as_current_span(name, parent) as current:
        note(current, **attributes)
        yield current


def note(current: Any, **attributes: Any) -> None:
    """Write attributes to a span, each with the prefix "sdturbo."."""
    if current is not None:
        current.set_attributes({f"sdturbo.{key}": value for key, value in attributes.items()})
