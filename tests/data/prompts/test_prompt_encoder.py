"""Rows to ids: what is trained, what serving feeds, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from aift_ray.data.examples import Example
from aift_ray.data.prompts.alpaca import FALLBACK_TEMPLATE, KNOWN
from aift_ray.data.prompts.prompt_encoder import PromptEncoder, RowError
from aift_ray.errors import ModelError
from tests.helpers import chat_templates as families
from tests.helpers.chat_templates import FAMILIES, wrap
from tests.helpers.row_examples import CONVERSATIONS, NAMES, chat, rendered, trained


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("name", NAMES)
def test_each_answer_is_trained_with_one_turn_end(
    encoder_of: Callable[[str], PromptEncoder], name: str, turns: list[tuple[str, str]]
) -> None:
    encoder, example = encoder_of(name), chat(turns)
    answers = [text for role, text in turns if role == "assistant"]
    trims = name in ("llama3", "gemma2", "llama2")
    end = FAMILIES[name][3]
    for text, answer in zip(trained(encoder, example), answers, strict=True):
        expected = answer.strip() if trims else answer
        if name == "harmony":
            expected = "<|channel|>final<|message|>" + expected
        if name == "llama2":
            expected = f" {expected} "
        if name == "qwen3":
            expected = "<think>\n\n</think>\n\n" + expected.lstrip("\n")
        if name == "r1":
            # its prompt opens a thought
            expected = "\n</think>\n\n" + expected
        assert text == expected + end
    encoded = encoder.rows(example)
    rewrites = name in ("harmony", "qwen3", "r1")
    assert encoded.split == (rewrites and len(answers) > 1)
    assert len(encoded.pieces) == (len(answers) if rewrites else 1)
    if not rewrites:
        assert encoder.tokenizer.decode(encoded.pieces[0].ids) == rendered(encoder, example)


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
@pytest.mark.parametrize("name", NAMES)
def test_ids_before_each_answer_are_those_that_serving_feeds(
    encoder_of: Callable[[str], PromptEncoder], name: str, turns: list[tuple[str, str]]
) -> None:
    encoder, example = encoder_of(name), chat(turns)
    found = []
    for piece in encoder.rows(example).pieces:
        flags = [False, *piece.supervised]
        starts = [at for at, flag in enumerate(piece.supervised) if flag and not flags[at]]
        found += [piece.ids[:start] for start in starts]
    asked = [at for at, (role, _) in enumerate(turns) if role == "assistant"]
    assert found == [encoder.chat_ids(example.messages[:at]) for at in asked]
    assert found[-1] == encoder.prompt_ids(example)
    assert not encoder.generation_gap
    if len(asked) == 1:
        text = encoder.tokenizer.decode(found[0])
        assert encoder.tokenizer(text, add_special_tokens=False)["input_ids"] == found[0]


def test_rows_without_control_strings_get_the_plain_joint_ids(
    encoder_of: Callable[[str], PromptEncoder],
) -> None:
    for name in NAMES:
        encoder, example = encoder_of(name), chat(CONVERSATIONS["system"])
        if name in ("calm2", "r1"):
            continue  # a prompt that ends in a blank, which may melt into the answer, or a thought
        ids = encoder.tokenizer(rendered(encoder, example), add_special_tokens=False)["input_ids"]
        assert encoder.encode(example).ids == ids, name


@pytest.mark.parametrize("name", ["chatml", "calm2"])
def test_a_token_across_prompt_and_answer_makes_the_row_piecewise(
    bpe: Tokenizer, name: str
) -> None:
    template, bos, eos, _ = FAMILIES[name]
    encoder = PromptEncoder(wrap(bpe, template, bos, eos))
    plain = chat([("user", "はい"), ("assistant", "hello" if name == "calm2" else "\nはい")])
    encoder.encode(plain)
    assert encoder.piecewise_rows == 1


def test_a_returned_answer_of_r1_loses_its_thoughts_in_the_history(bpe: Tokenizer) -> None:
    template, bos, eos, _ = FAMILIES["r1"]
    encoder = PromptEncoder(wrap(bpe, template, bos, eos))
    history = chat([("user", "問"), ("assistant", "考え<s>\n</think>\n\n答え"), ("user", "次<s>")])
    assert encoder.tokenizer.decode(encoder.chat_ids(history.messages)) == (
        f"{bos}<｜User｜>問<｜Assistant｜>\n\n答え{eos}<｜User｜>次<s><｜Assistant｜><think>\n"
    )


@pytest.mark.parametrize("name", NAMES)
def test_bos_stands_once(encoder_of: Callable[[str], PromptEncoder], name: str) -> None:
    encoder = encoder_of(name)
    bos = encoder.tokenizer.bos_token_id
    if bos is None or bos == encoder.tokenizer.eos_token_id:
        pytest.skip("no BOS of its own")
    for example in (
        chat(CONVERSATIONS["system"]),
        Example("text", "f", 1, output="今日は晴れ"),
        Example("prompt", "f", 1, instruction="今日は", output="晴れ"),
    ):
        encoded = encoder.encode(example)
        if name == "harmony" and example.kind == "messages":
            assert bos not in encoded.ids  # its template writes none
            continue
        assert encoded.ids[0] == bos
        assert encoded.ids.count(bos) == 1
        assert not encoded.supervised[0]


def test_end_of_text_is_trained_where_it_is_also_the_padding(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, None, None, "</s>"))
    tokenizer = encoder.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for kind in ("instruction", "prompt", "text"):
        encoded = encoder.encode(Example(kind, "f", 1, (), "問い", "", "答え"))
        assert encoded.ids[-1] == tokenizer.eos_token_id
        assert encoded.supervised[-1]


def test_prompt_and_completion(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, None, "<s>", "</s>", adds_bos=True))
    row = Example("prompt", "f", 1, instruction="質問: 首都は？\n答え: ", output="東京\n")
    encoded = encoder.encode(row)
    prompt = encoder.prompt_ids(row)
    assert encoded.ids[: len(prompt)] == prompt == encoder.tokenizer(row.instruction)["input_ids"]
    assert encoded.supervised == [False] * len(prompt) + [True] * (len(encoded) - len(prompt))
    assert encoder.tokenizer.decode(encoded.ids[len(prompt) :]) == "東京\n</s>"
    assert encoder.answer_text(row) == "東京\n"


def test_instruction_is_one_user_message(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, families.CHATML, None, "<|im_end|>"), "短く。")
    row = Example("instruction", "f", 1, (), "要約して", "晴れ", "はい")
    assert encoder.tokenizer.decode(encoder.prompt_ids(row)) == (
        "<|im_start|>system\n短く。<|im_end|>\n<|im_start|>user\n要約して\n\n晴れ<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    own = chat(CONVERSATIONS["system"])
    assert encoder.tokenizer.decode(encoder.prompt_ids(own)).count("短く。") == 1
    assert encoder.answer_text(row) == "はい"


def test_system_prompt_moves_into_the_user_turn_where_there_is_no_role(bpe: Tokenizer) -> None:
    template, bos, eos, _ = FAMILIES["gemma2"]
    encoder = PromptEncoder(wrap(bpe, template, bos, eos), "短く。")
    row = Example("instruction", "f", 1, (), "首都は？", "", "東京")
    text = encoder.tokenizer.decode(encoder.prompt_ids(row))
    assert text == (
        "<bos><start_of_turn>user\n短く。\n\n首都は？<end_of_turn>\n<start_of_turn>model\n"
    )


def test_fallback_is_the_alpaca_form_and_is_saved(bpe: Tokenizer, tmp_path: Path) -> None:
    tokenizer = wrap(bpe, None, "<s>", "</s>")
    encoder = PromptEncoder(tokenizer)
    assert encoder.used_fallback
    row = Example("instruction", "f", 1, (), "要約して", "晴れ", "はい")
    text = tokenizer.decode(encoder.encode(row).ids)
    assert text == (
        "<s>以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
        "\n\n### 指示:\n要約して\n\n### 入力:\n晴れ\n\n### 応答:\nはい</s>"
    )
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.chat_template == FALLBACK_TEMPLATE
    loaded = PromptEncoder(again)
    assert loaded.encode(row) == encoder.encode(row)
    assert loaded.used_fallback


def test_stablelm_gets_the_spaces_and_the_system_text_of_its_training(bpe: Tokenizer) -> None:
    tokenizer = wrap(bpe, KNOWN["alpaca-stablelm"], "<|endoftext|>", "<|endoftext|>")
    encoder = PromptEncoder(tokenizer)
    head = (
        "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。"
        "要求を適切に満たす応答を書きなさい。\n\n### 指示: \n要約して"
    )
    for given, section in (("晴れ", "\n\n### 入力: \n晴れ"), ("", "")):
        row = Example("instruction", "f", 1, (), "要約して", given, "はい")
        prompt = f"{head}{section}\n\n### 応答: \n"
        assert tokenizer.decode(encoder.prompt_ids(row)) == prompt
        assert tokenizer.decode(encoder.encode(row).ids) == f"{prompt}はい<|endoftext|>"


def test_stop_ids_hold_every_end_once(bpe: Tokenizer) -> None:
    tokenizer = wrap(bpe, families.CHATML, None, "<|endoftext|>")
    end, eos = (tokenizer.added_tokens_encoder[each] for each in ("<|im_end|>", "<|endoftext|>"))
    encoder = PromptEncoder(tokenizer, extra_stop_ids=[eos, 7])
    assert sorted(encoder.stop_ids) == sorted([eos, 7, end])


def test_unusable_tokenizers_are_refused_with_a_remedy(bpe: Tokenizer) -> None:
    with pytest.raises(ModelError, match="eos_token"):
        PromptEncoder(wrap(bpe, families.CHATML, None, None))
    slow = SimpleNamespace(is_fast=False, eos_token_id=1)
    with pytest.raises(ModelError, match="slow"):
        PromptEncoder(slow)  # type: ignore[arg-type]
    endless = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    with pytest.raises(ModelError, match="end-of-turn"):
        PromptEncoder(wrap(bpe, endless))
    with pytest.raises(ModelError, match="what the user says"):
        PromptEncoder(wrap(bpe, "こんにちは"))


def test_rows_that_cannot_be_encoded_say_why(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, FAMILIES["gemma2"][0], "<bos>", "<eos>"))
    with pytest.raises(RowError, match="alternate"):
        encoder.encode(chat([("user", "a"), ("user", "b"), ("assistant", "c")]))
    with pytest.raises(RowError, match="reserved"):
        encoder.encode(Example("text", "f", 1, output="\ufdd0aift-token-4\ufdd1"))
    with pytest.raises(RowError, match="no prompt"):
        encoder.prompt_ids(Example("text", "f", 1, output="a"))


def test_blank_runs_keep_their_tokens(bpe: Tokenizer) -> None:
    tokenizer = wrap(bpe)
    tokenizer.add_tokens([AddedToken("    ", special=False, normalized=True)])
    encoder = PromptEncoder(tokenizer)
    text = "if x:\n    y"
    ids = encoder.encode(Example("text", "f", 1, output=text)).ids
    assert ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def test_digest_changes_with_all_that_changes_ids(bpe: Tokenizer) -> None:
    def of(template: str | None = None, system: str | None = None, eos: str = "</s>") -> str:
        return PromptEncoder(wrap(bpe, template, None, eos), system).digest()

    assert of() == of()
    used = PromptEncoder(wrap(bpe))
    used.tokenizer("あ", padding="max_length", max_length=8, truncation=True)
    assert used.digest() == of()
    assert len({of(), of(families.CHATML), of(system="短く。"), of(eos="<eos>")}) == 4
