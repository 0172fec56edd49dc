"""The first rows of a run as the model sees them, supervised tokens marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from aift_ray.config.preference_config import answers_of
from aift_ray.runs.terminal import console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aift_ray.runs.prepare import Preparation

_TOKENS = 400
_RUN = 160
# what the token rows of a comparison are called
_ANSWERS = {
    "one": ("",),
    "pair": (", chosen", ", rejected"),
    "label": (", answer", ", with the answer of another row for the KL"),
    "prompt": (", prompt",),
}


def show_preview(run: Preparation, number: int = 3) -> None:
    """Print the first rows, supervised tokens marked."""
    rows = run.prepared.rows("train")
    tokenizer = run.encoder.tokenizer
    console.print("preview: supervised tokens are green and between ⟦ ⟧", style="bold")
    together, names = run.plan.together, _ANSWERS[answers_of(run.job.config.objective)]
    for at, index in enumerate(run.plan.indices[: number * together].tolist()):
        ids, flags = rows.row(index)
        name = names[at % together]
        line = Text(f"{rows.place(index)}{name} ({len(ids)} tokens): ", style="dim")
        shown = start = 0
        for at in range(1, len(ids) + 1):
            if shown < _TOKENS and (at == len(ids) or flags[at] != flags[start]):
                piece = _shortened(tokenizer, ids[start:at].tolist())
                inside = bool(flags[start])
                line.append(f"⟦{piece}⟧" if inside else piece, "bold green" if inside else "")
                shown += min(at - start, _RUN)
                start = at
        console.print(line)
    for note in run.prepared.train.notes + run.prepared.eval.notes:
        console.print(note, style="yellow", markup=False)


def _shortened(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of a run of tokens; a long one loses its middle, so that others are seen too."""
    left_out = len(ids) - _RUN
    if left_out <= 0:
        return str(tokenizer.decode(ids))
    half = _RUN // 2
    head, tail = (str(tokenizer.decode(part)) for part in (ids[:half], ids[-half:]))
    return f"{head} … {left_out:,} tokens … {tail}"
