"""The tokens of what an environment replies between the turns of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aift_ray.data.examples import Example, Message
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.errors import ModelError, Problem

_QUESTION, _ANSWER = Message("user", "質問"), Message("assistant", "答え")


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
