"""The table of docs/a5000.md, in both languages: `python -m tests.planning.a5000` writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from aift_ray.models.catalog import CATALOG
from aift_ray.planning.memory import GIB, Memory, Work, memories
from aift_ray.planning.shape import Shape

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENTS = (DOCS / "a5000.md", DOCS / "ja" / "a5000.md")
CARD = 22_000_000_000
MODELS = {
    "8B": Shape.of(CATALOG["elyza/Llama-3-ELYZA-JP-8B"].config),
    "13B": Shape.of(CATALOG["tokyotech-llm/Swallow-13b-instruct-hf"].config),
    "32B": Shape.of(CATALOG["cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B"].config),
}
METHODS = ("lora", "qlora", "full")
STRATEGIES = ("ddp", "fsdp", "fsdp, offload", "tensor", "pipeline", "model_parallel")


def two_cards(shape: Shape, method: str, strategy: str, offload: bool = False) -> list[Memory]:
    """Each card's memory, or all cards' where they are alike.

    Rows of 2,048 tokens in bf16, recomputed activations, r = 16 for LoRA and 8 for QLoRA.
    """
    bits = 4 if method == "qlora" else None
    kind = "full" if method == "full" else "lora"
    apart = 2 if strategy in ("model_parallel", "pipeline", "tensor") else 1
    workers = 1 if strategy == "model_parallel" else 2
    how: dict[str, Any] = {"apart": apart, "offload": offload}
    rank = 8 if method == "qlora" else 16
    return memories(shape, Work(kind, rank, 2048, 2, True, bits, strategy, workers, **how))


def table() -> str:
    """In Markdown: a row a model and method, a column a strategy."""
    header = ["model", "method", *(f"`{s}`" if s.isidentifier() else s for s in STRATEGIES)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (name, shape), method in ((m, way) for m in MODELS.items() for way in METHODS):
        cells = [_cell(shape, method, *strategy.split(", ")) for strategy in STRATEGIES]
        lines.append(f"| {' | '.join([name, method, *cells])} |")
    return "\n".join(lines)


def _cell(shape: Shape, method: str, strategy: str, offload: str = "") -> str:
    if method == "qlora" and offload:
        return "–"
    fuller = max(two_cards(shape, method, strategy, bool(offload)), key=lambda need: need.total)
    text = f"{fuller.total / GIB:.1f}"
    text = text if fuller.total <= CARD else f"**{text}**"
    return f"{text} / {2 * fuller.host / GIB:.0f}" if fuller.host else text


def written(document: str) -> str:
    """The document with the table in its place."""
    marked = re.compile(r"(<!-- a5000 -->\n).*(<!-- end -->)", re.DOTALL)
    return marked.sub(lambda match: f"{match[1]}{table()}\n{match[2]}", document)


if __name__ == "__main__":
    for page in DOCUMENTS:
        page.write_text(written(page.read_text("utf-8")), "utf-8")
