"""The objects in which OpenAI's routes answer."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from aift_ray.serving.detokenizer import TextDelta
from aift_ray.serving.engines.interface import Token
from aift_ray.serving.token_bytes import AnswerBytes, TokenBytes
from aift_ray.serving.tools import CallReader


class ResponseBuilder(ABC):
    """Builds the objects of one response.

    Args:
        model: as the client named it.
    """

    prefix: ClassVar[str]
    object_: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, tokens: TokenBytes, model: str) -> None:
        self.tokens, self.model = tokens, model
        self._told: dict[int, AnswerBytes] = {}
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def head(self, object_: str | None = None) -> dict[str, Any]:
        """What stands in every object of the response."""
        kind = object_ or self.chunk_object
        return {"id": self._id, "object": kind, "created": self._created, "model": self.model}

    def whole(self, pieces: Sequence[TextDelta]) -> dict[str, Any]:
        """The response without stream, but for usage."""
        choices = [self.choice(index, piece) for index, piece in enumerate(pieces)]
        return self.head(self.object_) | {"choices": choices}

    def told(self, index: int) -> AnswerBytes:
        """The bytes of an answer's tokens, told so far."""
        return self._told.setdefault(index, AnswerBytes(self.tokens))

    @abstractmethod
    def chunks(self, index: int, piece: TextDelta, first: bool) -> Iterator[dict[str, Any]]:
        """The chunks that tell a piece."""

    @abstractmethod
    def choice(self, index: int, piece: TextDelta) -> dict[str, Any]:
        """A whole answer."""


class ChatForm(ResponseBuilder):
    """Chat completions.

    Args:
        logprobs: whether they are told.
    """

    prefix = "chatcmpl"
    object_ = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokens: TokenBytes, model: str, logprobs: bool = False) -> None:
        super().__init__(tokens, model)
        self._wants_logprobs = logprobs

    def choice(self, index: int, piece: TextDelta) -> dict[str, Any]:
        """A whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
        if piece.thought:
            message |= {"content": piece.text or None, "reasoning_content": piece.thought}
        told = self._choice(index, "message", message, piece)
        if self._wants_logprobs and not told["logprobs"]:
            # an answer without a token: clients go through the list all the same
            told["logprobs"] = {"content": [], "refusal": None}
        return told

    def chunks(self, index: int, piece: TextDelta, first: bool) -> Iterator[dict[str, Any]]:
        """The role first, then the thought and the text, then why it ended."""
        if first:
            yield self._chunk(index, {"role": "assistant", "content": ""}, TextDelta(""))
        if piece.thought:
            yield self._chunk(index, {"reasoning_content": piece.thought}, TextDelta(""))
        if piece.text or piece.tokens:
            told = TextDelta(piece.text, piece.tokens)
            yield self._chunk(index, {"content": piece.text}, told)
        if piece.finish:
            yield self._chunk(index, {}, TextDelta("", (), piece.finish))

    def _chunk(self, index: int, delta: dict[str, Any], piece: TextDelta) -> dict[str, Any]:
        return self.head() | {"choices": [self._choice(index, "delta", delta, piece)]}

    def _choice(
        self, index: int, name: str, said: dict[str, Any], piece: TextDelta
    ) -> dict[str, Any]:
        answer = self.told(index)
        told = [
            self._logprob(token, answer.next(token.id, piece.text)[0])
            for token in piece.tokens
            if token.logprob is not None
        ]
        return {
            "index": index,
            name: said,
            "logprobs": {"content": told, "refusal": None} if told else None,
            "finish_reason": piece.finish,
        }

    def _logprob(self, token: Token, said: bytes | None) -> dict[str, Any]:
        top = [self._entry(id_, logprob, self.tokens.of(id_)) for id_, logprob in token.top]
        return self._entry(token.id, token.logprob, said) | {"top_logprobs": top}

    def _entry(self, id_: int, logprob: float | None, said: bytes | None) -> dict[str, Any]:
        text = self.tokens.name(id_) if said is None else _shown(said, "")
        bytes_ = None if said is None else list(said)
        return {"token": text, "logprob": _finite(logprob), "bytes": bytes_}


class ToolForm(ChatForm):
    """Chat completions that may call functions.

    Args:
        names: of the functions.
    """

    def __init__(
        self, tokens: TokenBytes, model: str, names: Collection[str], logprobs: bool = False
    ) -> None:
        super().__init__(tokens, model, logprobs)
        self._names = names
        self._readers: dict[int, CallReader] = {}

    def choice(self, index: int, piece: TextDelta) -> dict[str, Any]:
        """A whole answer."""
        said, calls = CallReader(self._names).push(piece)
        told = super().choice(index, said)
        if calls:
            told["message"]["content"] = said.text or None
            told["message"]["tool_calls"] = [call.told() for call in calls]
        return told

    def chunks(self, index: int, piece: TextDelta, first: bool) -> Iterator[dict[str, Any]]:
        """Text as it comes, then the calls, each whole, then why it ended."""
        reader = self._readers.setdefault(index, CallReader(self._names))
        said, calls = reader.push(piece)
        yield from super().chunks(index, replace(said, finish=None), first)
        if calls:
            told = [{"index": at} | call.told() for at, call in enumerate(calls)]
            yield self._chunk(index, {"tool_calls": told}, TextDelta(""))
        if said.finish:
            yield self._chunk(index, {}, TextDelta("", (), said.finish))


class TextForm(ResponseBuilder):
    """Completions.

    Args:
        logprobs: whether they are told.
        echoed: what stands before each answer.
    """

    prefix = "cmpl"
    object_ = chunk_object = "text_completion"

    def __init__(
        self,
        tokens: TokenBytes,
        model: str,
        logprobs: bool = False,
        echoed: Sequence[str] = (),
    ) -> None:
        super().__init__(tokens, model)
        self._wants_logprobs = logprobs
        self._echoed = dict(enumerate(echoed))

    def choice(self, index: int, piece: TextDelta) -> dict[str, Any]:
        """A whole answer, behind its prompt where that is wanted."""
        text = self._echoed.pop(index, "") + piece.text
        piece = replace(piece, text=text, tokens=piece.prompt + piece.tokens)
        return {
            "index": index,
            "text": piece.text,
            "logprobs": self._logprobs(index, piece) if self._wants_logprobs else None,
            "finish_reason": piece.finish,
        }

    def chunks(self, index: int, piece: TextDelta, first: bool) -> Iterator[dict[str, Any]]:
        """One chunk a piece."""
        yield self.head() | {"choices": [self.choice(index, piece)]}

    def _logprobs(self, index: int, piece: TextDelta) -> dict[str, Any]:
        tokens = piece.tokens
        answer = self.told(index)
        said = [answer.next(token.id, piece.text) for token in tokens]
        texts = [self._name(token.id, one) for token, (one, _) in zip(tokens, said, strict=True)]
        return {
            "tokens": texts,
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            # nothing comes before the first token of a prompt
            "top_logprobs": [
                None if token.logprob is None else self._top(token) for token in tokens
            ],
            "text_offset": [at for _, at in said],
        }

    def _top(self, token: Token) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for id_, logprob in token.top:
            text = self._name(id_, self.tokens.of(id_))
            # two tokens may say the same, such as a letter and the byte that it is
            names = (text, self.tokens.name(id_), f"token {id_}")
            found[next(name for name in names if name not in found)] = _finite(logprob)
        return found

    def _name(self, id_: int, said: bytes | None) -> str:
        return self.tokens.name(id_) if said is None else _shown(said, "bytes:")


def _shown(said: bytes, mark: str) -> str:
    """A token as text; half a character as OpenAI writes it, its bytes in hexadecimal."""
    try:
        return said.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in said)


def _finite(logprob: float | None) -> float | None:
    # JSON has no infinity
    return None if logprob is None else max(logprob, -9999.0)
