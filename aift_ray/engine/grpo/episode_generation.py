"""Completions of several turns: the model writes, an environment replies, the model goes on.

A completion holds the tokens of all turns and of the replies between them. The replies are read by
the model and not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from aift_ray.config import GRPOConfig
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.engine.grpo.completion_generation import Completion
from aift_ray.errors import RewardError
from aift_ray.models.answer_text import turn_text
from aift_ray.rewards.environment import parse_environment
from aift_ray.rewards.environments import Environments
from aift_ray.rewards.episodes import Replies
from aift_ray.rewards.memory_limit import memory_limit

Key = tuple[int, ...]
# completions of prompts, one for each of their keys
Generate = Callable[[Sequence[np.ndarray], Sequence[Sequence[Key]]], list[list[Completion]]]


@dataclass
class _Episode:
    """One completion so far; the lists of arrays are of its turns and replies, in order."""

    prompt: np.ndarray
    key: Key
    ids: list[np.ndarray] = field(default_factory=list)
    own: list[np.ndarray] = field(default_factory=list)
    logps: list[np.ndarray] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False

    @property
    def length(self) -> int:
        """Tokens of the completion."""
        return sum(map(len, self.ids))

    def read(self) -> np.ndarray:
        """What the model reads before its next turn."""
        return np.concatenate([self.prompt, *self.ids])

    def add(self, ids: np.ndarray, own: bool) -> None:
        """More tokens, of the model or of a reply."""
        self.ids.append(ids)
        self.own.append(np.full(len(ids), own, np.uint8))

    def completion(self) -> Completion:
        """As it is trained."""
        ids, own = (np.concatenate(each) for each in (self.ids, self.own))
        logps = np.concatenate(self.logps)
        return Completion(ids, logps, self.truncated, own, self.messages)


class EpisodeGenerator:
    """Generates completions in the episodes of an environment.

    Args:
        stop_ids: each ends a turn of the model.

    Raises:
        ModelError: see `Replies`.
    """

    def __init__(
        self,
        environments: Environments,
        tokenizer: PreTrainedTokenizerBase,
        how: GRPOConfig,
        stop_ids: Sequence[int],
    ) -> None:
        self._environments, self._how = environments, how
        self._replies = Replies(PromptEncoder(tokenizer, extra_stop_ids=stop_ids))
        self._tokenizer, self._stops = tokenizer, frozenset(stop_ids)

    def close(self) -> None:
        """End the processes of the environments."""
        self._environments.close()

    def generate(
        self,
        generate: Generate,
        sources: Sequence[dict[str, Any]],
        prompts: Sequence[np.ndarray],
        keys: Sequence[Sequence[Key]],
    ) -> list[list[Completion]]:
        """Completions of each prompt; the first turn is that of a completion of one turn.

        Args:
            generate: completions of one turn.
            sources: rows of the prompts, with which the episodes begin.

        Raises:
            RewardError: an environment failed; names the row and what went wrong.
        """
        pairs = [
            (source, _Episode(prompt, key))
            for source, prompt, each in zip(sources, prompts, keys, strict=True)
            for key in each
        ]
        episodes = [episode for _, episode in pairs]
        begun = self._environments.reset([source for source, _ in pairs])
        if any(begun):
            what = "reset returned a text, but the prompt of a training row is the row's own"
            raise RewardError(f"grpo.environment: {what}; write the text into the rows")
        active = list(range(len(episodes)))
        for turn in range(self._how.max_turns):
            self._write(generate, [episodes[at] for at in active], turn)
            active = self._reply(episodes, active, turn)
            if not active:
                break
        flat = iter(episode.completion() for episode in episodes)
        return [[next(flat) for _ in each] for each in keys]

    def _write(self, generate: Generate, active: list[_Episode], turn: int) -> None:
        """Have the model write the next turn of some episodes."""
        # the first turn draws as a completion of one turn does
        keys = [[each.key if not turn else (*each.key, turn)] for each in active]
        made = generate([each.read() for each in active], keys)
        for episode, (written,) in zip(active, made, strict=True):
            left = self._how.max_completion_length - episode.length
            ids = written.ids[:left]
            episode.add(ids, True)
            episode.logps.append(written.logps[:left])
            episode.truncated = int(ids[-1]) not in self._stops
            said = turn_text(self._tokenizer, ids.tolist(), list(self._stops))
            episode.messages.append({"role": "assistant", "content": said})

    def _reply(self, episodes: list[_Episode], active: list[int], turn: int) -> list[int]:
        """Have the environment reply; the episodes that go on."""
        whole = [at for at in active if not episodes[at].truncated]
        answers = {at: str(episodes[at].messages[-1]["content"]) for at in whole}
        going_on = []
        for at, reply in self._environments.step(answers).items():
            if reply is None:
                continue
            episode = episodes[at]
            following = np.array(self._replies.ids(reply), episode.prompt.dtype)
            room = episode.length + len(following) < self._how.max_completion_length
            if turn + 1 == self._how.max_turns or not room:
                episode.truncated = True
                continue
            episode.add(following, False)
            episode.messages += reply
            going_on.append(at)
        return going_on


def episodes_of(
    how: GRPOConfig, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]
) -> EpisodeGenerator | None:
    """Generates completions of several turns; None where they have one."""
    if how.environment is None:
        return None
    limits: dict[str, Any] = {"timeout": how.reward_timeout, "memory": memory_limit(how)}
    spec = parse_environment(how.environment)
    environments = Environments(spec, processes=how.reward_processes, **limits)
    return EpisodeGenerator(environments, tokenizer, how, stop_ids)
