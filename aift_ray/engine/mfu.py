"""How much of what its GPUs could compute a run uses: model FLOPs utilization."""

from __future__ import annotations

from typing import Any

import torch

from aift_ray.engine.worker_run import Run
from aift_ray.planning.flops import peak


class Utilization:
    """Of a run on GPUs whose peak is known, in 16 bits; else it has nothing to say."""

    def __init__(self, run: Run) -> None:
        self._run, self._peak = run, self._peak_of_all(run)
        self._done = self._seconds = 0.0

    def of(self, line: dict[str, Any]) -> dict[str, float]:
        """`mfu` of a step, from 0 to 1, given its metrics; empty where it is not known."""
        flops = self._run.job.flops
        if self._peak is None or flops is None:
            return {}
        rows = [i for part in self._run.plan.share(line["step"] - 1, 0, 1) for i in part]
        done = flops.step(self._run.rows.lengths[rows], line["supervised_tokens"])
        seconds = line["tokens"] / line["tokens_per_second"]
        if line["step"] > 1:
            # the first step pays for warming up
            self._done, self._seconds = self._done + done, self._seconds + seconds
        return {"mfu": done / seconds / self._peak}

    def mean(self) -> float | None:
        """Of all steps but the first."""
        if self._peak is None or not self._seconds:
            return None
        return self._done / self._seconds / self._peak

    @staticmethod
    def _peak_of_all(run: Run) -> float | None:
        device = run.group.device
        if device.type != "cuda" or run.precision.compute == torch.float32:
            return None
        one = peak(torch.cuda.get_device_name(device))
        return one * run.group.world_size * run.config.parallel.gpus_a_worker if one else None
