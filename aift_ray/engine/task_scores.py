"""Scores of the model that is trained, on tasks: by its loss, and by answers that it generates.

Log-likelihoods are the losses of sequences, so every strategy computes them as it computes the
loss. Each replica takes its share of the sequences and prompts, each worker makes as many calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from aift_ray.data.collate import collate
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.token_rows import Flags, Ids
from aift_ray.engine.job import Job
from aift_ray.engine.precision import Precision
from aift_ray.engine.validate import greedy
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel
from aift_ray.tasks.scores import (
    Score,
    answer_scores,
    choice_scores,
    cut_at,
    text_scores,
)
from aift_ray.tasks.statistics import estimate
from aift_ray.tasks.task_files import LoadedTask
from aift_ray.tasks.task_prompts import ItemEncoder, ScoredSequence

_CONFIDENCE, _RESAMPLES = 0.95, 1000

# of each task its scores, as `tasks.statistics.Estimate` describes one
TaskScores = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class _Sequences:
    """Sequences as token rows whose scored tokens are supervised."""

    held: Sequence[ScoredSequence]

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Token ids and supervision flags, each of shape (length,)."""
        ids = np.array(self.held[index].ids, np.int32)
        return ids, (np.arange(len(ids)) >= self.held[index].start).astype(np.uint8)


class TaskEvaluator:
    """Scores a model on the tasks of a job.

    Args:
        tokenizer: of the run, with its chat template.
        context: tokens that the model takes; None: any number.
    """

    def __init__(
        self,
        job: Job,
        tokenizer: PreTrainedTokenizerBase,
        context: int | None,
        precision: Precision,
        group: Group,
    ) -> None:
        self._job, self._group, self._precision = job, group, precision
        prompts = PromptEncoder(
            tokenizer, job.config.data.system_prompt, extra_stop_ids=job.stop_ids
        )
        self._encoder = ItemEncoder(prompts, context)
        self._size = job.config.evaluation.batch_size

    def due(self, step: int) -> bool:
        """Whether the tasks are scored after this step, which is not the last."""
        every = self._job.config.evaluation.steps
        return bool(every) and step % every == 0

    def scores(self, module: LossModel) -> TaskScores:
        """The scores of every task; every worker must call this."""
        module.eval()
        with torch.no_grad(), self._precision.autocast(self._group.device):
            tables = {each.task.name: self._rows(module, each) for each in self._job.tasks}
        module.train()
        seed = self._job.config.training.seed
        return {
            task: {
                score: asdict(estimate(score, rows, _CONFIDENCE, _RESAMPLES, seed))
                for score, rows in by_score.items()
            }
            for task, by_score in tables.items()
        }

    def _rows(self, module: LossModel, loaded: LoadedTask) -> dict[str, list[Score]]:
        """Of each score of a task its value of every row."""
        kinds = {"choice": self._choices, "text": self._texts, "generate": self._answers}
        rows = kinds[loaded.task.kind](module, loaded)
        return {name: [row[name] for row in rows] for name in loaded.task.computed}

    def _choices(self, module: LossModel, loaded: LoadedTask) -> list[dict[str, Score]]:
        task, encoder = loaded.task, self._encoder
        groups = [encoder.choices(i.prompt, i.choices, task.delimiter) for i in loaded.items]
        alone: list[list[ScoredSequence]] = [[] for _ in groups]
        if "accuracy_normalized" in task.computed:
            alone = [encoder.unconditional(i.choices, task.delimiter) for i in loaded.items]
        sums = iter(self._sums(module, [s for part in (*groups, *alone) for s in part]))
        values = [[next(sums) for _ in group] for group in groups]
        free = [[next(sums) for _ in group] for group in alone]
        found = []
        for item, group, by_choice, without in zip(loaded.items, groups, values, free, strict=True):
            tokens = [len(each.ids) - each.start for each in group]
            found.append(choice_scores(task, item.choices, item.label, by_choice, tokens, without))
        return found

    def _texts(self, module: LossModel, loaded: LoadedTask) -> list[dict[str, Score]]:
        windows = [self._encoder.windows(item.answers[0]) for item in loaded.items]
        sums = iter(self._sums(module, [each for pieces in windows for each in pieces]))
        found = []
        for item, pieces in zip(loaded.items, windows, strict=True):
            total = sum(next(sums) for _ in pieces)
            tokens = sum(len(each.ids) - each.start for each in pieces)
            found.append(text_scores(loaded.task, item.answers[0], total, tokens))
        return found

    def _answers(self, module: LossModel, loaded: LoadedTask) -> list[dict[str, Score]]:
        task, items = loaded.task, loaded.items
        prompts = [self._encoder.prompt(item.prompt, task.max_tokens) for item in items]
        # columns of all scores of a row, end to end; zero in the rows of other replicas
        widths = [6 if name == "pearson" else 2 for name in task.computed]
        table = np.zeros((len(items), sum(widths)))
        stops = list(self._encoder.stop_ids)
        for part, real in self._rounds([len(prompt) for prompt in prompts]):
            asked = [prompts[at] for at in part]
            for at, ids in zip(
                part,
                greedy(module, asked, task.max_tokens, stops, self._group.device),
                strict=True,
            ):
                text = self._encoder.decode(list(takewhile(lambda id_: id_ not in stops, ids)))
                cut = cut_at(text, task.stop)
                item = items[at]
                written = cut[0] if cut else text
                scores = answer_scores(task, written, item)[1]
                if real:
                    table[at] = [number for name in task.computed for number in scores[name]]
        whole = np.array(self._group.total(*table.ravel())).reshape(table.shape)
        edges = np.cumsum(widths)[:-1]
        return [
            {
                name: tuple(part.tolist())
                for name, part in zip(task.computed, np.split(row, edges), strict=True)
            }
            for row in whole
        ]

    def _sums(self, module: LossModel, sequences: Sequence[ScoredSequence]) -> list[float]:
        """Log-likelihood, in nats, of the scored tokens of each sequence."""
        rows, device = _Sequences(sequences), self._group.device
        numbers = np.arange(len(sequences))
        losses = torch.zeros(len(sequences), dtype=torch.float64, device=device)
        for part, real in self._rounds([len(each.ids) for each in sequences]):
            batch = collate(rows, part, self._job.padded, self._job.stop_ids[0], numbers)
            kept = losses if real else torch.zeros_like(losses)
            module(replace(batch.to(device), set_losses=kept))
        return [-loss for loss in self._group.total(*losses.tolist())]

    def _rounds(self, lengths: Sequence[int]) -> Iterator[tuple[list[int], bool]]:
        """Numbers that are computed together, of like length, and whether they count.

        All replicas have as many rounds: workers may need each other for each.
        """
        group, size = self._group, self._size if self._job.support.batched else 1
        order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
        mine = order[group.dp_rank :: group.dp_size]
        for start in range(0, -(-len(order) // group.dp_size), size):
            part = mine[start : start + size]
            yield part or order[:1], bool(part)


def by_name(found: TaskScores) -> dict[str, float]:
    """Each score under TASK/SCORE."""
    return {
        f"{task}/{score}": value["value"]
        for task, scores in found.items()
        for score, value in scores.items()
    }
