"""Makes rollouts: generates completions, has them scored, and shares them among the workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from aift_ray.config import GRPOConfig
from aift_ray.data.readers.prompt_rows import asked_prompt, columns_of
from aift_ray.data.token_rows import TokenRows
from aift_ray.engine.grpo.advantages import advantages, overlong, summed
from aift_ray.engine.grpo.completion_generation import Completion, CompletionGenerator
from aift_ray.engine.grpo.episode_generation import EpisodeGenerator
from aift_ray.engine.grpo.rollout import Rollout, replace_flat
from aift_ray.engine.grpo.rollout_engine import Asked, RolloutPool, trained_weights
from aift_ray.engine.precision import Precision
from aift_ray.errors import AiftError
from aift_ray.models.answer_text import turn_text
from aift_ray.parallel.group import Group
from aift_ray.parallel.protocol import LossModel
from aift_ray.rewards import Rewards

# kinds of random numbers beside those of the training data's order
TRAINED, EVALUATED, _REPLACED = 1, 2, 3


@dataclass(frozen=True)
class Part:
    """Completions that one worker has generated and scored together.

    Attributes:
        completions: of each prompt.
        scores: (completions, rewards).
        seconds: in generation, and in rewards.
    """

    completions: list[list[Completion]]
    texts: list[str]
    scores: np.ndarray
    seconds: tuple[float, float]


@dataclass
class RolloutMaker:
    """Generates and scores; every worker must call each method alike.

    Attributes:
        rewards: the processes that compute rewards.
        names, weights: of the rewards.
        seed: of the run.
        apart: other processes generate.
        pool: these processes, on the worker that leads.
        episodes: generates completions of several turns; None: they are of one turn.
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
    apart: bool = False
    pool: RolloutPool | None = None
    episodes: EpisodeGenerator | None = None

    def make(
        self, module: LossModel, rows: TokenRows, number: int, asked: list[int], spare: np.ndarray
    ) -> Rollout:
        """The completions of a generation of the training rows `asked`.

        Args:
            spare: all rows that may take the place of prompts without spread in their rewards.
        """
        size, began = self.how.num_generations, time.perf_counter()
        parts = self.parts(module, rows, asked, size, (TRAINED, number, 0))
        found = self._rollout(rows, number, asked, parts)
        replaced = 0
        for turn in range(1, self.how.dynamic_sampling_rounds + 1):
            flat = self._advantages(found).flat
            others = self._others(number, turn, int(flat.sum()), asked, spare)
            if not others:
                break
            more = self.parts(module, rows, others, size, (TRAINED, number, turn))
            parts += more
            asked = asked + others
            fresh = self._rollout(rows, number, others, more)
            replaced += replace_flat(found, fresh, flat, self._advantages(fresh).flat, size)
        judged = self._advantages(found)
        found.advantages = judged.values.astype(np.float32)
        found.measures = self._measures(found, judged.flat, parts, time.perf_counter() - began)
        if self.how.dynamic_sampling_rounds:
            found.measures["dynamic_sampling/replaced"] = replaced / len(judged.flat)
        return found

    def close(self) -> None:
        """End the processes that compute rewards, and those that generate."""
        self.rewards.close()
        if self.episodes is not None:
            self.episodes.close()
        if self.pool is not None:
            self.pool.close()

    def parts(
        self,
        module: LossModel,
        rows: TokenRows,
        asked: Sequence[int],
        size: int,
        key: tuple[int, int, int],
    ) -> list[Part]:
        """Completions of token rows, `size` of each, in parts that are the same however many
        workers there are; each worker makes its share of them, and gets all.

        Raises:
            AiftError: a reward function failed, on whichever worker.
        """
        each = max(1, self.how.rollout_batch_size // size)
        chunks = [list(asked[start : start + each]) for start in range(0, len(asked), each)]
        keys: list[list[list[tuple[int, ...]]]] = [
            [[(self.seed, *key, row, sample) for sample in range(size)] for row in chunk]
            for chunk in chunks
        ]
        prompts = [[rows.row(row)[0] for row in chunk] for chunk in chunks]
        mine: dict[int, Part] = {}
        failed: AiftError | None = None
        try:
            asked_parts = list(zip(prompts, keys, strict=True))
            sources = [[rows.source(row) for row in chunk] for chunk in chunks]
            for at, made, seconds in self._generated(module, asked_parts, sources):
                mine[at] = self._scored(rows, chunks[at], size, made, seconds)
        except AiftError as error:
            # the others must not wait for this worker
            failed = error
        found = _gathered(self.group, (mine, failed))
        errors = [told for _, told in found if told is not None]
        if errors:
            raise errors[0]
        whole = {at: part for theirs, _ in found for at, part in theirs.items()}
        return [whole[at] for at in range(len(chunks))]

    def _generated(
        self, module: LossModel, asked: list[Asked], sources: list[list[dict[str, Any]]]
    ) -> Iterator[tuple[int, list[list[Completion]], float]]:
        """This worker's share of the parts: their numbers, completions and seconds."""
        if self.apart:
            if self.pool is not None:
                yield from self.pool.generate(trained_weights(module.model), asked)
            return
        generator = CompletionGenerator(module.model, self.how, self.stop_ids, self.group.device)
        was = module.training
        module.eval()
        try:
            for at in range(self.group.dp_rank, len(asked), self.group.dp_size):
                began = time.perf_counter()
                with self.precision.autocast(self.group.device):
                    made = (
                        self.episodes.generate(generator, sources[at], *asked[at])
                        if self.episodes is not None
                        else generator.generate(*asked[at])
                    )
                yield at, made, time.perf_counter() - began
        finally:
            module.train(was)

    def _scored(
        self,
        rows: TokenRows,
        asked: list[int],
        size: int,
        made: list[list[Completion]],
        seconds: float,
    ) -> Part:
        began = time.perf_counter()
        flat = [completion for group in made for completion in group]
        texts = [self._text(completion) for completion in flat]
        scores = self._scores(rows, asked, size, flat, texts)
        return Part(made, texts, scores, (seconds, time.perf_counter() - began))

    def _text(self, completion: Completion) -> str:
        if completion.messages is not None:
            turns = completion.messages
            return "\n".join(f"[{turn['role']}] {turn['content']}" for turn in turns)
        return turn_text(self.tokenizer, completion.ids.tolist(), self.stop_ids)

    def _scores(
        self,
        rows: TokenRows,
        asked: list[int],
        size: int,
        made: list[Completion],
        texts: list[str],
    ) -> np.ndarray:
        """The scores of completions, (completions, rewards)."""
        sources = [source for row in asked for source in [rows.source(row)] * size]
        prompts = [asked_prompt(source) for source in sources]
        completions: list[Any] = [
            each.messages
            or (text if isinstance(prompt, str) else [{"role": "assistant", "content": text}])
            for prompt, each, text in zip(prompts, made, texts, strict=True)
        ]
        each = [columns_of(source) for source in sources]
        names = dict.fromkeys(name for columns in each for name in columns)
        columns = {name: [held.get(name) for held in each] for name in names}
        found = self.rewards.score(prompts, completions, columns)
        numbers = [[np.nan if s is None else float(s) for s in scores] for scores in found]
        return np.array(numbers, np.float64).T.reshape(len(texts), len(self.names))

    def _rollout(
        self, rows: TokenRows, number: int, asked: list[int], parts: list[Part]
    ) -> Rollout:
        made = [group for part in parts for group in part.completions]
        flat = [(row, c) for row, group in zip(asked, made, strict=True) for c in group]
        prompts = {row: rows.row(row)[0] for row in asked}
        scores = np.concatenate([part.scores for part in parts])
        starts = np.array([len(prompts[row]) for row, _ in flat], np.int64)
        lengths = np.array([len(c.ids) for _, c in flat], np.int32)
        return Rollout(
            number=number,
            prompts=np.array([row for row, _ in flat], np.int64),
            ids=[np.concatenate([prompts[row], c.ids]).astype(np.int32) for row, c in flat],
            starts=starts,
            truncated=np.array([c.truncated for _, c in flat], np.bool_),
            engine=[c.logps for _, c in flat],
            scores=scores,
            rewards=summed(scores, self.weights) + overlong(lengths, self.how),
            advantages=np.zeros(len(flat), np.float32),
            texts=[text for part in parts for text in part.texts],
            own=[c.own for _, c in flat if c.own is not None],
        )

    def _advantages(self, rollout: Rollout) -> Any:
        how = self.how
        return advantages(rollout.rewards, how.num_generations, how.scale_rewards)

    def _others(
        self, number: int, turn: int, count: int, asked: list[int], spare: np.ndarray
    ) -> list[int]:
        """As many prompts that this generation has not asked yet."""
        left = np.setdiff1d(spare, np.array(asked))
        order = np.random.default_rng([self.seed, _REPLACED, number, turn]).permutation(len(left))
        return [int(row) for row in left[order[:count]]]

    def _measures(
        self, rollout: Rollout, flat: np.ndarray, parts: list[Part], seconds: float
    ) -> dict[str, float | None]:
        lengths = rollout.targets
        found: dict[str, float | None] = {
            "reward": _number(np.nanmean, rollout.rewards),
            "reward_std": _number(_deviation, rollout.rewards),
            "frac_reward_zero_std": float(flat.mean()),
            "completions/mean_length": float(lengths.mean()),
            "completions/min_length": float(lengths.min()),
            "completions/max_length": float(lengths.max()),
            "completions/clipped_ratio": float(rollout.truncated.mean()),
        }
        found |= self.by_reward(rollout.scores)
        made, scored = (sum(part.seconds[at] for part in parts) for at in (0, 1))
        # each worker takes its share at the same time
        share = seconds / max(made + scored, 1e-9)
        return found | {"time/generation_s": made * share, "time/reward_s": scored * share}

    def by_reward(self, scores: np.ndarray) -> dict[str, float | None]:
        """Mean and standard deviation of each reward, by TRL's names."""
        found: dict[str, float | None] = {}
        for name, values in zip(self.names, scores.T, strict=True):
            found[f"rewards/{name}/mean"] = _number(np.nanmean, values)
            found[f"rewards/{name}/std"] = _number(_deviation, values)
        return found


def _number(of: Any, values: np.ndarray) -> float | None:
    """A statistic of the values that are numbers; None of none."""
    kept = values[~np.isnan(values)]
    return float(of(kept)) if len(kept) else None


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _gathered(group: Group, mine: object) -> list[Any]:
    """What each worker has, by rank."""
    if group.world_size == 1:
        return [mine]
    found: list[Any] = [None] * group.world_size
    dist.all_gather_object(found, mine)
    return found
