"""Evaluation: token-weighted loss, and answers compared with the expected ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from aift_ray.data.collate import collate
from aift_ray.data.context_share import own_share
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.comparison import Comparison
from aift_ray.engine.precision import Precision
from aift_ray.engine.reference_logprobs import rounds
from aift_ray.models.answer_text import turn_text
from aift_ray.parallel.dtensor_utils import is_shared_out
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel


@dataclass
class Validator:
    """Evaluates one model on held-out rows; each worker takes its replica's share of them.

    Attributes:
        indices: the held-out rows in `rows`.
        batch_size: rows whose loss is computed at once.
        answers: how many rows are answered by generation, how many of them at once, and how many
            tokens an answer may have.
        padded: rows are padded, instead of packed.
        batched: prompts of uneven length are answered together.
        comparison: the rows, where answers are compared; two rows a comparison.
        measures: of the last comparison, by TRL's names.
    """

    rows: TokenRows
    indices: np.ndarray
    batch_size: int
    answers: tuple[int, int, int]
    tokenizer: PreTrainedTokenizerBase | None
    stop_ids: list[int]
    precision: Precision
    group: Group
    padded: bool = False
    batched: bool = True
    comparison: Comparison | None = None
    measures: dict[str, float | None] = field(default_factory=dict)

    def loss(self, module: LossModel) -> float | None:
        """Loss per supervised token over all held-out rows, or per comparison; None of none."""
        if self.comparison is not None:
            return self._compared(self.comparison, module)
        total, count = 0.0, 0
        mine, group = self._share(self.indices), self.group
        module.eval()
        with torch.no_grad(), self.precision.autocast(group.device):
            for start in self._rounds(len(self.indices), self.batch_size):
                part = mine[start : start + self.batch_size]
                rows = part or self.indices[:1].tolist()
                batch = collate(self.rows, rows, self.padded, self.stop_ids[0])
                number, shares = group.context_rank, group.context_parallel_size
                batch = own_share(batch, number, shares, self.stop_ids[0])
                found = module(batch.to(group.device)).item()
                if part:
                    count += int(batch.weight)
                    total += found
        module.train()
        total, tokens = self.group.total(total, count)
        return total / tokens if tokens else None

    def _compared(self, comparison: Comparison, module: LossModel) -> float | None:
        """The mean loss of the comparisons; `measures` are those of all."""
        group, total = self.group, 0.0
        whole = rounds(self.indices, group.dp_rank, group.dp_size, self.batch_size)
        mine = [(mine[0] or all_rows[:2], bool(mine[0])) for all_rows, mine in whole]
        comparison.sums.zero_()
        comparison.estimate_kl(module, mine)
        module.eval()
        with torch.no_grad(), self.precision.autocast(group.device):
            for rows, counts in mine:
                batch = comparison.batch(comparison.trained(rows))
                if not counts and batch.compared:
                    nobody = torch.zeros_like(comparison.sums)
                    batch = replace(batch, compared=replace(batch.compared, sums=nobody))
                found = module(batch).item()
                total += found if counts else 0.0
        module.train()
        total, *sums = group.total(total, *comparison.sums.tolist())
        self.measures = comparison.measures(sums)
        return total / (len(self.indices) // 2)

    def exact_match(self, module: LossModel) -> float | None:
        """Share of held-out rows whose greedy answer is exactly the expected one."""
        number, at_once, _ = self.answers
        at_once = at_once if self.batched else 1
        rows = self.indices if self.comparison is None else self.indices[::2]
        asked = [i for i in rows[:number].tolist() if self._question(i) is not None]
        mine = self._share(np.asarray(asked, dtype=np.int64))
        # rows of like length are answered together, so that little is padded
        mine = sorted(mine, key=lambda i: int(self.rows.lengths[i]))
        right = 0
        module.eval()
        for start in self._rounds(len(asked), at_once):
            part = mine[start : start + at_once]
            found = self._right(module, part or asked[:1])
            right += found if part else 0
        module.train()
        hits, asked_of_all = self.group.total(right, len(mine))
        return hits / asked_of_all if asked_of_all else None

    def _rounds(self, rows: int, at_once: int) -> range:
        """Where each batch of a share starts: as many for all, who may need each other for them."""
        return range(0, -(-rows // self.group.dp_size), at_once)

    def _share(self, indices: np.ndarray) -> list[int]:
        return [int(i) for i in indices[self.group.dp_rank :: self.group.dp_size]]

    def _question(self, index: int) -> tuple[list[int], list[int]] | None:
        """Prompt and expected answer of a row: its last supervised run and all before it."""
        ids, flags = self.rows.row(index)
        starts = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0) == 1)
        if len(starts) == 0 or starts[-1] == 0:
            return None
        begin = int(starts[-1])
        stop = begin + int(np.argmin(np.append(flags[begin:], 0)))
        return ids[:begin].tolist(), ids[begin:stop].tolist()

    def _right(self, module: LossModel, indices: Sequence[int]) -> int:
        pairs = [pair for pair in map(self._question, indices) if pair is not None]
        answers = self.answer(module, [prompt for prompt, _ in pairs])
        expected = [self._text(answer) for _, answer in pairs]
        return sum(a == b for a, b in zip(answers, expected, strict=True))

    def answer(self, module: LossModel, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Greedy answers to prompts given as token ids, without their end-of-turn token."""
        with torch.no_grad(), self.precision.autocast(self.group.device):
            rows = greedy(module, prompts, self.answers[2], self.stop_ids, self.group.device)
        return [self._text(row) for row in rows]

    def _text(self, ids: Sequence[int]) -> str:
        assert self.tokenizer is not None
        return turn_text(self.tokenizer, ids, self.stop_ids)


def greedy(
    module: LossModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop_ids: Sequence[int],
    device: torch.device,
) -> list[list[int]]:
    """Token ids of greedy answers to prompts given as token ids, answered together.

    Args:
        stop_ids: end an answer, and are part of it; the first fills up the shorter answers.
    """
    width, pad = max(len(prompt) for prompt in prompts), stop_ids[0]
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output = module.generate(
        # goes on until all have their answers, where a forward needs all workers
        synced_gpus=is_shared_out(module),
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad,
        use_cache=True,
    )
    rows: list[list[int]] = output[:, width:].tolist()
    return rows
