"""Evaluation of a model that generates: rewards of completions of held-out prompts, and samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aift_ray.data.readers.prompt_rows import asked_prompt
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.grpo import rollout_report
from aift_ray.engine.grpo.advantages import overlong, summed
from aift_ray.engine.grpo.rollout_maker import EVALUATED, Part, RolloutMaker, logged
from aift_ray.engine.grpo.rollout_measures import by_reward, of_lengths
from aift_ray.engine.grpo.rollout_report import SAMPLES
from aift_ray.parallel.protocol import LossModel

# completions of an evaluation that are written down
_SHOWN = 32


@dataclass
class RolloutEvaluator:
    """Scores completions of held-out prompts.

    Attributes:
        rows: that `indices` are of.
        output: the run's folder.
        progress: what reward functions are told of the run after some steps.
        step: of the next evaluation, for the samples.
        measures: of the last evaluation, by TRL's names.
    """

    maker: RolloutMaker
    rows: TokenRows
    indices: np.ndarray
    output: Path
    progress: Callable[[int], Mapping[str, float]]
    step: int = 0
    measures: dict[str, float | None] = field(default_factory=dict)

    def loss(self, module: LossModel) -> float | None:
        """The mean reward of completions of the held-out prompts, negated: less is better.

        Each evaluation draws the same random numbers.
        """
        maker, how = self.maker, self.maker.how
        size = how.num_generations_eval or how.num_generations
        asked = [int(row) for row in self.indices]
        key, progress = (EVALUATED, 0, 0), self.progress(self.step)
        parts = maker.parts(module, self.rows, asked, size, key, progress)
        scores = np.concatenate([part.scores for part in parts])
        made = [each for part in parts for group in part.completions for each in group]
        lengths = np.array([len(each.ids) for each in made], np.int32)
        rewards = summed(scores, maker.weights) + overlong(lengths, how)
        scored = rewards[~np.isnan(rewards)]
        mean = float(scored.mean()) if len(scored) else None
        self.measures = {
            **logged(parts),
            "reward": mean,
            **by_reward(maker.names, scores),
            **of_lengths(lengths, np.array([each.truncated for each in made])),
        }
        self._write(asked, size, parts, rewards)
        if maker.group.is_main_process:
            rollout_report.write(self.output)
        return None if mean is None else -mean

    def _write(self, asked: list[int], size: int, parts: list[Part], rewards: np.ndarray) -> None:
        """Write some of the completions down, the first of each prompt."""
        if not self.maker.group.is_main_process:
            return
        texts = [text for part in parts for text in part.texts]
        scores = np.concatenate([part.scores for part in parts])
        extra = [each for part in parts for each in _extra(part)]
        lines = []
        for at, row in enumerate(asked[:_SHOWN]):
            first = at * size
            given = zip(self.maker.names, scores[first].tolist(), strict=True)
            line: dict[str, Any] = {
                "step": self.step,
                "prompt": asked_prompt(self.rows.source(row)),
                "completion": texts[first],
                "reward": _plain(float(rewards[first])),
                "rewards": {name: _plain(value) for name, value in given},
            }
            if extra[first]:
                line["extra"] = extra[first]
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        with (self.output / SAMPLES).open("a", encoding="utf-8") as file:
            file.writelines(lines)


def _extra(part: Part) -> list[dict[str, str]]:
    """What reward functions have logged of each completion."""
    number = len(part.texts)
    # a function may log fewer, of which nobody knows whose they are
    columns = {name: values for name, values in part.extra.items() if len(values) == number}
    return [{name: values[at] for name, values in columns.items()} for at in range(number)]


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value
