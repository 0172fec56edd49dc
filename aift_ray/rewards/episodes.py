"""Completions of several turns: what the model wrote and what an environment replied, as tokens.

The tokens of a completion are those that the model wrote and read, one after the other; they are
never encoded again from their text. A flag tells its own from the others, which are not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aift_ray.data.examples import Example, Message
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.errors import ModelError, Problem
from aift_ray.rewards.environments import Environments

# prompts so far to what the model writes after each, with the token that ends the turn
Generate = Callable[[list[list[int]]], list[list[int]]]
_QUESTION, _ANSWER = Message("user", "質問"), Message("assistant", "答え")


@dataclass
class Transcript:
    """One completion of several turns.

    Attributes:
        prompt: token ids before the completion.
        ids: token ids of the completion: the model's own, and those of replies between them.
        own: as long as `ids`; True where the token is the model's own, and is trained.
        messages: the turns of the completion, as rewards are given them.
        truncated: the completion ended before its last turn did, or before the episode.
    """

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False

    def add(self, ids: Sequence[int], own: bool) -> None:
        """More tokens."""
        self.ids += ids
        self.own += [own] * len(ids)


class Replies:
    """Encodes what an environment replies, as it follows the end of the model's turn.

    Raises:
        ModelError: the chat template writes an answer otherwise when another turn follows it.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        example = Example("messages", "", 0, messages=(_QUESTION, _ANSWER))
        encoded = encoder.encode(example)
        last = max(at for at, flag in enumerate(encoded.supervised) if flag)
        self._head = encoded.ids[: last + 1]
        self.ids([{"role": "user", "content": "次"}])

    def ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The tokens of a reply and of the header of the answer to it."""
        turns = [Message(str(each["role"]), str(each["content"])) for each in messages]
        whole = self._encoder.chat_ids([_QUESTION, _ANSWER, *turns])
        if whole[: len(self._head)] != self._head:
            what = "it writes an answer otherwise when another turn follows it"
            remedy = "generate one turn, without an environment"
            raise ModelError([Problem("chat_template", what, remedy)])
        return whole[len(self._head) :]


def run_episodes(
    environments: Environments,
    rows: Sequence[dict[str, Any]],
    prompts: Sequence[Sequence[Message]],
    encoder: PromptEncoder,
    generate: Generate,
    *,
    max_turns: int,
    max_tokens: int,
) -> list[Transcript]:
    """The completions of some prompts, each with an episode of its own.

    Args:
        rows: of the prompts, with which the environments begin.
        prompts: conversations that end with a message of the user.
        generate: writes the next turn of each of several completions.
        max_turns: turns of the model at most.
        max_tokens: tokens of a completion, replies included; the one that reaches it is cut.

    Raises:
        RewardError: an environment failed; names the row and what went wrong.
        ModelError: see `Replies`.
    """
    replies, tokenizer = Replies(encoder), encoder.tokenizer
    begun = environments.reset(rows)
    chats = [_with_text(prompt, text) for prompt, text in zip(prompts, begun, strict=True)]
    found = [Transcript(encoder.chat_ids(chat)) for chat in chats]
    active = list(range(len(found)))
    for turn in range(max_turns):
        written = generate([found[at].prompt + found[at].ids for at in active])
        answers = {}
        for at, ids in zip(active, written, strict=True):
            transcript = found[at]
            left = max_tokens - len(transcript.ids)
            transcript.add(ids[:left], True)
            answer = str(tokenizer.decode(ids[:left], skip_special_tokens=True))
            transcript.messages.append({"role": "assistant", "content": answer})
            transcript.truncated = not ids[:left] or ids[:left][-1] not in encoder.stop_ids
            if not transcript.truncated:
                answers[at] = answer
        active = []
        for at, reply in environments.step(answers).items():
            if reply is None:
                continue
            following = replies.ids(reply)
            room = len(found[at].ids) + len(following) < max_tokens
            if turn + 1 == max_turns or not room:
                found[at].truncated = True
                continue
            found[at].add(following, False)
            found[at].messages += reply
            active.append(at)
        if not active:
            break
    return found


def _with_text(prompt: Sequence[Message], text: str | None) -> list[Message]:
    if not text:
        return list(prompt)
    *before, last = prompt
    return [*before, Message(last.role, f"{last.content}\n{text}", last.further)]
