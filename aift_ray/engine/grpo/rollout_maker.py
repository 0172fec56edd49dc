"""Makes rollouts: has completions generated and scored, and shared among the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from aift_ray.config import GRPOConfig
from aift_ray.data.readers.prompt_rows import asked_prompt, columns_of
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.grpo.advantages import flat, overlong, summed
from aift_ray.engine.grpo.completion_generation import Completion
from aift_ray.engine.grpo.completion_source import (
    Colocated,
    CompletionSource,
    Leader,
    Policy,
    gathered,
)
from aift_ray.engine.grpo.episode_generation import EpisodeGenerator
from aift_ray.engine.grpo.rollout import Rollout, replace_flat
from aift_ray.engine.grpo.rollout_engine import Asked
from aift_ray.engine.grpo.rollout_measures import Measures, measures_of
from aift_ray.engine.precision import Precision
from aift_ray.errors import AiftError
from aift_ray.models.answer_text import turn_text
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel
from aift_ray.rewards import Rewards

T = TypeVar("T")
# kinds of random numbers beside those of the training data's order
TRAINED, EVALUATED, _REPLACED = 1, 2, 3


@dataclass(frozen=True)
class Part:
    """Completions that one worker has generated and scored together.

    Attributes:
        completions: of each prompt.
        scores: (completions, rewards).
        seconds: in generation, and in rewards.
        logged: what reward functions gave to `log_metric`.
        extra: what they gave to `log_extra`, a value for each completion.
    """

    completions: list[list[Completion]]
    texts: list[str]
    scores: np.ndarray
    seconds: tuple[float, float]
    logged: dict[str, list[float]]
    extra: dict[str, list[str]]


@dataclass
class RolloutMaker:
    """Generates and scores; every worker must call each method alike.

    Attributes:
        rewards: the processes that compute rewards.
        names, weights: of the rewards.
        seed: of the run.
        leader: has other processes generate; None: the workers do.
        episodes: generates completions of several turns; None: they are of one turn, or others
            generate.
    """

    how: GRPOConfig
    rewards: Rewards
    names: list[str]
    weights: np.ndarray
    tokenizer: PreTrainedTokenizerBase
    stop_ids: list[int]
    precision: Precision
    group: Group
    seed: int
    leader: Leader | None = None
    episodes: EpisodeGenerator | None = None

    def begin(
        self,
        policy: Policy,
        rows: TokenRows,
        number: int,
        asked: list[int],
        spare: np.ndarray,
        progress: Mapping[str, float],
    ) -> Callable[[], Rollout]:
        """Start a generation of the training rows `asked`, by the weights as they are now.

        Where the workers generate they do so when what is returned is called, by every worker.

        Args:
            spare: all rows that may take the place of prompts without spread in their rewards.
            progress: what reward functions are given as `trainer_state`.
        """
        make = partial(self._make, rows=rows, number=number, asked=asked)
        return self._begin(policy, partial(make, spare=spare, progress=progress))

    def _begin(self, policy: Policy, work: Callable[[CompletionSource], T]) -> Callable[[], T]:
        if self.leader is not None:
            return self.leader.begin(policy, work)
        assert not isinstance(policy, dict)
        alone = (self.how, self.stop_ids, self.precision, self.group, self.episodes)
        return partial(work, Colocated(policy, *alone))

    def _make(
        self,
        source: CompletionSource,
        rows: TokenRows,
        number: int,
        asked: list[int],
        spare: np.ndarray,
        progress: Mapping[str, float],
    ) -> Rollout:
        size, began = self.how.num_generations, time.perf_counter()
        parts = self._parts(source, rows, asked, size, (TRAINED, number, 0), progress)
        found = self._rollout(rows, number, asked, parts)
        replaced = 0
        for turn in range(1, self.how.dynamic_sampling_rounds + 1):
            alike = self._flat(found)
            others = self._others(number, turn, int(alike.sum()), asked, spare)
            if not others:
                break
            more = self._parts(source, rows, others, size, (TRAINED, number, turn), progress)
            parts += more
            asked = asked + others
            fresh = self._rollout(rows, number, others, more)
            replaced += replace_flat(found, fresh, alike, self._flat(fresh), size)
        alike = self._flat(found)
        seconds = _seconds(parts, time.perf_counter() - began)
        found.measures = logged(parts) | measures_of(found, self.names, alike) | seconds
        if self.how.dynamic_sampling_rounds:
            found.measures["dynamic_sampling/replaced"] = replaced / len(alike)
        return found

    def close(self) -> None:
        """End the processes: of rewards first, since a generation may wait for one that hangs."""
        self.rewards.close()
        if self.leader is not None:
            self.leader.close()
        if self.episodes is not None:
            self.episodes.close()

    def parts(
        self,
        module: LossModel,
        rows: TokenRows,
        asked: Sequence[int],
        size: int,
        key: tuple[int, int, int],
        progress: Mapping[str, float],
    ) -> list[Part]:
        """Completions of token rows, `size` of each; every worker must call this, and gets all.

        Raises:
            AiftError: a reward function failed, on whichever worker.
        """
        work = partial(self._parts, rows=rows, asked=asked, size=size, key=key, progress=progress)
        return self._begin(module, work)()

    def _parts(
        self,
        source: CompletionSource,
        rows: TokenRows,
        asked: Sequence[int],
        size: int,
        key: tuple[int, int, int],
        progress: Mapping[str, float],
    ) -> list[Part]:
        """The parts are the same however many workers divide them."""
        each = max(1, self.how.rollout_batch_size // size)
        chunks = [list(asked[start : start + each]) for start in range(0, len(asked), each)]
        keys: list[list[list[tuple[int, ...]]]] = [
            [[(self.seed, *key, row, sample) for sample in range(size)] for row in chunk]
            for chunk in chunks
        ]
        parts = [
            Asked([rows.row(row)[0] for row in chunk], each, [rows.source(row) for row in chunk])
            for chunk, each in zip(chunks, keys, strict=True)
        ]
        mine: dict[int, Part] = {}
        failed: AiftError | None = None
        try:
            for at, made, seconds in source.generate(parts):
                mine[at] = self._scored(rows, chunks[at], made, seconds, progress)
        except AiftError as error:
            # the others must not wait for this worker
            failed = error
        found = gathered(source.group, (mine, failed))
        errors = [told for _, told in found if told is not None]
        if errors:
            raise errors[0]
        whole = {at: part for theirs, _ in found for at, part in theirs.items()}
        return [whole[at] for at in range(len(chunks))]

    def _scored(
        self,
        rows: TokenRows,
        asked: list[int],
        made: list[list[Completion]],
        seconds: float,
        progress: Mapping[str, float],
    ) -> Part:
        began = time.perf_counter()
        each = [completion for group in made for completion in group]
        texts = [self._text(completion) for completion in each]
        sources = [rows.source(row) for row, group in zip(asked, made, strict=True) for _ in group]
        scores = self._scores(sources, each, texts, progress)
        took = seconds, time.perf_counter() - began
        given = self.rewards.metrics, self.rewards.extra
        return Part(made, texts, scores, took, *given)

    def _text(self, completion: Completion) -> str:
        if completion.messages is not None:
            turns = completion.messages
            return "\n".join(f"[{turn['role']}] {turn['content']}" for turn in turns)
        return turn_text(self.tokenizer, completion.ids.tolist(), self.stop_ids)

    def _scores(
        self,
        sources: list[dict[str, Any]],
        made: list[Completion],
        texts: list[str],
        progress: Mapping[str, float],
    ) -> np.ndarray:
        """The scores of completions, (completions, rewards)."""
        prompts = [asked_prompt(source) for source in sources]
        completions: list[Any] = [
            each.messages
            or (text if isinstance(prompt, str) else [{"role": "assistant", "content": text}])
            for prompt, each, text in zip(prompts, made, texts, strict=True)
        ]
        each = [columns_of(source) for source in sources]
        names = dict.fromkeys(name for columns in each for name in columns)
        columns = {name: [held.get(name) for held in each] for name in names}
        columns["completion_ids"] = [each.ids.tolist() for each in made]
        found = self.rewards.score(prompts, completions, columns, progress)
        numbers = [[np.nan if s is None else float(s) for s in scores] for scores in found]
        return np.array(numbers, np.float64).T.reshape(len(texts), len(self.names))

    def _rollout(
        self, rows: TokenRows, number: int, asked: list[int], parts: list[Part]
    ) -> Rollout:
        made = [group for part in parts for group in part.completions]
        pairs = [(row, c) for row, group in zip(asked, made, strict=True) for c in group]
        prompts = {row: rows.row(row)[0] for row in asked}
        scores = np.concatenate([part.scores for part in parts])
        starts = np.array([len(prompts[row]) for row, _ in pairs], np.int64)
        lengths = np.array([len(c.ids) for _, c in pairs], np.int32)
        return Rollout(
            number=number,
            prompts=np.array([row for row, _ in pairs], np.int64),
            ids=[np.concatenate([prompts[row], c.ids]).astype(np.int32) for row, c in pairs],
            starts=starts,
            truncated=np.array([c.truncated for _, c in pairs], np.bool_),
            engine=[c.logps for _, c in pairs],
            scores=scores,
            rewards=summed(scores, self.weights) + overlong(lengths, self.how),
            texts=[text for part in parts for text in part.texts],
            own=[c.own for _, c in pairs if c.own is not None],
        )

    def _flat(self, rollout: Rollout) -> np.ndarray:
        return flat(rollout.rewards, self.how.num_generations)

    def _others(
        self, number: int, turn: int, count: int, asked: list[int], spare: np.ndarray
    ) -> list[int]:
        """As many prompts that this generation has not asked yet."""
        left = np.setdiff1d(spare, np.array(asked))
        order = np.random.default_rng([self.seed, _REPLACED, number, turn]).permutation(len(left))
        return [int(row) for row in left[order[:count]]]


def logged(parts: list[Part]) -> Measures:
    """Means of what reward functions have logged."""
    found: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.logged.items():
            found.setdefault(name, []).extend(values)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {name: mean if np.isfinite(mean) else None for name, mean in means.items()}


def _seconds(parts: list[Part], seconds: float) -> dict[str, float | None]:
    """The seconds of a generation, by what they went to."""
    made, scored = (sum(part.seconds[at] for part in parts) for at in (0, 1))
    # each worker takes its share at the same time
    share = seconds / max(made + scored, 1e-9)
    return {"time/generation_s": made * share, "time/reward_s": scored * share}
