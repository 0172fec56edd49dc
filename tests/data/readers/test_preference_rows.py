"""Rows of two answers in every form in which they come, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from aift_ray.config import DataConfig
from aift_ray.data import token_cache
from aift_ray.data.examples import Example, Fault
from aift_ray.data.prompts.preference_pairs import fit_answers, pair_steps
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.readers.reader_options import Reading
from aift_ray.data.readers.row_kinds import read_row
from aift_ray.data.token_types import Encoded, EncodedRow
from aift_ray.errors import DataError
from tests.conftest import SHIPPED
from tests.helpers.preference_rows import labelled, pairs, write
from tests.helpers.tool_templates import QWEN3_TOOLS

SAID = {"role": "user", "content": "挨拶して"}
POLITE, PLAIN = "こんにちは。", "よう。"


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


FORMS: dict[str, dict[str, Any]] = {
    "TRL, and this project's page": {
        "prompt": [SAID],
        "chosen": [answer(POLITE)],
        "rejected": [answer(PLAIN)],
        "chosen_model": "a",
    },
    "an answer as a message, the other as a text": {
        "prompt": SAID["content"],
        "chosen": [answer(POLITE)],
        "rejected": PLAIN,
    },
    "TRL with the prompt in the answers": {
        "chosen": [SAID, answer(POLITE)],
        "rejected": [SAID, answer(PLAIN)],
    },
    "UltraFeedback": {
        "prompt": "挨拶して",
        "chosen": [SAID, answer(POLITE)],
        "rejected": [SAID, answer(PLAIN)],
        "messages": [SAID, answer(POLITE)],
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
    "a prompt that is null": {
        "prompt": None,
        "chosen": [SAID, answer(POLITE)],
        "rejected": [SAID, answer(PLAIN)],
    },
    "messages and texts": {"messages": [SAID], "chosen": POLITE, "rejected": PLAIN},
    "LLaMA-Factory, ShareGPT": {
        "conversations": [{"from": "human", "value": "挨拶して"}],
        "chosen": {"from": "gpt", "value": POLITE},
        "rejected": {"from": "gpt", "value": PLAIN},
    },
    "a text as prompt of messages": {
        "prompt": "挨拶して",
        "chosen": [answer(POLITE)],
        "rejected": [answer(PLAIN)],
    },
    "HH": {
        "chosen": f"\n\nHuman: 挨拶して\n\nAssistant: {POLITE}",
        "rejected": f"\n\nHuman: 挨拶して\n\nAssistant: {PLAIN}",
    },
    "messages as JSON in the cells of a table": {
        "prompt": json.dumps([SAID], ensure_ascii=False, indent=1),
        "chosen": json.dumps([answer(POLITE)], ensure_ascii=False),
        "rejected": json.dumps([answer(PLAIN)], ensure_ascii=False),
    },
    "LLaMA-Factory, Alpaca": {
        "instruction": "挨拶して",
        "input": "",
        "chosen": POLITE,
        "rejected": PLAIN,
    },
}


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))


def read(row: Any, answers: Any = "pair") -> Example:
    found = read_row(row, "a.jsonl", 7, Reading(answers=answers))
    assert isinstance(found, Example), found
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_pair(form: str, encoder: PromptEncoder) -> None:
    found = read(FORMS[form])
    assert found.rejected is not None
    asked = "<|im_start|>user\n挨拶して<|im_end|>\n<|im_start|>assistant\n"
    for side, text in ((found, POLITE), (found.rejected, PLAIN)):
        encoded = encoder.rows(side).pieces[0]
        decode = encoder.tokenizer.decode
        pairs_of = zip(encoded.ids, encoded.supervised, strict=True)
        trained = [token for token, flag in pairs_of if flag]
        assert decode(trained) == f"{text}<|im_end|>"
        assert decode(encoded.ids).startswith(asked)


def test_answers_of_several_turns_go_on_from_the_prompt() -> None:
    more = {"role": "user", "content": "もう一度"}
    turns = {"chosen": [answer(POLITE), more, answer(POLITE)], "rejected": [answer(PLAIN)]}
    whole = {name: [SAID, *answers] for name, answers in turns.items()}
    assert read({"prompt": [SAID], **turns}) == read(whole)


def test_a_system_text_and_earlier_answers_belong_to_the_prompt(encoder: PromptEncoder) -> None:
    before = [{"role": "system", "content": "丁寧に。"}, SAID, answer("はい。"), SAID]
    row = {"prompt": before, "chosen": [answer(POLITE)], "rejected": [answer(PLAIN)]}
    encoded = encoder.rows(read(row)).pieces[0]
    flags = zip(encoded.ids, encoded.supervised, strict=True)
    trained = [token for token, flag in flags if flag]
    assert encoder.tokenizer.decode(trained) == f"{POLITE}<|im_end|>"


TOOL = {
    "type": "function",
    "function": {"name": "clock", "description": "時刻", "parameters": {"type": "object"}},
}
CALL = {"name": "clock", "arguments": {}}
WITH_TOOLS: dict[str, dict[str, Any]] = {
    "TRL": {
        "prompt": [{"role": "system", "content": "丁寧に。"}, SAID],
        "tools": [TOOL],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [{"function": CALL}]}],
        "rejected": [answer(PLAIN)],
    },
    "LLaMA-Factory, ShareGPT": {
        "conversations": [{"from": "human", "value": "挨拶して"}],
        "system": "丁寧に。",
        "tools": json.dumps([TOOL["function"]], ensure_ascii=False),
        "chosen": {"from": "function_call", "value": json.dumps(CALL)},
        "rejected": {"from": "gpt", "value": PLAIN},
    },
}


@pytest.mark.parametrize("form", WITH_TOOLS)
def test_a_system_text_and_tools_are_in_the_prompt_of_both_and_a_call_is_an_answer(
    form: str,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.chat_template = QWEN3_TOOLS
    encoder = PromptEncoder(tokenizer)
    (found,) = encoder.finish([pair_steps(encoder, read(WITH_TOOLS[form]))])
    assert isinstance(found, EncodedRow)
    assert found.not_shown == ()
    texts, trained = [], []
    for piece in found.pieces:
        start = piece.supervised.index(True)
        texts.append(tokenizer.decode(piece.ids[:start]))
        flags = zip(piece.ids, piece.supervised, strict=True)
        trained.append(tokenizer.decode([token for token, flag in flags if flag]))
    assert texts[0] == texts[1]
    assert all(part in texts[0] for part in ("丁寧に。", '"clock"', "時刻", "挨拶して"))
    assert json.loads(trained[0].split("<tool_call>")[1].split("</tool_call>")[0]) == CALL
    assert trained[0].endswith("<|im_end|>")
    assert trained[1].endswith(f"{PLAIN}<|im_end|>")


def test_raw_texts_are_not_put_into_a_template() -> None:
    found = read({"prompt": "空は", "chosen": "青い", "rejected": "赤い"})
    assert (found.kind, found.instruction, found.output) == ("prompt", "空は", "青い")


def test_two_texts_alone_have_their_common_beginning_as_prompt() -> None:
    # as TRL's extract_prompt: a blank before the answers is theirs
    for said, asked, chosen in (("空は", "空は", "青い"), ("The sky is ", "The sky is", " 青い")):
        found = read({"chosen": f"{said}青い", "rejected": f"{said}赤い"})
        assert (found.kind, found.instruction, found.output) == ("prompt", asked, chosen)
        assert found.rejected
        assert found.rejected.output.strip() == "赤い"


WRONG: dict[str, tuple[Any, str]] = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "the key rejected is missing"),
    "a label": ({"prompt": "a", "completion": "b", "label": True}, "chosen and rejected"),
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
    "empty": ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected is only white space"),
    "a number": ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen is a number"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "no prompt beside it"),
    "equal texts": ({"chosen": "空は青い", "rejected": "空は青い"}, "the same answer"),
    "scores of two names": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": 5, "score_rejected": 9},
        "chosen_score 5 is less than score_rejected 9",
    ),
    "a prompt of another name": (
        {"question": "空は？", "chosen": "青い", "rejected": "赤い"},
        "--data.columns instruction=question",
    ),
    "two prompts": (
        {"instruction": "a", "prompt": "a", "chosen": "b", "rejected": "c"},
        "keys of two kinds of row",
    ),
    "nothing shared": (
        {"chosen": [SAID, answer("b")], "rejected": [SAID | {"content": "他"}, answer("c")]},
        "no prompt in common",
    ),
    "another prompt": (
        {"prompt": "他", "chosen": [SAID, answer("b")], "rejected": [SAID, answer("c")]},
        "the prompt is none of the messages",
    ),
    "another prompt in messages": (
        {
            "prompt": [SAID | {"content": "他"}],
            "chosen": [SAID, answer("b")],
            "rejected": [SAID, answer("c")],
        },
        "the prompt is none of the messages",
    ),
    "an answered prompt": (
        {"messages": [SAID, answer("a")], "chosen": "b", "rejected": "c"},
        "ends with a message from assistant",
    ),
    "the worse one better": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": 1, "rejected_score": 2},
        "chosen_score 1 is less than rejected_score 2",
    ),
    "a margin the wrong way": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1},
        "margin -1 is less than 0",
    ),
    "a margin without end": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("inf")},
        "margin is inf, expected a number up to 1e+06",
    ),
    "a margin beyond fp32": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e300},
        "margin is 1e+300, expected a number up to 1e+06",
    ),
    "a margin that is none": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "nan"},
        "margin is nan, expected a number up to 1e+06",
    ),
    "a score without end": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": "-inf"},
        "chosen_score is -inf, expected a number up to 1e+06",
    ),
    "no answer": ({"prompt": "a"}, "the keys chosen and rejected are missing"),
    "texts for messages": (
        {"prompt": [SAID], "chosen": ["b"], "rejected": ["c"]},
        "chosen: message 1 is a string",
    ),
    "lists for messages": (
        {"prompt": [SAID], "chosen": [[answer("b")]], "rejected": [[answer("c")]]},
        "chosen: message 1 is a list",
    ),
    "no object": (["a"], "the row is a list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_pair_is_named_with_its_line(case: str) -> None:
    row, reason = WRONG[case]
    found = read_row(row, "a.jsonl", 7, Reading(answers="pair"))
    assert isinstance(found, Fault)
    assert found.line == 7
    assert reason in f"{found.reason}; {found.remedy}"


def test_labels_are_read_and_pairs_refused_where_labels_are_wanted() -> None:
    row = {"prompt": [SAID], "completion": [answer(POLITE)], "label": True}
    found = read(row, "label")
    assert (found.score, found.labelled) == (1.0, True)
    assert read({"instruction": "a", "output": "b", "label": "false"}, "label").score == 0.0
    assert read({"messages": [SAID, answer("b")], "label": 1}, "label").score == 1.0
    # LLaMA-Factory's name, and numbers of a table
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert read({"conversations": turns, "kto_tag": False}, "label").score == 0.0
    assert read({"instruction": "a", "output": "b", "label": 1.0}, "label").score == 1.0
    for wrong, reason in (
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "are a pair"),
        ({"prompt": "a", "completion": "b"}, "the key label is missing"),
        ({"prompt": "a", "completion": "b", "label": True, "kto_tag": True}, "label and kto_tag"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "expected true or false"),
    ):
        fault = read_row(wrong, "a.jsonl", 3, Reading(answers="label"))
        assert isinstance(fault, Fault)
        assert reason in fault.reason


def test_a_pair_under_sft_is_told_of_objectives() -> None:
    fault = read_row(FORMS["HH"], "a.jsonl", 1, Reading())
    assert isinstance(fault, Fault)
    assert "--objective dpo" in fault.remedy


def test_a_cut_keeps_the_same_prompt_for_both_and_no_answer_is_cut() -> None:
    prompt = list(range(20))
    sides = [Encoded([*prompt, *range(100, 100 + n)], [False] * 20 + [True] * n) for n in (3, 6)]
    fitted = fit_answers(sides, 16)
    assert fitted is not None
    assert [side.ids[:10] for side in fitted] == [[0, 1, 2, 3, 4, 15, 16, 17, 18, 19]] * 2
    assert [side.ids[10:] for side in fitted] == [[100, 101, 102], list(range(100, 106))]
    assert max(map(len, fitted)) == 16
    assert fit_answers(sides, 7) is None


def test_a_file_becomes_pairs_of_token_rows(tmp_path: Path, encoder: PromptEncoder) -> None:
    rows = [*pairs(5), *[FORMS["HH"]] * 2]
    file = write(tmp_path / "rows.jsonl", rows)
    config = DataConfig(train_files=[str(file)])
    prepared = token_cache.prepare(config, encoder, 256, answers="pair")
    found = prepared.rows("train")
    assert (prepared.train.rows, len(found)) == (7, 14)
    groups = prepared.groups().reshape(-1, 2)
    assert (groups[:, 0] == groups[:, 1]).all()
    assert [found.place(2 * n) for n in range(7)] == [f"{file}:{n + 1}" for n in range(7)]
    assert any("repeat" in warning for warning in prepared.warnings)
    with pytest.raises(DataError, match="objective sft trains one"):
        token_cache.prepare(config, encoder, 256)


def test_a_label_row_is_followed_by_its_prompt_with_another_answer(
    tmp_path: Path, encoder: PromptEncoder
) -> None:
    file = write(tmp_path / "rows.jsonl", labelled(5))
    config = DataConfig(train_files=[str(file)])
    found = token_cache.prepare(config, encoder, 256, answers="label").rows("train")

    def cut(index: int) -> tuple[list[int], list[int]]:
        ids, flags = found.row(index)
        first = int(flags.argmax())
        return ids[:first].tolist(), ids[first:].tolist()

    for row in range(5):
        (prompt, _), (same, other) = cut(2 * row), cut(2 * row + 1)
        assert prompt == same
        assert other == cut(2 * ((row - 1) % 5))[1]
    assert found.scores[::2].tolist() == [0.0, 1.0, 1.0, 0.0, 1.0]


def test_csv_and_parquet_hold_pairs_too(tmp_path: Path, encoder: PromptEncoder) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    csv = tmp_path / "rows.csv"
    csv.write_text(f"instruction,chosen,rejected\n挨拶して,{POLITE},{PLAIN}\n", "utf-8")
    table = pa.Table.from_pylist([FORMS["TRL, and this project's page"]])
    parquet.write_table(table, tmp_path / "rows.parquet")
    jsonl = write(tmp_path / "rows.jsonl", [json.loads(json.dumps(FORMS["HH"]))])
    found = []
    for file in (csv, tmp_path / "rows.parquet", jsonl):
        config = DataConfig(train_files=[str(file)])
        rows = token_cache.prepare(config, encoder, 256, answers="pair").rows("train")
        found.append([rows.row(index)[0].tolist() for index in range(2)])
    assert found[0] == found[1] == found[2]
