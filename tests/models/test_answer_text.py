"""An answer is what stands behind the reasoning and before the turn's end."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from aift_ray.models.answer_text import turn_text, written
from tests.helpers import chat_templates as families

HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    backend: Tokenizer = families.bpe()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    made.add_special_tokens({"additional_special_tokens": list(HARMONY)})
    return made


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize(
    ("prompt", "new", "answer"),
    [
        ("問い", "答え</think>です", "答え</think>です"),
        ("問い<think>\n", "考え</think>\n\n答え", "答え"),
        ("問い<think>\n", "考え続け", None),
        ("問い", "<think>\n\n</think>\n\n答え", "答え"),
        ("問い", "<think>考え", None),
        ("問い", "<|channel|>final<|message|>答え", "答え"),
        (
            "問い",
            "<|channel|>analysis<|message|>考え<|end|><|start|>assistant<|channel|>final<|message|>答え",
            "答え",
        ),
        ("問い", "<|channel|>analysis<|message|>考え", None),
        ("問い", "<|channel|>final", None),
    ],
)
def test_the_answer_is_told_from_the_reasoning(
    tokenizer: PreTrainedTokenizerFast, prompt: str, new: str, answer: str | None
) -> None:
    end = ids(tokenizer, "<|return|>")
    for tail in ([], end, [*end, *ids(tokenizer, "後")]):
        found = written(tokenizer, ids(tokenizer, prompt), ids(tokenizer, new) + tail, end)
        assert found.answer == answer


def test_reasoning_is_kept_for_who_asks(tokenizer: PreTrainedTokenizerFast) -> None:
    found = written(tokenizer, ids(tokenizer, "<think>"), ids(tokenizer, "考え</think>答え"), [])
    assert found.text == "考え</think>答え"


def test_half_a_character_is_left_out_only_where_the_length_cut_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    whole = ids(tokenizer, "はい𠮟")
    assert turn_text(tokenizer, whole, []) == "はい𠮟"
    cut = whole[:-1]
    assert "\ufffd" in tokenizer.decode(cut)
    assert turn_text(tokenizer, cut, []) == "はい"
