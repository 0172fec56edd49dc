"""What happens around the steps of a run: metrics, evaluations, checkpoints, the summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aift_ray.data import token_cache
from aift_ray.engine import final_model, phases
from aift_ray.engine.build import rebuild
from aift_ray.engine.checkpoint.writer import CheckpointWriter
from aift_ray.engine.grpo import rollout_report
from aift_ray.engine.grpo.rollout_evaluation import RolloutEvaluator
from aift_ray.engine.loop import StopRequest
from aift_ray.engine.metrics import ACCURACY, END, SAVE, STOP, Metrics, plot, tell, write_json
from aift_ray.engine.mfu import Utilization
from aift_ray.engine.model_card import card
from aift_ray.engine.summary import summarized
from aift_ray.engine.task_scores import TaskScores, by_name
from aift_ray.engine.validate import Validator
from aift_ray.engine.worker_run import Run
from aift_ray.utils.malloc_trim import trim

Report = Callable[[dict[str, Any]], None]


@dataclass
class RunSession:
    """Called by the loop between the steps; every worker has one."""

    run: Run
    metrics: Metrics | None
    writing: CheckpointWriter
    report: Report
    on_metrics: Report
    utilization: Utilization = field(init=False)
    tokens: float = 0.0
    seconds: float = 0.0
    start_s: float | None = None
    last: dict[str, Any] = field(default_factory=dict)
    eval_loss: float | None = None
    eval_accuracy: float | None = None
    exact_match: float | None = None
    tasks: TaskScores | None = None

    def __post_init__(self) -> None:
        self.utilization = Utilization(self.run)

    def logged(self, line: dict[str, Any]) -> None:
        """After each step: keep the line, write it where one is due."""
        line |= self.utilization.of(line)
        state, every = self.run.state, self.run.config.training.logging_steps
        if self.start_s is None:
            self.start_s = time.time() - self.run.job.started
        else:
            # the first step pays for warming up
            self.tokens += line["tokens"]
            self.seconds += line["tokens"] / line["tokens_per_second"]
        state.first_loss = line["loss"] if state.first_loss is None else state.first_loss
        self.last = line
        if self.metrics:
            due = state.step % every == 0 or state.step in (1, self.run.total_steps)
            if due or "skipped" in line:
                self.metrics.write(line)
            self.metrics.show(line | {"total_steps": self.run.total_steps})
            if self.run.job.events:
                tell(self.run.job.output, "step", line)
        self.on_metrics(line)

    def asked(self) -> StopRequest:
        """Whether the run should stop, or save; worker 0 looks for all."""
        job, hours = self.run.job, self.run.config.training.max_hours
        if not self.run.group.is_main_process:
            return StopRequest.NOTHING
        late = hours is not None and time.time() - job.started > hours * 3600
        if late or (job.output / STOP).exists():
            return StopRequest.STOP
        if (job.output / END).exists():
            return StopRequest.END
        return StopRequest.SAVE if (job.output / SAVE).exists() else StopRequest.NOTHING

    def evaluate_before(self) -> None:
        """Loss, exact match and task scores of the untrained model."""
        run = self.run
        if run.evaluator is None and run.tasks is None:
            return
        phases.tell(run.job.output, run.group, phases.EVALUATING)
        if run.evaluator:
            run.state.eval_loss_before = self._evaluation_loss(0)
            run.state.eval_accuracy_before = run.evaluator.measures.get(ACCURACY)
            run.state.exact_match_before = self._exact_match()
        if run.tasks:
            run.state.tasks_before = run.tasks.scores(run.module)
        state = run.state
        self._evaluated(0, state.eval_loss_before, state.exact_match_before, state.tasks_before)

    def score(self) -> None:
        """Score the tasks, between two steps."""
        assert self.run.tasks
        self._evaluated(self.run.state.step, tasks=self.run.tasks.scores(self.run.module))

    def evaluate(self) -> bool:
        """Evaluate; whether training should stop because it no longer gets better."""
        run, state, training = self.run, self.run.state, self.run.config.training
        assert run.evaluator is not None
        self._make_room()
        self.eval_loss = self._evaluation_loss(state.step)
        self.eval_accuracy = run.evaluator.measures.get(ACCURACY)
        match = self._exact_match() if training.exact_match_during else None
        self._evaluated(state.step, self.eval_loss, match)
        if self.eval_loss is None:
            return False
        if state.best_loss is None or self.eval_loss < state.best_loss:
            state.best_loss, state.best_step = self.eval_loss, state.step
            state.bad_evaluations = 0
            if training.load_best and state.step != run.total_steps:
                self.save(StopRequest.NOTHING)
        else:
            state.bad_evaluations += 1
        patience = training.early_stopping_patience
        return 0 < patience <= state.bad_evaluations

    def save(self, asked: StopRequest) -> None:
        """Save a checkpoint and report on every worker; at once where somebody waits for it.

        Raises:
            TrainingError: it, or the one before, could not be written.
        """
        self._make_room()
        at_once = asked is not StopRequest.NOTHING or not self.run.config.training.async_save
        self.writing.save(at_once)
        if self.run.group.is_main_process:
            (self.run.job.output / SAVE).unlink(missing_ok=True)
        self.report({"step": self.run.state.step, **self.last})

    def finish(self, status: str) -> None:
        """Write the final model and the summary."""
        run, interrupted = self.run, status == "interrupted"
        self.writing.settle()
        if not interrupted:
            best = run.state.best_step if run.config.training.load_best else None
            if best not in (None, run.state.step):
                rebuild(run, run.job.checkpoints / f"step-{best}")
                self.eval_loss = run.state.best_loss
            self.exact_match = self._exact_match()
            self.tasks = run.tasks.scores(run.module) if run.tasks else None
            if self.exact_match is not None or self.tasks:
                self._evaluated(run.state.step, None, self.exact_match, self.tasks)
        summary = summarized(self, status)
        if not interrupted:
            phases.tell(run.job.output, run.group, phases.SAVING)
            prepared = token_cache.load(run.job.cache)
            counts = (prepared.train, prepared.eval)
            held_out = len(prepared.rows("train")) - len(run.plan.indices)
            text = card(run.config, run.job.location, counts, held_out, summary)
            final_model.write(run, self.writing, text)
        if self.metrics is None:
            return
        self.metrics.show(self.last | {"total_steps": run.total_steps}, now=True)
        self.metrics.close()
        plot(run.job.output)
        rollout_report.write(run.job.output)
        trackers = self.metrics.trackers
        assert trackers
        trackers.close(summary)
        summary["not_reported"] = [f"{k}: {why}" for k, why in trackers.failed.items()]
        write_json(run.job.output / "summary.json", summary | self._saving())

    def _make_room(self) -> None:
        """Give back what the steps have freed before more is held than in a step."""
        if self.run.group.device.type == "cpu":
            trim()

    def _evaluation_loss(self, step: int) -> float | None:
        evaluator = self.run.evaluator
        assert evaluator is not None
        if isinstance(evaluator, RolloutEvaluator):
            evaluator.step = step
        return evaluator.loss(self.run.module)

    def _exact_match(self) -> float | None:
        run = self.run
        if not isinstance(run.evaluator, Validator) or not run.config.training.exact_match_rows:
            return None
        return run.evaluator.exact_match(run.module)

    def _evaluated(
        self,
        step: int,
        loss: float | None = None,
        exact_match: float | None = None,
        tasks: TaskScores | None = None,
    ) -> None:
        found = {"eval_loss": loss, "exact_match": exact_match}
        if loss is not None and self.run.evaluator:
            measured = self.run.evaluator.measures
            found |= {f"eval_{name}": value for name, value in measured.items()}
            # the summary's name, by which sweeps compare
            found["eval_accuracy"] = measured.get(ACCURACY)
        line = {name: value for name, value in found.items() if value is not None}
        line |= by_name(tasks or {})
        if self.metrics and line:
            epoch = round(self.run.plan.epoch(step), 6)
            whole = {"step": step, "epoch": epoch, **line, "time": time.time()}
            self.metrics.write(whole)
            if self.run.job.events:
                tell(self.run.job.output, "evaluate", whole)
        self.on_metrics(line)

    def _saving(self) -> dict[str, Any]:
        """What saving cost, and what of it could not be copied."""
        self.writing.copy_results()
        return {
            "saving_s": round(self.writing.seconds, 3),
            "not_copied": [f"{name}: {why}" for name, why in self.writing.not_copied.items()],
        }
