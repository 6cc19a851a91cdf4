"""What Prometheus reads at /metrics. One registry an application, so that two in one process do not meet."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The names say unit and meaning; `stage` is a part of `Result.timings`, `where` "queue" or "engine"."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "sdturbo_requests", "Answers, by route and status.", ["route", "status"], registry=registry
        )
        self.pictures = Counter("sdturbo_pictures", "Pictures drawn.", registry=registry)
        self.stages = Histogram(
            "sdturbo_stage_seconds",
            "Time of a batch in each part.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.waits = Histogram(
            "sdturbo_queue_wait_seconds", "Time from arrival to the engine.", buckets=SECONDS, registry=registry
        )
        self.batches = Histogram(
            "sdturbo_batch_size", "Pictures drawn together.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.encoding = Histogram(
            "sdturbo_encode_seconds", "Time to encode a picture.", ["format"], buckets=SECONDS, registry=registry
        )
        self.cancelled = Counter(
            "sdturbo_cancelled", "Pictures given up because nobody waits for them.", ["where"], registry=registry
        )
        self.refused = Counter("sdturbo_refused", "Pictures refused: the queue was full.", registry=registry)
        self.deadlines = Counter("sdturbo_deadline_exceeded", "Requests whose time ran out.", registry=registry)
        self.live = Gauge("sdturbo_live_streams", "Open live streams.", registry=registry)
        self.frames = Counter(
            "sdturbo_live_frames", "Live requests: shown, superseded or failed.", ["outcome"], registry=registry
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        gauge = Gauge("sdturbo_queue_pictures", "Pictures waiting for the engine.", registry=self.registry)
        gauge.set_function(length)

    def text(self) -> bytes:
        return generate_latest(self.registry)
