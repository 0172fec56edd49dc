"""Where a run's metrics go beside its own files: TensorBoard, Weights & Biases, MLflow, Trackio.

Worker 0 alone opens them. A run that is resumed goes on as the same run there: what identifies it
is kept in the output folder. A tracker that fails later costs its own record, not the run.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from aift_ray.engine.metrics import COMPARED, GENERATED, replace, task_scores
from aift_ray.errors import Problem

_LOG = logging.getLogger(__name__)
# in the output folder: {tracker: what identifies the run there}
IDENTITIES = "trackers.json"
PROJECT = "aift-ray"
_NAMES = {
    "loss": "train/loss",
    "aux_loss": "train/aux_loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "mfu": "train/mfu",
    "epoch": "train/epoch",
    "eval_loss": "eval/loss",
    "exact_match": "eval/exact_match",
    **{name: f"train/{name}" for name in COMPARED},
    **{f"eval_{name}": f"eval/{name}" for name in COMPARED},
}
# {tracker: (module, requirement)}; TensorBoard is always there
_PACKAGES = {
    "wandb": ("wandb", "wandb==0.31.0"),
    "mlflow": ("mlflow", "mlflow-skinny==3.17.2"),
    "trackio": ("trackio", "trackio==0.43.0"),
}


def missing(names: list[str]) -> list[Problem]:
    """The trackers whose package is not installed."""
    return [
        Problem("training.report_to", f"{name} is not installed", f"pip install {package}")
        for name, (module, package) in _PACKAGES.items()
        if name in names and importlib.util.find_spec(module) is None
    ]


class Trackers:
    """The trackers of a run, opened at the first line.

    Args:
        names: of `training.report_to`.
        folder: the output folder; its name is the run's.
        step: that the run goes on from; 0: a new run.
        settings: of the run, by their dotted names.

    Attributes:
        failed: {tracker: why it has not, or not all of, the run}.
    """

    def __init__(self, names: list[str], folder: Path, step: int, settings: dict[str, Any]) -> None:
        self._names, self._folder, self._step = names, folder, step
        self._settings = settings
        self._open: dict[str, Any] | None = None
        self.failed: dict[str, str] = {}

    def log(self, line: dict[str, Any]) -> None:
        """Send a line of the metrics."""
        found = {tag: line[n] for n, tag in _NAMES.items() if line.get(n) is not None}
        found |= {f"eval/{name}": value for name, value in task_scores(line).items()}
        # of an objective that measures more of a step, or of an evaluation
        prefix, kind = ("", "train") if "loss" in line else ("eval_", "eval")
        names = [n.removeprefix(prefix) for n in line if n.startswith(prefix) and n not in _NAMES]
        more = [n for n in names if "/" in n or n in GENERATED]
        found |= {f"{kind}/{n}": v for n in more if (v := line[prefix + n]) is not None}
        self._each(lambda tracker: tracker.log(found, line["step"]))

    def close(self, summary: dict[str, Any]) -> None:
        """Send the summary's numbers and words, and end; once."""
        # a resumed run that had only its model to save has no line, and is done
        if self._open is None and summary.get("status") != "done":
            return
        kept = {k: v for k, v in summary.items() if isinstance(v, (int, float, str, bool))}
        self._each(lambda tracker: tracker.close(kept))
        self._open = {}

    def _each(self, act: Callable[[Any], None]) -> None:
        opened = self._opened()
        for name in list(opened):
            try:
                act(opened[name])
            except Exception as error:
                # a service that is gone is no reason to lose a run
                self._fail(name, error)
                del opened[name]

    def _opened(self) -> dict[str, Any]:
        if self._open is None:
            self._open, known = {}, self._known()
            for name in self._names:
                try:
                    tracker = _KINDS[name](self._folder, self._step, known.get(name))
                    tracker.configure(self._settings)
                except Exception as error:
                    self._fail(name, error)
                    continue
                self._open[name], known[name] = tracker, tracker.identity
            kept = {name: value for name, value in known.items() if value}
            if kept:
                replace(self._folder / IDENTITIES, json.dumps(kept, indent=1) + "\n")
        return self._open

    def _fail(self, name: str, error: Exception) -> None:
        self.failed[name] = (str(error).splitlines() or [type(error).__name__])[0]
        _LOG.warning("nothing more goes to %s: %s", name, self.failed[name])

    def _known(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((self._folder / IDENTITIES).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found


class _TensorBoard:
    """Event files in the output folder; those of steps after the checkpoint are superseded."""

    identity = ""

    def __init__(self, folder: Path, step: int, known: str | None) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def configure(self, settings: dict[str, Any]) -> None:
        rows = "\n".join(f"| {name} | `{value}` |" for name, value in settings.items())
        self._writer.add_text("configuration", f"| setting | value |\n|---|---|\n{rows}")

    def log(self, values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self, summary: dict[str, Any]) -> None:
        rows = "\n".join(f"| {name} | {value} |" for name, value in summary.items())
        self._writer.add_text("summary", f"| name | value |\n|---|---|\n{rows}")
        self._writer.close()


class _Wandb:
    """Weights & Biases; WANDB_MODE=offline keeps it all in the output folder."""

    def __init__(self, folder: Path, step: int, known: str | None) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", folder.name),
            dir=str(folder),
            id=known or secrets.token_hex(4),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.identity: str = self._run.id
        # so that repeated steps of a resumed run stand at their own place
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def configure(self, settings: dict[str, Any]) -> None:
        self._run.config.update(settings, allow_val_change=True)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log({"step": step, **values})

    def close(self, summary: dict[str, Any]) -> None:
        self._run.summary.update(summary)
        self._run.finish()


class _Mlflow:
    """MLflow; without MLFLOW_TRACKING_URI a store in the output folder."""

    def __init__(self, folder: Path, step: int, known: str | None) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").absolute().as_uri()
        # of a store in files MLflow wants to be told that its age is known
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=uri)
        self.identity: str = known or self._made(folder.name)
        self._client.update_run(self.identity, status="RUNNING")

    def _made(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        run: str = self._client.create_run(number, run_name=name).info.run_id
        return run

    def configure(self, settings: dict[str, Any]) -> None:
        # a parameter can't be changed there: what a resumed run changes becomes a tag
        there = self._client.get_run(self.identity).data.params
        for name, value in settings.items():
            text = str(value)[:500]
            if name not in there:
                self._client.log_param(self.identity, name, text)
            elif there[name] != text:
                self._client.set_tag(self.identity, f"changed.{name}", text)

    def log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(tag, float(value), now, step) for tag, value in values.items()]
        self._client.log_batch(self.identity, metrics=metrics)

    def close(self, summary: dict[str, Any]) -> None:
        for name, value in summary.items():
            if isinstance(value, (int, float)):
                self._client.log_metric(self.identity, f"summary/{name}", float(value))
            else:
                self._client.set_tag(self.identity, f"summary.{name}", value)
        status = {"done": "FINISHED", "interrupted": "KILLED"}.get(str(summary.get("status")))
        self._client.set_terminated(self.identity, status or "FAILED")


class _Trackio:
    """Trackio, on this machine unless TRACKIO_SPACE_ID names a Space."""

    def __init__(self, folder: Path, step: int, known: str | None) -> None:
        import trackio

        self._trackio = trackio
        # names identify its runs
        self.identity: str = known or f"{folder.name}-{secrets.token_hex(3)}"

    def configure(self, settings: dict[str, Any]) -> None:
        with redirect_stdout(io.StringIO()):
            self._init(settings)

    def _init(self, settings: dict[str, Any]) -> None:
        self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.identity,
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            config=settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self._trackio.log(values, step=step)

    def close(self, summary: dict[str, Any]) -> None:
        numbers = {f"summary/{k}": v for k, v in summary.items() if isinstance(v, (int, float))}
        with redirect_stdout(io.StringIO()):
            self._trackio.log(numbers)
            self._trackio.finish()


_KINDS: dict[str, Any] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
    "trackio": _Trackio,
}
