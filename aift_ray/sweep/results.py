"""What a sweep leaves: a row a trial, the best trial's configuration, and a table to read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from aift_ray.commandline import validated
from aift_ray.config import RunConfig, TuneConfig
from aift_ray.config.section import leaves
from aift_ray.engine.metrics import replace
from aift_ray.runs import run_dir
from aift_ray.runs.terminal import console
from aift_ray.sweep.trial import DONE, STOPPED, Trial, best

BEST, CSV, PARQUET = "best.yaml", "trials.csv", "trials.parquet"
_MEASURED = ("steps", "last_loss", "eval_loss_before", "tokens_per_second", "start_s", "wall_s")
_STYLES = {DONE: "", STOPPED: "dim"}


def write(folder: Path, trials: list[Trial], names: list[str], config: TuneConfig) -> None:
    """Replace trials.csv, trials.parquet and best.yaml by what is known now.

    Args:
        names: the settings in which trials differ.
    """
    rows = table_rows(trials, names, config)
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace(folder / CSV, text.getvalue())
    scratch = folder / f".{PARQUET}"
    pq.write_table(pa.table({name: _column([r[name] for r in rows]) for name in rows[0]}), scratch)
    scratch.replace(folder / PARQUET)
    first = best(trials, config.metric, config.better)
    if first:
        about = f"# trial {first.number}: {config.metric} {first.score(config.metric):.6g}\n"
        replace(folder / BEST, about + (first.folder / run_dir.CONFIG).read_text("utf-8"))


def table_rows(trials: list[Trial], names: list[str], config: TuneConfig) -> list[dict[str, Any]]:
    """A row a trial: number, status, metric, the settings in `names`, what was measured, why."""
    rows = []
    for trial in trials:
        summary, drawn = run_dir.summary(trial.folder), settings_of(trial)
        row = {"trial": trial.number, "status": trial.status}
        row |= {config.metric: trial.score(config.metric)}
        row |= {name: _plain(drawn.get(name)) for name in names}
        row |= {name: summary.get(name) for name in _MEASURED}
        rows.append(row | {"why": trial.why})
    return rows


def settings_of(trial: Trial) -> dict[str, Any]:
    """The trial's settings by dotted name; empty where it was refused before it had any."""
    path = trial.folder / run_dir.CONFIG
    if not path.is_file():
        return {}
    config: RunConfig = validated(yaml.safe_load(path.read_text(encoding="utf-8")))
    return dict(leaves(config))


def show(trials: list[Trial], names: list[str], config: TuneConfig) -> None:
    """Print the trials, best first."""
    first = best(trials, config.metric, config.better)
    grid = Table(title="trials", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("trial", "status", config.metric, "steps", "seconds"):
        grid.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
    for name in names:
        grid.add_column(name.rsplit(".", 1)[-1], justify="right", no_wrap=True)
    rows = table_rows(trials, names, config)
    sign = 1 if config.better == "min" else -1
    rows.sort(key=lambda row: _rank(row, config.metric, sign))
    for row in rows:
        ours = first is not None and row["trial"] == first.number
        cells = [row["trial"], row["status"], row[config.metric], row["steps"], row["wall_s"]]
        cells += [row[name] for name in names]
        style = "bold green" if ours else _STYLES.get(row["status"], "yellow")
        grid.add_row(*[Text(_shown(cell)) for cell in cells], style=style)
    # as wide as it is: cut cells could not be read
    wide = Measurement.get(console, console.options.update(max_width=1000), grid).maximum
    Console(width=wide, highlight=False).print(grid)
    for row in rows:
        if row["why"]:
            console.print(f"trial {row['trial']}: {row['why']}", style="yellow", markup=False)


def _rank(row: dict[str, Any], metric: str, sign: int) -> tuple[bool, bool, float]:
    value = row[metric]
    return row["status"] != DONE, value is None, sign * (value or 0.0)


def _shown(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _plain(value: object) -> Any:
    return value if value is None or isinstance(value, (str, int, float)) else json.dumps(value)


def _column(values: list[Any]) -> pa.Array:
    if len({type(value) for value in values} - {type(None)}) > 1:
        mixed = any(isinstance(value, str) for value in values)
        values = [None if v is None else str(v) if mixed else float(v) for v in values]
    return pa.array(values)
