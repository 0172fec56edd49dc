"""No text of a row becomes a control token, and all of it comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder, RowError
from tests.helpers import chat_templates as families
from tests.helpers.chat_templates import FAMILIES, wrap
from tests.helpers.row_examples import (
    CONVERSATIONS,
    INJECTIONS,
    NAMES,
    chat,
    controls,
    rendered,
    runs,
    with_text,
)

HARD = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "hard"


def all_ids(encoder: PromptEncoder, example: Example) -> list[int]:
    return [token for piece in encoder.rows(example).pieces for token in piece.ids]


def assert_rendered(encoder: PromptEncoder, example: Example, name: str) -> None:
    """What is trained comes back as the template has it, or holds every text."""
    encoded = encoder.rows(example)
    text = str(encoder.tokenizer.decode(encoded.pieces[-1].ids))
    if encoded.split or name == "r1":
        assert all(each.content.strip() in text for each in example.messages)
    else:
        assert text == rendered(encoder, example)


@pytest.mark.parametrize("name", NAMES)
def test_control_strings_in_any_text_stay_text(
    encoder_of: Callable[[str], PromptEncoder], name: str
) -> None:
    encoder = encoder_of(name)
    tokenizer = encoder.tokenizer
    empty = controls(tokenizer, all_ids(encoder, chat(with_text("普通"))))
    for control in INJECTIONS:
        # Qwen3 and R1 read this tag in an answer, and lose what is before it.
        if control == "</think>" and name in ("qwen3", "r1"):
            continue
        example = chat(with_text(f"前{control}後\n{control}"))
        assert controls(tokenizer, all_ids(encoder, example)) == empty, control
        assert_rendered(encoder, example, name)
        for kind in ("text", "prompt"):
            raw = encoder.encode(Example(kind, "f", 1, (), f"{control}前", "", f"{control}後"))
            expected = (f"{control}前" if kind == "prompt" else "") + f"{control}後"
            ids = raw.ids[len(encoder._prefix) : -1]
            assert tokenizer.decode(ids) == expected
            assert controls(tokenizer, ids) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["injection.messages.jsonl", "roles.messages.jsonl"])
def test_shared_injections_make_no_control_token(
    encoder_of: Callable[[str], PromptEncoder], name: str, file: str
) -> None:
    if not (HARD / file).exists():
        pytest.skip(f"{HARD / file} is not here")
    encoder = encoder_of(name)
    for line in (HARD / file).read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        turns = [(each["role"], each["content"]) for each in json.loads(line)["messages"]]
        if name in ("qwen3", "r1") and "</think>" in turns[-1][1]:
            with pytest.raises(RowError, match=r"the chat template (changes|writes other)"):
                encoder.encode(chat(turns))
            continue
        plain = all_ids(encoder, chat([(role, "普通") for role, _ in turns]))
        expected = controls(encoder.tokenizer, plain)
        assert controls(encoder.tokenizer, all_ids(encoder, chat(turns))) == expected
        assert_rendered(encoder, chat(turns), name)


def test_hard_strings_come_back_unchanged(bpe: Tokenizer) -> None:
    if not (HARD / "strings.jsonl").exists():
        pytest.skip(f"{HARD / 'strings.jsonl'} is not here")
    encoder = PromptEncoder(wrap(bpe, families.CHATML, None, "<|endoftext|>"))
    for line in (HARD / "strings.jsonl").read_text(encoding="utf-8").split("\n"):
        text = json.loads(line)["text"] if line else ""
        if not text:
            continue
        encoded = encoder.encode(chat([("user", text), ("assistant", text)]))
        assert [encoder.tokenizer.decode(run) for run in runs(encoded)] == [text + "<|im_end|>"]
        raw = encoder.encode(Example("text", "f", 1, output=text))
        assert encoder.tokenizer.decode(raw.ids[:-1]) == text


@pytest.mark.parametrize("name", ["llm-jp", "llama2", "chatml", "llama3"])
def test_sentencepiece_keeps_prompt_and_answer_apart(metaspace: Tokenizer, name: str) -> None:
    template, bos, eos, end = FAMILIES[name]
    encoder = PromptEncoder(wrap(metaspace, template, bos, eos))
    for turns in CONVERSATIONS.values():
        encoded = encoder.encode(chat(turns))
        prompt = encoder.prompt_ids(chat(turns))
        assert encoded.ids[: len(prompt)] == prompt
        assert encoded.supervised[len(prompt)]
        assert not encoded.supervised[len(prompt) - 1]
        assert len(runs(encoded)) == len([role for role, _ in turns if role == "assistant"])
        assert [run[-1] for run in runs(encoded)] == [
            encoder.tokenizer.convert_tokens_to_ids(end) for _ in runs(encoded)
        ]
    empty = controls(encoder.tokenizer, encoder.encode(chat(with_text("普通"))).ids)
    for control in INJECTIONS:
        encoded = encoder.encode(chat(with_text(control)))
        assert controls(encoder.tokenizer, encoded.ids) == empty, control
        # To sentencepiece, a blank and U+2581 are one.
        blanks = str.maketrans("", "", " ▁")
        shown = str(encoder.tokenizer.decode(encoded.ids)).translate(blanks)
        assert shown == rendered(encoder, chat(with_text(control))).translate(blanks)


def test_raw_text_of_sentencepiece_comes_back(metaspace: Tokenizer) -> None:
    tokenizer = wrap(metaspace, None, "<s>", "</s>", adds_bos=True)
    encoder = PromptEncoder(tokenizer)
    encoded = encoder.encode(Example("text", "f", 1, output="東京</s>です。"))
    assert tokenizer.decode(encoded.ids[1:-1]) == "東京</s>です。"
    clean = encoder.encode(Example("text", "f", 1, output="東京です。"))
    assert clean.ids == [*tokenizer("東京です。")["input_ids"], tokenizer.eos_token_id]
