"""Figures of a server for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from aift_ray.serving.engines.interface import Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Meter:
    """Counts and times requests, by model.

    Args:
        replica: what tells it from the other replicas' meters.
    """

    def __init__(self, engine: Engine, replica: str) -> None:
        self._engine, self._replica = engine, replica
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
        self._left_out = Gauge(
            "aift_adapters_left_out",
            "adapters of the server that this replica could not load",
            ["adapter"],
            registry=registry,
        )
        self._gauges = [
            (name, Gauge(f"aift_{name}", meaning, registry=registry))
            for name, meaning in (
                ("running", "requests that have a slot"),
                ("waiting", "requests that wait for a slot"),
                ("cached_tokens", "tokens whose keys and values are held"),
                (
                    "cache_tokens",
                    "tokens whose keys and values can be held; 0: no limit of its own",
                ),
                ("reused_tokens", "tokens of prompts that were computed for an earlier prompt"),
            )
        ]

    def refused(self, model: str) -> None:
        """Count a request that found the queue full."""
        self.requests.labels(model, "refused").inc()

    def left_out(self, adapter: str) -> None:
        """Tell of an adapter that could not be loaded."""
        self._left_out.labels(adapter).set(1)

    def forgotten(self, adapter: str) -> None:
        """Tell no more of an adapter."""
        with suppress(KeyError):
            self._left_out.remove(adapter)

    def timer(self, model: str, prompt_tokens: int) -> Timer:
        """Counts one request from now on."""
        self.prompt_tokens.labels(model).inc(prompt_tokens)
        return Timer(self, model)

    def families(self) -> list[Metric]:
        """The figures as they are now, each labelled with the replica."""
        figures = self._engine.figures()
        for name, gauge in self._gauges:
            gauge.set(getattr(figures, name))
        found = list(self.registry.collect())
        for metric in found:
            metric.samples = [
                sample._replace(labels=sample.labels | {"replica": self._replica})
                for sample in metric.samples
            ]
        return found


def exposition(replicas: Iterable[list[Metric]]) -> bytes:
    """The figures of all replicas in Prometheus' format."""
    merged: dict[str, Metric] = {}
    for families in replicas:
        for metric in families:
            if metric.name in merged:
                merged[metric.name].samples += metric.samples
            else:
                merged[metric.name] = metric
    return generate_latest(_Collected(list(merged.values())))


class _Collected(CollectorRegistry):
    """A registry of what was collected elsewhere."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Any:
        """The families as they are."""
        return iter(self._families)


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
