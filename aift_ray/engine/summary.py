"""What summary.json says of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aift_ray.engine.device_memory import device_memory_gb, peak_memory_gb
from aift_ray.engine.estimate import estimated
from aift_ray.parallel.group import Group

if TYPE_CHECKING:
    from aift_ray.engine.run_session import RunSession


def summarized(session: RunSession, status: str) -> dict[str, Any]:
    """The summary of a worker's session; every worker must call this.

    Args:
        session: what a worker keeps beside the steps.
        status: done, stopped early or interrupted.
    """
    run, state = session.run, session.run.state
    group, device = run.group, run.group.device
    peaks, reserved, held = _of_all(group, peak_memory_gb(device), *device_memory_gb(device))
    on_gpu = device.type == "cuda"
    return {
        "status": "done" if status == "stopped early" else status,
        "steps": state.step,
        "first_loss": state.first_loss,
        "last_loss": session.last.get("loss"),
        "eval_loss_before": state.eval_loss_before,
        "eval_loss": session.eval_loss,
        **_rewards(session),
        "eval_accuracy_before": state.eval_accuracy_before,
        "eval_accuracy": session.eval_accuracy,
        "exact_match_before": state.exact_match_before,
        "exact_match": session.exact_match,
        "tasks_before": state.tasks_before,
        "tasks": session.tasks,
        "tokens_per_second": session.tokens / session.seconds if session.seconds else None,
        "peak_memory_gb": peaks,
        "peak_reserved_gb": reserved if on_gpu else None,
        "device_memory_gb": held if on_gpu else None,
        "mfu": session.utilization.mean(),
        "estimated_tokens_per_second": estimated(run) if group.is_main_process else None,
        "strategy": run.config.parallel.strategy,
        "strategy_why": run.job.why,
        "method": run.config.trained_as,
        "objective": run.config.objective,
        "precision": run.precision.name,
        "world_size": group.world_size,
        "start_s": session.start_s,
        "global_batch": state.global_batch,
        "resumed_from": run.resumed_from,
        "changed_on_resume": state.changes,
        "stopped_early": status == "stopped early",
        "best_step": state.best_step,
        "skipped": state.skipped,
    }


def _rewards(session: RunSession) -> dict[str, float | None]:
    """The mean rewards of held-out prompts, where completions are generated."""
    losses = {"before": session.run.state.eval_loss_before, "": session.eval_loss}
    if session.run.rollouts is None:
        return {}
    named = {f"eval_reward_{name}".rstrip("_"): loss for name, loss in losses.items()}
    return {name: None if loss is None else -loss for name, loss in named.items()}


def _of_all(group: Group, *mine: float) -> list[list[float]]:
    """Each of this worker's numbers with those of the others, by rank."""
    numbers = [0.0] * (len(mine) * group.world_size)
    numbers[group.rank :: group.world_size] = mine
    found = [round(number, 3) for number in group.sum(*numbers)]
    return [found[at : at + group.world_size] for at in range(0, len(found), group.world_size)]
