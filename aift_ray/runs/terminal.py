"""What a user sees: the plan first, a summary table last."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aift_ray.planning.partition import HOST
from aift_ray.runs.plan_objective import objective_lines
from aift_ray.tasks.scores import shown as score_shown

if TYPE_CHECKING:
    from aift_ray.config import RunConfig
    from aift_ray.data.tokenize import Counts
    from aift_ray.runs.prepare import Preparation


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Who read the output has gone: a run goes on, and what is still to be said is not."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# on a terminal lines end at blanks; in a file each stays one, and in a notebook, whose kernel asks
# for colours, they are plain text as in a file
console = _Console(
    highlight=False,
    soft_wrap=not sys.stdout.isatty(),
    force_jupyter=False,
    force_terminal=False if "ipykernel" in sys.modules else None,
)


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    grid = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value))
    console.print(grid)


def show_plan(run: Preparation, workers: tuple[int, int], gpu: bool) -> None:
    """Print what is going to happen."""
    # transformers, which a server's command has no use for
    from aift_ray.data.prompts.prompt_notes import ignored_keys, told

    config, plan = run.job.config, run.plan
    least, most = workers
    kind = "GPU" if gpu else "CPU"
    number = str(most) if least == most else f"{least} to {most}"
    rows = [
        ("model", f"{config.model}, {run.parameters:,} parameters (computed)"),
        (
            "method",
            f"{config.trained_as}, {run.trained_parameters:,} trained parameters (computed)",
        ),
        *_new_tokens(run),
        *objective_lines(config),
        ("workers", f"{number} ({kind}, {_spread(config)}{_divided(config)})"),
        ("training rows", _counts(run.prepared.train)),
    ]
    if run.prepared.eval.rows:
        rows.append(("evaluation rows", _counts(run.prepared.eval)))
    elif run.held_out:
        rows.append(("evaluation rows", f"{run.held_out} of the training rows, held out"))
    for name in ("train", "eval"):
        counts: Counts = getattr(run.prepared, name)
        where = "" if name == "train" else "evaluation: "
        rows += [(label, where + line) for label, line in told(counts.not_shown)]
        rows += [("not read", where + ignored_keys(counts.ignored))] if counts.ignored else []
    remarks = dict.fromkeys(run.prepared.train.remarks + run.prepared.eval.remarks)
    rows += [("files", remark) for remark in remarks]
    rows += [("mixture", line) for line in _mixture(run)]
    units = {"sft": "examples", "grpo": "completions"}
    unit = units.get(config.objective, "comparisons")
    unit = "rows filled" if config.data.packing == "fill" else unit
    rows += [
        ("step", f"{plan.global_batch} {unit}, {_micro_step(run, most)}"),
        ("steps", f"{run.steps} ({plan.steps_per_epoch} an epoch)"),
        ("learning rate", run.rate),
        ("packing", _packing(run)),
    ]
    for each in run.job.tasks:
        scores = ", ".join(each.task.computed)
        rows.append((f"task {each.task.name}", f"{len(each.items):,} rows, {scores}"))
    rows += [("strategy", line) for line in run.job.why]
    if run.memory:
        need = f"{run.memory.total / 2**30:.2f} GiB (computed: {run.memory.parts})"
        rows.append(("memory a worker", need))
    if config.parallel.offload:
        cpus = f"{config.ray.cpus_per_worker:g}: the optimizer's step is taken in host memory"
        rows.append(("CPUs a worker", cpus))
    if run.job.layout:
        rows.append(("layout", laid_out(run.job.layout, config.parallel.strategy)))
    rows.append(("output", str(run.job.output)))
    table("plan", rows)
    for warning in run.warnings:
        console.print(f"note: {warning}", style="yellow", markup=False)


def _new_tokens(run: Preparation) -> list[tuple[str, str]]:
    """Tokens that the model gets."""
    added = run.job.added
    if added is None:
        return []
    how = "their rows trained" if added.alone else "all rows of the embeddings trained"
    ids = f"{len(added.ids):,}, ids {min(added.ids)} to {max(added.ids)}"
    return [("new tokens", f"{ids}, from the mean of their pieces; {how}")]


def _spread(config: RunConfig) -> str:
    """The strategy, with the library that does it where it is not torch."""
    strategy = config.parallel.strategy
    by_deepspeed = config.parallel.by_deepspeed and strategy.startswith("zero")
    return f"{strategy} by DeepSpeed" if by_deepspeed else strategy


def _divided(config: RunConfig) -> str:
    size = config.parallel.context_parallel_size
    return f"; {size} divide the tokens of each row" if size > 1 else ""


def laid_out(layout: dict[str, int], strategy: str) -> str:
    """How many blocks lie on each device or stage."""
    # what is no block: embeddings, last norm, output layer
    numbers = list(layout.values())[1:-2]
    kind = "stage" if strategy == "pipeline" else "GPU"
    places = {n: "the host" if n == HOST else f"{kind} {n}" for n in numbers}
    return ", ".join(f"{numbers.count(n)} blocks on {name}" for n, name in places.items())


def _micro_step(run: Preparation, workers: int) -> str:
    config = run.job.config
    most = config.data.tokens_per_micro_batch
    each = f"up to {most:,} tokens" if most else f"{config.micro_batch}"
    mean = run.plan.tokens_per_micro_step(workers // config.parallel.workers_per_replica)
    return f"{each} a micro-step and worker, on average {mean:,.0f} tokens"


def _gibs(sizes: list[float]) -> str:
    return ", ".join(f"{gb:.2f} GiB" for gb in sizes)


def _packing(run: Preparation) -> str:
    packing = run.job.config.data.packing
    if not run.job.support.packed:
        kept = "" if packing == "false" else f"; {packing} is not used"
        return f"padded: layers of this family can't tell packed documents apart{kept}"
    if packing != "fill":
        return packing
    examples = len(run.plan.indices) / run.plan.together / max(1, len(run.plan.units))
    return f"fill, {examples:.1f} examples a row"


def _mixture(run: Preparation) -> list[str]:
    """What an epoch takes of each set, a line each."""
    mixture, sets = run.plan.mixture, run.prepared.sets
    if mixture is None:
        return []
    pairs = list(zip(sets, mixture.sizes, mixture.amounts, strict=True))
    passes = [amount / max(size, 1) for _, size, amount in pairs]
    tokens = [each.tokens * times for (each, _, _), times in zip(pairs, passes, strict=True)]
    shares = [f"{amount / mixture.total:.1%} of the examples" for _, _, amount in pairs]
    return [
        f"{each.name}: {each.rows // run.plan.together:,} rows x {times:.3g} an epoch, {share}, "
        f"{held / max(sum(tokens), 1):.1%} of the tokens"
        for (each, _, _), times, held, share in zip(pairs, passes, tokens, shares, strict=True)
    ]


def _counts(counts: Counts) -> str:
    text = (
        f"{counts.rows:,} row{'s' if counts.rows != 1 else ''}, {counts.tokens:,} tokens, "
        f"{counts.supervised_tokens:,} supervised; "
        f"{counts.truncated_rows} truncated, {counts.dropped_rows} dropped"
    )
    if counts.skipped_rows:
        text += f", {counts.skipped_rows} skipped"
    if counts.split_rows:
        are = "conversations are" if counts.split_rows > 1 else "conversation is"
        text += f"; {counts.split_rows:,} {are} one row an answer"
    return text + (f", {counts.split_documents} split" if counts.split_documents else "")


def _task_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The scores of tasks, before and after."""
    before, rows = summary.get("tasks_before") or {}, []
    for task, scores in (summary.get("tasks") or {}).items():
        for score, found in scores.items():
            low, high = (score_shown(score, found[end]) for end in ("low", "high"))
            first = before.get(task, {}).get(score)
            began = f"{score_shown(score, first['value'])} before, " if first else ""
            after = f"{score_shown(score, found['value'])} after [{low}, {high}]"
            rows.append((f"{task} {score}", began + after))
    return rows


# what a run leaves, by the label that the summary has for it
_FILES = (
    ("model", "model"),
    ("metrics", "metrics.jsonl"),
    ("plot", "loss.png"),
    ("report", "report.html"),
)


def show_summary(summary: dict[str, Any], output: Path) -> None:
    """Print how the run ended and where everything lies."""
    rows = [("status", str(summary.get("status")))]
    pairs: tuple[tuple[str, str, str], ...] = (
        ("steps", "steps", "{}"),
        ("loss, first step", "first_loss", "{:.4f}"),
        ("loss, last step", "last_loss", "{:.4f}"),
        ("held-out reward before", "eval_reward_before", "{:.4f}"),
        ("held-out reward after", "eval_reward", "{:.4f}"),
        ("held-out loss before", "eval_loss_before", "{:.4f}"),
        ("held-out loss after", "eval_loss", "{:.4f}"),
        ("margin accuracy before", "eval_accuracy_before", "{:.1%}"),
        ("margin accuracy after", "eval_accuracy", "{:.1%}"),
        ("exact match before", "exact_match_before", "{:.1%}"),
        ("exact match after", "exact_match", "{:.1%}"),
        ("tokens a second", "tokens_per_second", "{:,.0f}"),
        ("model FLOPs utilization", "mfu", "{:.1%}"),
        ("restarts", "restarts", "{}"),
        ("batches left out", "skipped", "{}"),
        ("seconds to first step", "start_s", "{:.1f}"),
        ("seconds in all", "wall_s", "{:.1f}"),
    )
    if summary.get("objective") == "grpo":
        # the loss of an evaluation is its reward, negated
        pairs = tuple(each for each in pairs if not each[0].startswith("held-out loss"))
    for label, name, form in pairs:
        if summary.get(name) is not None:
            rows.append((label, form.format(summary[name])))
    rate, computed = summary.get("tokens_per_second"), summary.get("estimated_tokens_per_second")
    if rate and computed:
        reached = f"{computed:,.0f} tokens a second (computed); {rate / computed:.2f} of it reached"
        rows.append(("estimate", reached))
    rows += _task_rows(summary)
    memory = summary.get("peak_memory_gb")
    if memory:
        rows.append(("peak memory", _gibs(memory)))
    reserved, held = summary.get("peak_reserved_gb"), summary.get("device_memory_gb")
    if reserved and held:
        rows.append(("reserved by torch", _gibs(reserved)))
        rows.append(("held by the device", _gibs(held)))
    for label, name in _FILES:
        if (output / name).exists():
            rows.append((label, str(output / name)))
    table("summary", rows)
