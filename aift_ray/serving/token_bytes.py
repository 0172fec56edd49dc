"""The bytes that tokens stand for: a character may be spread over several of them."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

# a token of SentencePiece that is one byte, and its sign for a blank
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "▁"
_BYTE_OF = {letter: byte for byte, letter in bytes_to_unicode().items()}


class TokenBytes:
    """The bytes of each token of a tokenizer, which stand in the text of its neighbours."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._special |= {
            id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        decoder = tokenizer.backend_tokenizer.decoder
        parts = list(_parts(json.loads(decoder.__getstate__()))) if decoder else []
        kinds = {part["type"] for part in parts}
        self._byte_level, self._byte_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self._blanks = "Metaspace" in kinds or any(
            part.get("pattern") == {"String": _BLANK} for part in parts
        )

    def of(self, token: int) -> bytes | None:
        """What a token adds to a text; None: it is a control token, or none at all."""
        if token in self._special:
            return None
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return None
        if self._byte_level and all(letter in _BYTE_OF for letter in name):
            return bytes(_BYTE_OF[letter] for letter in name)
        if self._byte_fallback and (byte := _BYTE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        return str(name.replace(_BLANK, " ") if self._blanks else name).encode()

    def name(self, token: int) -> str:
        """How the tokenizer writes a token."""
        return str(self._tokenizer.convert_ids_to_tokens(token) or f"token {token}")


def _parts(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield decoder
    for part in decoder.get("decoders", ()):
        yield from _parts(part)


class AnswerBytes:
    """The bytes of the tokens of one answer, in their order, and where they stand in its text."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = False
        self._length = 0

    def next(self, token: int, text: str) -> tuple[bytes | None, int]:
        """The bytes of the next token, and the number of characters before it.

        Args:
            text: of the answer, as far as this token or those after it complete it.
        """
        found = self._tokens.of(token)
        at = self._length
        if found and not self._begun:
            self._begun = True
            # the blank at the start of an answer is dropped by some decoders
            if found[:1] == b" " and text and not text.startswith(" "):
                found = found[1:]
        self._length += len(self._decoder.decode(found or b""))
        return found, at


def whole(said: bytes) -> bool:
    """Whether some bytes end with a whole character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(said)
    return not decoder.getstate()[0]
