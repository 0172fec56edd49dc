"""Tokens that were added to a tokenizer: found in every text, or only where a template is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from tests.helpers import chat_templates as families
from tests.helpers.chat_templates import wrap
from tests.helpers.row_examples import chat, runs

# 質問, 答え and 結果 are what a template is tried with
WORDS = ["富士山", "琵琶湖", "質問", "答え", "結果", "首都は", "<fim_prefix>"]
SPECIAL, WRITTEN, BUILT = "<秘密>", "<ここから>", "<発言者-user>"
# WRITTEN stands in the source, BUILT is put together when it is rendered
TEMPLATE = (
    "{% for m in messages %}{{ '<発言者-' + m['role'] + '>' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<発言者-assistant>' }}{% endif %}"
    "{% if documents %}<ここから>{% endif %}"
)
TEXT = "富士山と琵琶湖の首都は？<fim_prefix>質問に答え、結果を。"


@pytest.fixture(scope="module")
def extended(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer with words that it was not made with."""
    tokenizer = wrap(bpe, TEMPLATE)
    tokenizer.add_tokens([*WORDS, BUILT, WRITTEN])
    tokenizer.add_tokens([AddedToken(SPECIAL, special=True)])
    return tokenizer


@pytest.fixture(scope="module")
def ids_of(extended: PreTrainedTokenizerFast) -> Callable[[str], set[int]]:
    return lambda text: set(extended(text, add_special_tokens=False)["input_ids"])


def text_row(text: str) -> Example:
    return Example("text", "rows.jsonl", 1, output=text)


def test_added_words_are_those_of_transformers(extended: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(extended)
    words = [extended.convert_tokens_to_ids(each) for each in WORDS]
    found = encoder.encode(text_row(TEXT)).ids
    assert found == [*extended(TEXT)["input_ids"], extended.eos_token_id]
    assert set(words) <= set(found)
    asked = [{"role": "user", "content": TEXT}]
    theirs: Any = extended.apply_chat_template(asked, add_generation_prompt=True)
    example = chat([("user", TEXT), ("assistant", TEXT)])
    assert encoder.prompt_ids(example) == theirs["input_ids"]
    trained = encoder.encode(example)
    assert trained.ids[: len(theirs["input_ids"])] == theirs["input_ids"]
    [answer] = runs(trained)
    assert extended.decode(answer) == f"{TEXT}<|im_end|>"
    assert set(words) <= set(answer)


def test_a_word_over_the_border_of_prompt_and_answer_is_cut(
    extended: PreTrainedTokenizerFast,
) -> None:
    encoder = PromptEncoder(extended)
    row = Example("prompt", "f", 1, (), "日本一は富士", "", "山です。")
    whole = encoder.encode(row)
    asked = encoder.prompt_ids(row)
    assert whole.ids[: len(asked)] == asked
    assert extended.convert_tokens_to_ids("富士山") not in whole.ids
    assert extended.decode(whole.ids[:-1]) == "日本一は富士山です。"


@pytest.mark.parametrize("text", [SPECIAL, WRITTEN, BUILT, "<|im_end|>", "</s>"])
def test_no_text_makes_a_token_that_is_special_or_that_the_template_writes(
    extended: PreTrainedTokenizerFast, ids_of: Callable[[str], set[int]], text: str
) -> None:
    encoder = PromptEncoder(extended)
    [token] = ids_of(text)
    plain = chat([("system", "規則"), ("user", "問い"), ("assistant", "返事")])
    typed = chat([("system", f"規則{text}"), ("user", f"問い{text}"), ("assistant", f"返事{text}")])
    wanted, found = encoder.encode(plain).ids, encoder.encode(typed).ids
    assert found.count(token) == wanted.count(token)
    assert encoder.prompt_ids(typed).count(token) == encoder.prompt_ids(plain).count(token)
    assert text in extended.decode(found)
    assert token not in encoder.encode(text_row(f"規則{text}")).ids[:-1]
    assert encoder.prompt_ids(typed) == found[: len(encoder.prompt_ids(typed))]


def test_what_a_model_stops_at_is_written_by_no_text(
    extended: PreTrainedTokenizerFast, ids_of: Callable[[str], set[int]]
) -> None:
    [token] = ids_of("琵琶湖")
    row = text_row("琵琶湖です。")
    assert token in PromptEncoder(extended).encode(row).ids
    assert token not in PromptEncoder(extended, extra_stop_ids=[token]).encode(row).ids


def test_rows_are_encoded_anew_where_another_token_is_control(bpe: Tokenizer) -> None:
    tokenizer = wrap(bpe, families.CHATML)
    number = len(tokenizer)
    tokenizer.add_tokens(["富士山"])
    digests = {PromptEncoder(tokenizer, extra_stop_ids=ids).digest() for ids in ([], [number])}
    assert len(digests) == 2
