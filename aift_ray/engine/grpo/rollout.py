"""The completions of one generation, as token rows with what their loss needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from aift_ray.data.token_rows import Flags, Ids

_TEXTS = ("texts",)


@dataclass
class Rollout:
    """The completions of one generation, those of a prompt one after the other.

    Attributes:
        number: of the generation, from 0.
        prompts: (completions,), the training row of each.
        ids: tokens of prompt and completion of each.
        starts: (completions,), where the completion begins.
        truncated: (completions,), whether it was cut at the limit of tokens.
        engine: log-probabilities of the tokens of each by the engine.
        scores: (completions, rewards), NaN where a reward function has given none.
        rewards: (completions,).
        advantages: of the tokens of each.
        texts: of the completions.
        old, reference: log-probabilities by the model at the generation, and by the reference
            model, where they are needed; else empty.
        measures: of the generation, for the metrics.
        own: for each completion, 1 where the model wrote a token of it, 0 in replies of an
            environment; empty: it wrote all.
    """

    number: int
    prompts: np.ndarray
    ids: list[np.ndarray]
    starts: np.ndarray
    truncated: np.ndarray
    engine: list[np.ndarray]
    scores: np.ndarray
    rewards: np.ndarray
    texts: list[str]
    advantages: list[np.ndarray] = field(default_factory=list)
    old: list[np.ndarray] = field(default_factory=list)
    reference: list[np.ndarray] = field(default_factory=list)
    measures: dict[str, float | None] = field(default_factory=dict)
    own: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> Ids:
        """Tokens of each row, prompt and completion."""
        return np.array([len(ids) for ids in self.ids], np.int32)

    @property
    def targets(self) -> Ids:
        """Tokens of each completion that the model wrote."""
        if self.own:
            return np.array([int(flags.sum()) for flags in self.own], np.int32)
        found: Ids = (self.lengths - self.starts).astype(np.int32)
        return found

    def row(self, index: int) -> tuple[Ids, Flags]:
        """Token ids and supervision flags of a row, each of shape (length,)."""
        ids: Ids = self.ids[index]
        if self.own:
            before = np.zeros(self.starts[index], np.uint8)
            return ids, np.concatenate([before, self.own[index]]).astype(np.uint8)
        return ids, (np.arange(len(ids)) >= self.starts[index]).astype(np.uint8)

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps, as torch.save takes it with tensors alone."""
        lists = {
            name: [torch.from_numpy(np.asarray(each)) for each in getattr(self, name)]
            for name in ("ids", "engine", "advantages", "old", "reference", "own")
        }
        arrays = {
            name: torch.from_numpy(np.asarray(getattr(self, name)))
            for name in ("prompts", "starts", "truncated", "scores", "rewards")
        }
        plain = {"number": self.number, "texts": self.texts, "measures": self.measures}
        return {**plain, **lists, **arrays}

    @classmethod
    def restored(cls, kept: dict[str, Any]) -> Rollout:
        """That of `saved`."""
        found: dict[str, Any] = {}
        for name, value in kept.items():
            if isinstance(value, torch.Tensor):
                found[name] = value.numpy()
            elif isinstance(value, list) and name not in _TEXTS:
                found[name] = [each.numpy() for each in value]
            else:
                found[name] = value
        rollout = cls(**found)
        if isinstance(rollout.advantages, np.ndarray):
            # older checkpoints have one for each completion
            pairs = zip(rollout.advantages, rollout.targets, strict=True)
            rollout.advantages = [np.full(length, value) for value, length in pairs]
        return rollout


def joined(values: Sequence[np.ndarray], indices: Sequence[int]) -> torch.Tensor:
    """The numbers of some completions, end to end, (targets,)."""
    return torch.from_numpy(np.concatenate([values[index] for index in indices]).astype(np.float32))


def replace_flat(
    rollout: Rollout, fresh: Rollout, flat: np.ndarray, theirs: np.ndarray, size: int
) -> int:
    """Put prompts whose rewards have spread in place of those without; how many."""
    places = np.flatnonzero(flat)
    good = np.flatnonzero(~theirs)
    for place, other in zip(places, good, strict=False):
        for sample in range(size):
            at, from_ = place * size + sample, other * size + sample
            for name in ("prompts", "starts", "truncated", "scores", "rewards"):
                getattr(rollout, name)[at] = getattr(fresh, name)[from_]
            for name in ("ids", "engine", "texts", *(("own",) if rollout.own else ())):
                getattr(rollout, name)[at] = getattr(fresh, name)[from_]
    return min(len(places), len(good))
