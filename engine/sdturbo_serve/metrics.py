"""The metrics that Prometheus reads at /metrics. Each application has its own registry, so two in a process do not mix."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PICTURES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The names say unit and meaning. `stage` is a part of `Result.timings`, and `where` is "queue" or "engine"."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        times = partial(histogram, buckets=SECONDS)

        self.requests = counter("sdturbo_requests", "Answers, by route and status.", ["route", "status"])
        self.pictures = counter("sdturbo_pictures", "Pictures drawn.")
        self.stages = times("sdturbo_stage_seconds", "Time of a batch in each part.", ["stage"])
        self.queue = gauge("sdturbo_queue_pictures", "Pictures waiting for the engine.")
        self.waits = times("sdturbo_queue_wait_seconds", "Time from arrival to the engine.")
        self.batches = histogram("sdturbo_batch_size", "Pictures drawn together.", buckets=PICTURES)
        self.encoding = times("sdturbo_encode_seconds", "Time to encode a picture.", ["format"])
        self.cancelled = counter("sdturbo_cancelled", "Pictures given up because no client waits for them.", ["where"])
        self.refused = counter("sdturbo_refused", "Pictures refused because the queue was full.")
        self.deadlines = counter("sdturbo_deadline_exceeded", "Requests whose time ran out.")
        self.lost_recordings = gauge("sdturbo_lost_recordings", "CUDA graphs that could not be made.")
        self.live = gauge("sdturbo_live_streams", "Open live connections.")
        self.frames = counter(
            "sdturbo_live_frames", "Live requests: shown, superseded, skipped or failed.", ["outcome"]
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)
