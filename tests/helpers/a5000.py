"""The tables of docs/a5000.md, in both languages: `python -m tests.helpers.a5000` writes them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from aift_ray.models.catalog import CATALOG
from aift_ray.planning.memory_estimate import GIB, Memory, Workload, memories
from aift_ray.planning.model_shape import Shape

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENTS = (DOCS / "a5000.md", DOCS / "ja" / "a5000.md")
CARD = 22_000_000_000
MODELS = {
    "8B": Shape.of(CATALOG["elyza/Llama-3-ELYZA-JP-8B"].config),
    "13B": Shape.of(CATALOG["tokyotech-llm/Swallow-13b-instruct-hf"].config),
    "32B": Shape.of(CATALOG["cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B"].config),
}
# those whose weights two cards can train without offload, and larger ones
WHOLLY_TRAINED = {
    "4B (Qwen3-4B)": Shape.of(CATALOG["Qwen/Qwen3-4B"].config),
    "7B (ELYZA-japanese-Llama-2-7b)": Shape.of(
        CATALOG["elyza/ELYZA-japanese-Llama-2-7b-instruct"].config
    ),
    **{name: MODELS[name] for name in ("8B", "13B")},
}
METHODS = ("lora", "qlora", "full")
STRATEGIES = (
    "ddp",
    "fsdp",
    "fsdp, offload",
    "deepspeed zero3, offload",
    "tensor",
    "pipeline",
    "model_parallel",
)


# optimizer, and whether weights are in bf16
STATES = (
    ("adamw", False),
    ("adamw_8bit", False),
    ("paged_adamw_8bit", False),
    ("adamw_8bit", True),
    ("paged_adamw_8bit", True),
)


def two_cards(
    shape: Shape, method: str, strategy: str, offload: bool = False, **states: Any
) -> list[Memory]:
    """Each card's memory, or all cards' where they are alike.

    Rows of 2,048 tokens in bf16, recomputed activations, r = 16 for LoRA and 8 for QLoRA.

    Args:
        states: `optimizer` and `rounded` of the workload.
    """
    backend, _, strategy = strategy.rpartition(" ")
    bits = 4 if method == "qlora" else None
    kind = "full" if method == "full" else "lora"
    apart = 2 if strategy in ("model_parallel", "pipeline", "tensor") else 1
    workers = 1 if strategy == "model_parallel" else 2
    how: dict[str, Any] = {"model_parallel_size": apart, "offload": offload}
    how |= {"dropout": True, "gpu": True, "by_deepspeed": bool(backend)} | states
    rank = 8 if method == "qlora" else 16
    return memories(shape, Workload(kind, rank, 2048, 2, True, bits, strategy, workers, **how))


def table() -> str:
    """In Markdown: a row a model and method, a column a strategy."""
    header = ["model", "method", *(f"`{s}`" if s.isidentifier() else s for s in STRATEGIES)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (name, shape), method in ((m, way) for m in MODELS.items() for way in METHODS):
        cells = [_cell(shape, method, *strategy.split(", ")) for strategy in STRATEGIES]
        lines.append(f"| {' | '.join([name, method, *cells])} |")
    return "\n".join(lines)


# model, method and strategy that an audit has added up by hand: GiB on each device
AUDITED = {
    ("8B", "lora", "ddp"): 18.5,
    ("32B", "qlora", "fsdp"): 19.5,
    ("13B", "lora", "pipeline"): 15.5,
}
OFFLOADED = ("13B", "full", "fsdp, offload"), ("13B", "full", "deepspeed zero3, offload")
TERMS = (*AUDITED, ("13B", "lora", "fsdp"), *OFFLOADED)


def terms() -> str:
    """In Markdown: a row a term, a column a run."""
    runs = {" ".join(run): fuller(*run) for run in TERMS}
    lines = [f"| GiB a card | {' | '.join(runs)} |", "|---" + "|--:" * len(runs) + "|"]
    names = [name for name in vars(next(iter(runs.values()))) if name not in ("host", "copied")]
    for name in names:
        sizes = [getattr(need, name) for need in runs.values()]
        if any(sizes):
            cells = [f"{size / GIB:.2f}" if size else "" for size in sizes]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    totals = [f"{need.total / GIB:.1f}" for need in runs.values()]
    return "\n".join([*lines, f"| in all | {' | '.join(totals)} |"])


def fuller(model: str, method: str, strategy: str) -> Memory:
    """Memory of the fuller of two cards."""
    name, _, offload = strategy.partition(", ")
    cards = two_cards(MODELS[model], method, name, bool(offload))
    return max(cards, key=lambda need: need.total)


def states() -> str:
    """In Markdown: full training under fsdp, a row a model, a column an optimizer and a dtype."""
    header = [f"`{name}`{', bf16 weights' if rounded else ''}" for name, rounded in STATES]
    lines = [f"| model | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for model, shape in WHOLLY_TRAINED.items():
        held = [
            _told(two_cards(shape, "full", "fsdp", optimizer=name, rounded=rounded)[0])
            for name, rounded in STATES
        ]
        lines.append(f"| {' | '.join([model, *held])} |")
    return "\n".join(lines)


def _cell(shape: Shape, method: str, strategy: str, offload: str = "") -> str:
    if method == "qlora" and offload:
        return "–"
    fuller = max(two_cards(shape, method, strategy, bool(offload)), key=lambda need: need.total)
    return _told(fuller if offload else replace(fuller, host=0))


def _told(need: Memory) -> str:
    text = f"{need.total / GIB:.1f}"
    text = text if need.total <= CARD else f"**{text}**"
    return f"{text} / {2 * need.host / GIB:.0f}" if need.host else text


def written(document: str) -> str:
    """The document with its tables in their places."""
    for name, made in (("a5000", table()), ("terms", terms()), ("states", states())):
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        document = marked.sub(rf"\g<1>{made}\n\g<2>", document)
    return document


if __name__ == "__main__":
    for page in DOCUMENTS:
        page.write_text(written(page.read_text("utf-8")), "utf-8")
