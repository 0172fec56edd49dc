"""A model answers with new text only, from the prompt that training made, as it is told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor

from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.errors import ConfigError, DataError
from aift_ray.models import hub
from aift_ray.models.japanese_model import JapaneseModel
from tests.conftest import SHIPPED

QUESTION = "日本で一番高い山の名前を繰り返してください。"


class Forced(LogitsProcessor):
    """Makes a model write the given ids, whatever it would say."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)
        self.prompt: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.prompt = self.prompt or input_ids[0].tolist()
        at = input_ids.shape[1] - len(self.prompt)
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids[at % len(self.ids)]] = 0
        return forced


@pytest.fixture(scope="module")
def hina() -> JapaneseModel:
    return JapaneseModel("hina-4m", torch.device("cpu"))


def ids(model: JapaneseModel, text: str) -> list[int]:
    return list(model.load_tokenizer().encode(text, add_special_tokens=False))


def altered(source: Path, folder: Path, **config: Any) -> Path:
    """A copy of a model folder with other values in its config.json."""
    shutil.copytree(source, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("given", ["", "富士山は三七七六メートルある。"])
def test_the_prompt_is_what_training_puts_before_the_answer(
    hina: JapaneseModel, given: str
) -> None:
    forced = Forced(ids(hina, "<|im_end|>"))
    assert hina.generate_japanese(QUESTION, given or None, logits_processor=[forced]) == ""
    encoder = PromptEncoder(hub.load_tokenizer(str(SHIPPED)))
    row = encoder.encode(Example("instruction", "f", 1, (), QUESTION, given, "はい"))
    assert forced.prompt == row.ids[: row.supervised.index(True)]


def test_a_system_prompt_stands_before_that_call_only(hina: JapaneseModel) -> None:
    with_it, without = (Forced(ids(hina, "<|im_end|>")) for _ in range(2))
    hina.generate_japanese(QUESTION, system_prompt="短く。", logits_processor=[with_it])
    hina.generate_japanese(QUESTION, logits_processor=[without])
    tokenizer = hina.load_tokenizer()
    assert "短く。" in tokenizer.decode(with_it.prompt)
    assert "短く。" not in tokenizer.decode(without.prompt)


def test_only_new_text_up_to_the_turns_end_is_returned(hina: JapaneseModel) -> None:
    forced = Forced(ids(hina, "富士山です。<|im_end|>\n<|im_start|>user\n"))
    assert hina.generate_japanese(QUESTION, logits_processor=[forced]) == "富士山です。"


def test_a_reasoning_models_answer_is_what_follows_its_thoughts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(SHIPPED, tmp_path / "thinking")
    template = folder / "chat_template.jinja"
    header = "<|im_start|>assistant\n"
    source = template.read_text("utf-8")
    assert header in source
    before, _, after = source.rpartition(header)
    template.write_text(f"{before}{header}<think>\n{after}", encoding="utf-8")
    model = JapaneseModel(str(folder), torch.device("cpu"))
    forced = Forced(ids(model, "山の話だ。</think>\n\n富士山です。<|im_end|>"))
    asked: dict[str, Any] = {"logits_processor": [forced]}
    assert model.generate_japanese(QUESTION, **asked) == "富士山です。"
    assert model.load_tokenizer().decode(forced.prompt).endswith("<think>\n")
    thoughts = model.generate_japanese(QUESTION, return_reasoning=True, **asked)
    assert thoughts == "山の話だ。</think>\n\n富士山です。"
    assert model.generate_japanese(QUESTION, max_new_tokens=2, **asked) == ""
    assert "still reasoning after 2 tokens" in caplog.text


def test_no_half_character_is_returned(hina: JapaneseModel) -> None:
    forced = Forced(ids(hina, "はい𠮟"))
    length = len(forced.ids) - 1
    answer = hina.generate_japanese(QUESTION, max_new_tokens=length, logits_processor=[forced])
    assert answer == "はい"


def test_without_sampling_the_answer_is_the_same_every_time(hina: JapaneseModel) -> None:
    answers = {
        hina.generate_japanese(QUESTION, max_new_tokens=24, do_sample=False) for _ in range(3)
    }
    answers.add(hina.generate_japanese(QUESTION, max_new_tokens=24, temperature=0))
    answers.add(hina.generate_japanese(QUESTION, max_new_tokens=24, top_k=1))
    assert len(answers) == 1


def test_the_sampling_options_act(hina: JapaneseModel) -> None:
    def answers(**options: Any) -> set[str]:
        found = set()
        for seed in range(4):
            torch.manual_seed(seed)
            found.add(hina.generate_japanese(QUESTION, max_new_tokens=8, **options))
        return found

    hot = answers(temperature=5.0, top_p=1.0, top_k=0)
    assert len(hot) == 4
    assert answers(temperature=5.0, top_p=1.0, top_k=0) == hot, "a seed gives the same answer"
    assert len(answers(temperature=5.0, top_p=1e-6, top_k=0)) == 1
    assert len(answers(temperature=5.0, top_p=1.0, top_k=1)) == 1
    assert len(answers(temperature=1e-3, top_p=1.0, top_k=0)) == 1


def test_further_options_reach_generate(hina: JapaneseModel) -> None:
    forced = Forced(ids(hina, "富士山です。"))
    stopped = hina.generate_japanese(QUESTION, stop_strings=["です"], logits_processor=[forced])
    assert stopped.startswith("富士山です")
    assert len(stopped) < 10


def test_another_end_of_turn_is_taken(hina: JapaneseModel) -> None:
    forced, end = Forced(ids(hina, "富士山です。")), ids(hina, "。")[-1]
    answer = hina.generate_japanese(QUESTION, eos_token_id=end, logits_processor=[forced])
    assert answer == "富士山です"


def test_the_answer_ends_where_the_context_ends(tiny_model: Path, tmp_path: Path) -> None:
    model = JapaneseModel(
        str(altered(tiny_model, tmp_path / "short", max_position_embeddings=48)),
        torch.device("cpu"),
    )
    forced = Forced(ids(model, "あ"))
    answer = model.generate_japanese("はい", logits_processor=[forced])
    assert len(forced.prompt) + len(answer) == 48
    with pytest.raises(DataError, match="the model takes 48"):
        model.generate_japanese("長い文。" * 40)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"do_sample": "no"}, "do_sample"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"input_ids": []}, "input_ids"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
def test_a_wrong_option_is_named(hina: JapaneseModel, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        hina.generate_japanese(QUESTION, **options)


def test_every_wrong_option_is_told_at_once(hina: JapaneseModel) -> None:
    with pytest.raises(ConfigError) as caught:
        hina.generate_japanese(QUESTION, None, 0, -1.0, 2.0, -1, 1)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("instruction", ["", "  \n", None, 3, ["問い"], "\ufdd0aift-"])
def test_an_instruction_that_is_no_text_is_refused(hina: JapaneseModel, instruction: Any) -> None:
    with pytest.raises(DataError, match="instruction"):
        hina.generate_japanese(instruction)


def test_an_input_that_is_no_text_is_refused(hina: JapaneseModel) -> None:
    with pytest.raises(DataError, match="input_text"):
        hina.generate_japanese(QUESTION, ["富士山"])  # type: ignore[arg-type]


def test_an_answer_leaves_training_as_it_was(hina: JapaneseModel) -> None:
    model = hina.load_model()
    model.train()
    try:
        hina.generate_japanese(QUESTION, max_new_tokens=1)
        assert model.training
    finally:
        model.eval()
