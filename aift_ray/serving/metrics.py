"""Figures of a server for Prometheus."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aift_ray.serving.requests import Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meter:
    """Counts and times requests, by model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "aift_requests", "requests by how they ended", ["model", "end"], registry=registry
        )
        self.prompt_tokens = Counter(
            "aift_prompt_tokens", "tokens of prompts", ["model"], registry=registry
        )
        self.tokens = Counter(
            "aift_generated_tokens", "tokens of answers", ["model"], registry=registry
        )
        self.first = Histogram(
            "aift_time_to_first_token_seconds",
            "from the request to its first token",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.between = Histogram(
            "aift_inter_token_seconds",
            "between two tokens of an answer",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._gauges = [
            (name, Gauge(f"aift_{name}", meaning, registry=registry))
            for name, meaning in (
                ("running", "requests that have a slot"),
                ("waiting", "requests that wait for a slot"),
                ("cached_tokens", "tokens whose keys and values are held"),
            )
        ]

    def refused(self, model: str) -> None:
        """Count a request that found the queue full."""
        self.requests.labels(model, "refused").inc()

    def timer(self, model: str, prompt_tokens: int) -> Timer:
        """Counts one request from now on."""
        self.prompt_tokens.labels(model).inc(prompt_tokens)
        return Timer(self, model)

    def text(self) -> bytes:
        """In Prometheus' format."""
        figures = self._engine.figures()
        for name, gauge in self._gauges:
            gauge.set(getattr(figures, name))
        return generate_latest(self.registry)


@dataclass
class Timer:
    """Times one request."""

    meter: Meter
    model: str
    start: float = field(default_factory=time.monotonic)
    last: float | None = None
    over: bool = False

    def token(self) -> None:
        """A token has come."""
        now = time.monotonic()
        self.meter.tokens.labels(self.model).inc()
        if self.last is None:
            self.meter.first.labels(self.model).observe(now - self.start)
        else:
            self.meter.between.labels(self.model).observe(now - self.last)
        self.last = now

    def finished(self, end: str) -> None:
        """The request is over; the first call counts."""
        if not self.over:
            self.over = True
            self.meter.requests.labels(self.model, end).inc()
