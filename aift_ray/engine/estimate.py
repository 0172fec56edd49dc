"""The speed that a plan would have told of a run, to compare its own with."""

from __future__ import annotations

import torch

from aift_ray.data.batch_plan import BatchPlan
from aift_ray.engine.device_memory import work_of
from aift_ray.engine.worker_run import Run
from aift_ray.models.model_stats import measured
from aift_ray.planning import measured_rates, speed
from aift_ray.planning.gpu_specs import Card, of_name


def estimated(run: Run) -> float | None:
    """Tokens a second of all workers, computed; None: the speed of the device is not known.

    What `aift-ray doctor --bench` measured of this device counts, else the data sheet of a GPU that
    `aift-ray plan` knows, in 16 bits.
    """
    card = _card(run)
    # speeds of generation are not known
    if card is None or run.rollouts is not None:
        return None
    model = measured(run.job.location, run.config)
    plan, group = run.plan, run.group
    assert isinstance(plan, BatchPlan)
    tokens = plan.tokens_per_micro_step(group.dp_size)
    micro_steps = len(plan.share(0, 0, group.dp_size))
    work = work_of(run, model, round(tokens))
    length = round(float(plan.lengths.mean()))
    return speed.training(model.shape, work, card, length, micro_steps).tokens_per_second


def _card(run: Run) -> Card | None:
    device, narrow = run.group.device, run.precision.compute != torch.float32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    kept = measured_rates.kept()
    if kept and (kept.host is None if name is None else kept.name == name):
        return kept.card("bf16" if narrow else "fp32", torch.get_num_threads())
    return of_name(name) if name and narrow else None
