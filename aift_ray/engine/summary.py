"""What summary.json says of a run."""

from __future__ import annotations

from typing import Any

from aift_ray.engine.memory import peak_memory_gb


def summarized(session: Any, status: str) -> dict[str, Any]:
    """The summary of a worker's session; every worker must call this.

    Args:
        session: what `worker.work` keeps beside the steps.
        status: done, stopped early or interrupted.
    """
    run, state = session.run, session.run.state
    group, mine = run.group, [0.0] * run.group.world
    mine[group.rank] = peak_memory_gb(group.device)
    reserved = [0.0] * group.world
    reserved[group.rank] = peak_memory_gb(group.device, reserved=True)
    on_gpu = group.device.type == "cuda"
    return {
        "status": "done" if status == "stopped early" else status,
        "steps": state.step,
        "first_loss": state.first_loss,
        "last_loss": session.last.get("loss"),
        "eval_loss_before": state.eval_loss_before,
        "eval_loss": session.eval_loss,
        "exact_match_before": state.exact_match_before,
        "exact_match": session.exact_match,
        "tokens_per_second": session.tokens / session.seconds if session.seconds else None,
        "peak_memory_gb": [round(gb, 3) for gb in group.sum(*mine)],
        "peak_reserved_gb": [round(gb, 3) for gb in group.sum(*reserved)] if on_gpu else None,
        "mfu": session.utilization.mean(),
        "strategy": run.config.parallel.strategy,
        "strategy_why": run.job.why,
        "method": run.config.trained_as,
        "precision": run.precision.name,
        "world_size": group.world,
        "start_s": session.start_s,
        "global_batch": state.global_batch,
        "resumed_from": run.resumed_from,
        "changed_on_resume": state.changes,
        "stopped_early": status == "stopped early",
        "best_step": state.best_step,
        "skipped": state.skipped,
    }
