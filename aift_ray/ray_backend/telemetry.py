"""Figures of a training run as Ray metrics, which every node exports to Prometheus."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge

from aift_ray.engine.device_memory import peak_memory_gb
from aift_ray.parallel.group import Group

# name in a line of metrics.jsonl: what it is
_FIGURES = {
    "step": "steps taken",
    "loss": "loss per supervised token of the step's global batch, in nats",
    "eval_loss": "loss per supervised token of the evaluation rows, in nats",
    "exact_match": "share of the held-out rows answered exactly, 0 to 1",
    "learning_rate": "learning rate of the step",
    "grad_norm": "norm of the gradient before clipping",
    "tokens_per_second": "tokens a second of all workers",
}


class Telemetry:
    """Exports what each step of a run has given; worker 0 speaks for all, each for its memory.

    Prometheus sees them as `ray_aift_train_NAME`, with labels `run` and, for memory, `worker`.

    Args:
        run: name of the run's folder.
    """

    def __init__(self, run: str, group: Group) -> None:
        self._device = group.device
        self._memory = Gauge(
            "aift_train_peak_memory_bytes",
            "peak memory of a worker: allocated on its GPU, else resident in the host",
            ("run", "worker"),
        )
        self._memory.set_default_tags({"run": run, "worker": str(group.rank)})
        self._gauges = {
            name: Gauge(f"aift_train_{name}", meaning, ("run",))
            for name, meaning in _FIGURES.items()
            if group.is_main_process
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def __call__(self, line: dict[str, Any]) -> None:
        """Show a line of metrics."""
        self._memory.set(peak_memory_gb(self._device) * 2**30)
        for name, gauge in self._gauges.items():
            if line.get(name) is not None:
                gauge.set(line[name])
