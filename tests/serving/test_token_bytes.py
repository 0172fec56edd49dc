"""The bytes of tokens, for each kind of tokenizer, and schemas that refer to themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from aift_ray.serving.schema_refs import CycleError, check_references
from aift_ray.serving.token_bytes import AnswerBytes, TokenBytes
from tests.conftest import SHIPPED

TEXTS = ["今日は雨が降っている。", "窶🐈", "two  words and 👨‍👩‍👧", " leading", "\n改行\t"]


def sentencepiece(decoder: Any) -> PreTrainedTokenizerFast:
    """A unigram tokenizer as SentencePiece makes them, with a token for each byte."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    pieces += [(piece, -1.0) for piece in ("▁", "▁two", "▁words", "今日", "は", "雨", "▁and")]
    made = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    made.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def byte_level(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    made.add_special_tokens(["<|end|>"])
    made.add_tokens(["今日"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


TOKENIZERS = {
    "shipped": AutoTokenizer.from_pretrained(SHIPPED),
    "byte level": byte_level(TEXTS),
    "gemma": sentencepiece(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ),
    "llama": sentencepiece(
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_all_tokens_are_those_of_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    answer = AnswerBytes(TokenBytes(tokenizer))
    told = [answer.next(token, whole) for token in ids]
    assert b"".join(said or b"" for said, _ in told) == whole.encode()
    # each begins where the characters that were complete before it end
    before = b""
    for said, at in told:
        assert at == len(before.decode(errors="ignore"))
        before += said or b""


def test_words_keep_their_blank_and_control_tokens_have_no_bytes() -> None:
    for kind in ("gemma", "llama"):
        tokens = TokenBytes(TOKENIZERS[kind])
        assert tokens.of(TOKENIZERS[kind].convert_tokens_to_ids("▁words")) == b" words"
        assert tokens.of(TOKENIZERS[kind].convert_tokens_to_ids("<0xE7>")) == b"\xe7"
    end = TOKENIZERS["byte level"].eos_token_id
    tokens = TokenBytes(TOKENIZERS["byte level"])
    assert (tokens.of(end), tokens.name(end)) == (None, "<|end|>")
    assert (tokens.of(10**6), tokens.name(10**6)) == (None, "token 1000000")


NULL, TEXT = {"type": "null"}, {"type": "string"}
LIST = {
    "type": "object",
    "properties": {"next": {"anyOf": [NULL, {"$ref": "#"}]}},
    "required": ["next"],
}


@pytest.mark.parametrize(
    "schema",
    [
        LIST,
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"$ref": "#"}, TEXT]},
        {"$ref": "#/$defs/a~1b", "$defs": {"a/b": TEXT}},
        {"$ref": "#a", "$defs": {"a": {"$anchor": "a", **TEXT}}},
        {"properties": {"$ref": TEXT, "required": TEXT}, "required": ["required", "x"]},
    ],
)
def test_schemas_that_a_value_satisfies_are_no_cycles(schema: dict[str, Any]) -> None:
    check_references(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}]},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
    ],
)
def test_what_no_finite_value_satisfies_is_a_cycle(schema: dict[str, Any]) -> None:
    with pytest.raises(CycleError, match="#"):
        check_references(schema)


def test_a_long_chain_of_references_is_followed_at_once() -> None:
    steps = {f"a{number}": {"$ref": f"#/$defs/a{number + 1}"} for number in range(20_000)}
    check_references({"$ref": "#/$defs/a0", "$defs": steps | {"a20000": TEXT}})
    with pytest.raises(CycleError):
        check_references({"$ref": "#/$defs/a0", "$defs": steps | {"a20000": {"$ref": "#"}}})
