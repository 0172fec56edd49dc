"""Tokens to text: no half characters, and the pieces are the whole."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from aift_ray.serving.detokenizer import TextDelta, TextMaker
from aift_ray.serving.engines.interface import Token
from tests.helpers import chat_templates as families
from tests.helpers.chat_templates import wrap

TEXTS = [
    "こんにちは😀",
    "家族👨‍👩‍👧‍👦です", "か\u3099き\u3099", "👍🏽", "葛󠄀城", "🇯🇵", "a b  c\n", "ﾊﾝｶｸ", "𩸽を焼く",
]  # fmt: skip


def byte_tokenizer() -> Tokenizer:
    """A token a byte: every character of Japanese is cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces(tokenizer: Tokenizer, ids: list[int], stops: Sequence[str] = ()) -> list[TextDelta]:
    maker, found = TextMaker(tokenizer, stops), []
    for at, id_ in enumerate(ids):
        piece = maker.push(Token(id_, finish="length" if at == len(ids) - 1 else None))
        if piece:
            found.append(piece)
            if piece.finish:
                break
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_as_early_as_they_are_certain(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text).ids
    told = pieces(tokenizer, ids)
    assert "".join(piece.text for piece in told) == text
    assert [piece.text for piece in told] == list(text)
    assert sum(len(piece.tokens) for piece in told) == len(ids)


def test_a_cut_character_at_the_end_is_what_decode_makes_of_it() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("あい").ids[:-1]
    whole = tokenizer.decode(ids)
    assert whole == "あ\ufffd"
    assert "".join(piece.text for piece in pieces(tokenizer, ids)) == whole


@pytest.mark.parametrize("stop", ["です", "👨‍👩‍👧‍👦", "族", "家族👨"])
def test_a_stop_string_across_tokens_ends_the_text_before_it(stop: str) -> None:
    text = "家族👨‍👩‍👧‍👦です"
    tokenizer = byte_tokenizer()
    told = pieces(tokenizer, tokenizer.encode(text).ids, ["never", stop])
    assert "".join(piece.text for piece in told) == text[: text.index(stop)]
    assert told[-1].finish == "stop"


def test_the_beginning_of_a_stop_string_is_held_only_until_it_turns_out_otherwise() -> None:
    vocabulary = {token: i for i, token in enumerate(["あ", "い", "う", "え"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="あ"))
    tokenizer.decoder = decoders.Fuse()
    told = pieces(tokenizer, [0, 1, 3, 0, 1, 2], ["いう"])
    assert [piece.text for piece in told] == ["あ", "いえ", "あ", ""]
    assert told[-1].finish == "stop"


@pytest.mark.parametrize("kind", ["bpe", "metaspace"])
def test_no_tokens_fail_whatever_their_bytes(kind: str) -> None:
    tokenizer = wrap(getattr(families, kind)(), families.QWEN3, None, "<|im_end|>")
    chosen = random.Random(1)
    for _ in range(100):
        ids = [chosen.randrange(len(tokenizer)) for _ in range(30)]
        maker, text = TextMaker(tokenizer.backend_tokenizer), ""
        for at, id_ in enumerate(ids):
            piece = maker.push(Token(id_, finish="length" if at == len(ids) - 1 else None))
            text += piece.text if piece else ""
        assert len(text) > 5


def test_half_a_character_takes_nothing_with_it() -> None:
    tokenizer = wrap(families.metaspace(), families.QWEN3, None, "<|im_end|>")
    ids = [tokenizer.convert_tokens_to_ids(name) for name in ("<0x37>", "<0xE3>", "で", "す")]
    maker = TextMaker(tokenizer.backend_tokenizer)
    pieces = [maker.push(Token(id_)) for id_ in ids] + [maker.push(Token(0, finish="stop"))]
    # tokenizers' own decoding of all at once loses the 7
    assert "".join(piece.text for piece in pieces if piece) == "7\ufffdです"
