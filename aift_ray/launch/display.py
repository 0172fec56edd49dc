"""What a user sees: the plan first, a summary table last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aift_ray.planning.layout import HOST

if TYPE_CHECKING:
    from aift_ray.data.encoding import Counts
    from aift_ray.launch.prepare import Preparation

console = Console(highlight=False, soft_wrap=True)
_PREVIEW_TOKENS = 400


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    grid = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column()
    for name, value in rows:
        grid.add_row(name, Text(value))
    console.print(grid)


def show_plan(run: Preparation, workers: tuple[int, int], gpu: bool) -> None:
    """Print what is going to happen."""
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
        ("workers", f"{number} ({kind}, {config.parallel.strategy})"),
        ("training rows", _counts(run.prepared.train)),
    ]
    if run.prepared.eval.rows:
        rows.append(("evaluation rows", _counts(run.prepared.eval)))
    elif run.held_out:
        rows.append(("evaluation rows", f"{run.held_out} of the training rows, held out"))
    unit = "rows filled" if config.data.packing == "fill" else "examples"
    rows += [
        ("step", f"{plan.global_batch} {unit}, {config.micro_batch} a micro-step and worker"),
        ("steps", f"{run.steps} ({plan.steps_per_epoch} an epoch)"),
        ("packing", _packing(run)),
    ]
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


def laid_out(layout: dict[str, int], strategy: str) -> str:
    """How many blocks lie on each device or stage."""
    # what is no block: embeddings, last norm, output layer
    numbers = list(layout.values())[1:-2]
    kind = "stage" if strategy == "pipeline" else "GPU"
    places = {n: "the host" if n == HOST else f"{kind} {n}" for n in numbers}
    return ", ".join(f"{numbers.count(n)} blocks on {name}" for n, name in places.items())


def _packing(run: Preparation) -> str:
    packing = run.job.config.data.packing
    if not run.job.support.packed:
        kept = "" if packing == "false" else f"; {packing} is not used"
        return f"padded: layers of this family can't tell packed documents apart{kept}"
    if packing != "fill":
        return packing
    examples = len(run.plan.indices) / max(1, len(run.plan.units))
    return f"fill, {examples:.1f} examples a row"


def _counts(counts: Counts) -> str:
    text = (
        f"{counts.rows:,} rows, {counts.tokens:,} tokens, {counts.supervised_tokens:,} supervised; "
        f"{counts.truncated_rows} truncated, {counts.dropped_rows} dropped"
    )
    if counts.skipped_rows:
        text += f", {counts.skipped_rows} skipped"
    return text + (f", {counts.split_documents} split" if counts.split_documents else "")


def show_preview(run: Preparation, number: int = 3) -> None:
    """Print the first rows, supervised tokens marked."""
    rows = run.prepared.rows("train")
    tokenizer = run.encoder.tokenizer
    console.print("preview: supervised tokens are green and between ⟦ ⟧", style="bold")
    for index in run.plan.indices[:number].tolist():
        ids, flags = rows.row(index)
        line, inside = Text(f"{rows.place(index)} ({len(ids)} tokens): ", style="dim"), False
        start = 0
        for at in range(1, min(len(ids), _PREVIEW_TOKENS) + 1):
            if at == min(len(ids), _PREVIEW_TOKENS) or flags[at] != flags[start]:
                inside = bool(flags[start])
                piece = str(tokenizer.decode(ids[start:at].tolist()))
                line.append(f"⟦{piece}⟧" if inside else piece, "bold green" if inside else "")
                start = at
        console.print(line)
    for note in run.prepared.train.notes + run.prepared.eval.notes:
        console.print(note, style="yellow", markup=False)


def show_summary(summary: dict[str, Any], output: Path) -> None:
    """Print how the run ended and where everything lies."""
    rows = [("status", str(summary.get("status")))]
    pairs = (
        ("steps", "steps", "{}"),
        ("loss, first step", "first_loss", "{:.4f}"),
        ("loss, last step", "last_loss", "{:.4f}"),
        ("held-out loss before", "eval_loss_before", "{:.4f}"),
        ("held-out loss after", "eval_loss", "{:.4f}"),
        ("exact match before", "exact_match_before", "{:.1%}"),
        ("exact match after", "exact_match", "{:.1%}"),
        ("tokens a second", "tokens_per_second", "{:,.0f}"),
        ("restarts", "restarts", "{}"),
        ("batches left out", "skipped", "{}"),
        ("seconds to first step", "start_s", "{:.1f}"),
        ("seconds in all", "wall_s", "{:.1f}"),
    )
    for label, name, form in pairs:
        if summary.get(name) is not None:
            rows.append((label, form.format(summary[name])))
    memory = summary.get("peak_memory_gb")
    if memory:
        rows.append(("peak memory", ", ".join(f"{gb:.2f} GiB" for gb in memory)))
    for label, name in (("model", "model"), ("metrics", "metrics.jsonl"), ("plot", "loss.png")):
        if (output / name).exists():
            rows.append((label, str(output / name)))
    table("summary", rows)
