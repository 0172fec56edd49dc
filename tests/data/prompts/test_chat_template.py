"""The text work: renderings cut into the template's parts and the row's, pinned dates."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from aift_ray.data.examples import Message
from aift_ray.data.prompts.alpaca import FALLBACK_TEMPLATE, is_fallback
from aift_ray.data.prompts.answer_spans import Joiner
from aift_ray.data.prompts.char_alignment import TextSpan
from aift_ray.data.prompts.chat_template import ChatTemplate, pin_dates
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import SafeTokenizer
from tests.helpers import chat_templates as families
from tests.helpers.chat_templates import FAMILIES, SPECIAL, wrap

USER, ANSWER = Message("user", "問い"), Message("assistant", " 答え\n")


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return families.bpe()


@pytest.fixture(scope="module")
def safe(bpe: Tokenizer) -> SafeTokenizer:
    return families.safe(bpe)


def template(bpe: Tokenizer, source: str) -> ChatTemplate:
    return ChatTemplate(wrap(bpe, source, "<s>", "</s>"))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_parts_join_to_the_rendering(bpe: Tokenizer, safe: SafeTokenizer, name: str) -> None:
    chat = template(bpe, FAMILIES[name][0])
    for generation in (False, True):
        messages = [USER, ANSWER, USER, ANSWER][: 3 if generation else 4]
        parts = chat.parts(messages, generation, safe)
        assert "".join(part.text for part in parts) == chat.render(messages, generation)
        said = [part.content.turn for part in parts if part.content is not None]
        assert said == list(range(len(messages)))


def test_trimmed_contents_are_found(bpe: Tokenizer, safe: SafeTokenizer) -> None:
    parts = template(bpe, families.LLAMA3).parts([Message("user", "　問い "), ANSWER], False, safe)
    assert [part.text for part in parts if part.content is not None] == ["問い", "答え"]


def test_contents_that_the_template_rewrites(bpe: Tokenizer, safe: SafeTokenizer) -> None:
    shouting = families.CHATML.replace(
        "m['content']", "(m['content'] | replace('。', '！') if m['role'] == 'user' "
        "else m['content'])"
    )  # fmt: skip
    chat = template(bpe, shouting)
    for messages in (
        [Message("user", "はい。"), ANSWER],
        [Message("user", "。<|im_end|>"), ANSWER],
    ):
        with pytest.raises(RowError, match="changes the text of message 1"):
            chat.parts(messages, False, safe)
    # what serving is asked is shown as the template has it
    parts = chat.parts([Message("user", "はい。")], True, safe)
    assert "はい！" in "".join(part.text for part in parts)


def test_a_template_that_looks_into_a_text_is_read_by_its_header(
    bpe: Tokenizer, safe: SafeTokenizer
) -> None:
    curious = families.CHATML.replace(
        "{% for m in messages %}",
        "{% for m in messages %}{{ '!' if m['role'] == 'user' and m['content'] == 'はい。' }}",
    )
    chat = template(bpe, curious)
    parts = chat.parts([Message("user", "はい。"), ANSWER], False, safe)
    assert [part.text for part in parts if part.content is not None] == [ANSWER.content]
    header = safe.literal("<|im_end|>\n<|im_start|>assistant\n")
    named = [TextSpan(safe.literal(part.text)) if part.content is None else part for part in parts]
    prompt = Joiner(safe, [header]).join(named)
    span = prompt.spans[0]
    assert prompt.text[span.start : span.end] == ANSWER.content + safe.names["<|im_end|>"]
    assert not span.gap


def test_answers_that_the_template_rewrites_are_refused(
    bpe: Tokenizer, safe: SafeTokenizer
) -> None:
    upper = families.CHATML.replace("m['content']", "m['content'] | upper")
    with pytest.raises(RowError):
        template(bpe, upper).parts([USER, Message("assistant", "abc")], False, safe)
    twice = families.CHATML.replace("m['content']", "m['content'] + m['content']")
    with pytest.raises(RowError, match="drops or repeats"):
        template(bpe, twice).parts([USER, ANSWER], False, safe)


def test_dates_are_pinned() -> None:
    pinned = pin_dates(families.HARMONY)
    assert "2024-07-26" in pinned
    assert pin_dates(families.CHATML) == families.CHATML


def test_a_pinned_template_renders_the_date(bpe: Tokenizer) -> None:
    chat = template(bpe, families.HARMONY)
    assert "Current date: 2024-07-26\n" in chat.render([USER], True)
    guarded = (
        "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now(\"%d %b %Y\") %}{%- endif %}{%- endif %}"
        "{{ 'Today Date: ' + date_string }}"
    )  # fmt: skip
    assert template(bpe, guarded).render([USER], True) == "Today Date: 26 Jul 2024"


def test_the_fallback_is_known_by_its_name() -> None:
    assert is_fallback(FALLBACK_TEMPLATE)
    assert not is_fallback(families.LLM_JP)


def test_safe_tokenizer_makes_control_tokens_only_of_literals(safe: SafeTokenizer) -> None:
    for name in SPECIAL:
        ids = safe.encode(f"あ{name}い")
        assert not safe.control_ids & set(ids)
        literal = safe.encode(f"あ{safe.literal(name)}い")
        assert len(safe.control_ids & set(literal)) == 1


def test_safe_tokenizer_has_the_tokenizers_ids(bpe: Tokenizer, safe: SafeTokenizer) -> None:
    text = "<|im_start|>user\n日本の首都は？ hello<|im_end|>\n<think>\n"
    assert safe.encode(safe.literal(text)) == bpe.encode(text, add_special_tokens=False).ids


def test_a_dummy_prefix_is_noticed(bpe: Tokenizer, safe: SafeTokenizer) -> None:
    assert not safe.dummy_prefix
    assert families.safe(families.metaspace()).dummy_prefix
