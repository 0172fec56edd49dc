"""Reward models against transformers and PEFT, and a judge behind a real HTTP server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from aift_ray.errors import RewardError
from aift_ray.rewards import Rewards, parse
from aift_ray.rewards.scorer import load
from aift_ray.rewards.user_function import Refused
from tests.helpers.judge_server import JudgeServer

PROMPTS: list[Any] = [
    [{"role": "user", "content": "犬は好きですか。"}],
    [{"role": "system", "content": "短く。"}, {"role": "user", "content": "猫は？"}],
    [{"role": "user", "content": "鳥は"}],
]
COMPLETIONS: list[Any] = [
    "はい、好きです。",
    [{"role": "assistant", "content": "好きではありません。とても長い答えです。"}],
    "飛びます。",
]


def classifier(base: Path, folder: Path, adapter: bool) -> Path:
    """A model with one output a text, as `--objective reward` writes it."""
    torch.manual_seed(3)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model.config.pad_token_id = tokenizer.pad_token_id
    if adapter:
        lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"])
        model = get_peft_model(model, lora)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_transformers(
    tmp_path: Path, tiny_model: Path, adapter: bool, batch_size: int
) -> None:
    folder = classifier(tiny_model, tmp_path / "reward", adapter)
    kind: Any = AutoModelForSequenceClassification
    options: dict[str, Any] = {"attn_implementation": "eager"}
    if adapter:
        kind, options = AutoPeftModelForSequenceClassification, options | {"num_labels": 1}
    model = kind.from_pretrained(folder, **options).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        said = completion
        if isinstance(said, str):
            said = [{"role": "assistant", "content": said}]
        ids = tokenizer.apply_chat_template([*prompt, *said], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted.append(model(ids).logits[0, 0].item())
    score = load(parse(f"{folder}:batch_size={batch_size}"))
    found = score(PROMPTS, COMPLETIONS, {})
    assert found == pytest.approx(wanted, abs=1e-6)
    assert len(set(wanted)) == 3
    if batch_size == 1:
        pairs = zip(PROMPTS, COMPLETIONS, strict=True)
        assert [score([one], [other], {})[0] for one, other in pairs] == found


@pytest.mark.slow
def test_a_reward_model_has_one_process_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    spec = parse(str(classifier(tiny_model, tmp_path / "reward", False)))
    wanted = load(spec)(PROMPTS, COMPLETIONS, {})
    rewards = [parse("length:min=6"), spec]
    with Rewards(rewards, timeout=60.0, memory=1 << 30, processes=2) as scored:
        assert len(scored.pids) == 3
        assert scored.score(PROMPTS, COMPLETIONS, {}) == [[1.0, 1.0, 0.0], wanted]


def test_a_damaged_reward_model_is_refused_before_the_start(
    tmp_path: Path, tiny_model: Path
) -> None:
    folder = classifier(tiny_model, tmp_path / "reward", adapter=False)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(Refused, match=r"model\.safetensors is damaged: its header is cut"):
        load(parse(str(folder)))


def test_a_judge_grades_each_completion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    server = JudgeServer()
    try:
        spec = parse(f"{server.url}?model=j&rubric=丁寧な日本語&column=answer")
        with Rewards([spec], timeout=20.0, memory=None, processes=1) as scored:
            assert scored.check(["output"])[0].what == "the rows have no column 'answer'"
            answers = [["正しい答え"], "別の答え", None]
            (found,) = scored.score(PROMPTS, COMPLETIONS, {"answer": answers})
            lengths = [8, 20, 5]
            assert found == [(JudgeServer.grade("x" * n) - 1) / 9 for n in lengths]
            asked = [each["messages"][0]["content"] for each in server.asked]
            assert all("丁寧な日本語" in each for each in asked)
            assert sum("正しい答え" in each for each in asked) == 1
            assert any("system: 短く。\n\nuser: 猫は？" in each for each in asked)
            assert set(server.keys) == {"Bearer secret"}
            assert {each["temperature"] for each in server.asked} == {0}
            server.manner = "silent"
            assert scored.score(PROMPTS, COMPLETIONS, {"answer": answers}) == [[None] * 3]
    finally:
        server.stop()


def test_a_judge_that_refuses_is_named() -> None:
    server = JudgeServer()
    server.stop()
    spec = parse(f"{server.url}?model=j")
    with (
        Rewards([spec], timeout=20.0, memory=None, processes=1) as scored,
        pytest.raises(RewardError, match=r"reward judge_j, row 0: .* can't be reached"),
    ):
        scored.score(PROMPTS, COMPLETIONS, {})
