"""Rewards as typed, and what is refused before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aift_ray.errors import ConfigError
from aift_ray.rewards import RewardSpec, distinct_names, parse


def test_names_files_folders_and_addresses(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("from os import *\ndef reward(**kwargs): ...\n", "utf-8")
    assert parse("politeness", 0.5) == RewardSpec("politeness", "builtin", "politeness", weight=0.5)
    assert parse(f"{file}:reward") == RewardSpec("reward", "function", str(file), "reward")
    assert parse(f"{file}:reward:rows_per_call=4").rows_per_call == 4
    # a name that an `import *` may bring
    assert parse(f"{file}:getcwd").function == "getcwd"
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    assert parse(str(model)) == RewardSpec("model", "model", str(model))
    assert parse(f"{model}:batch_size=8").options == {"batch_size": 8}
    judge = parse("http://127.0.0.1:8000/v1?model=a%20b&rubric=%E4%B8%81%E5%AF%A7&highest=5")
    assert (judge.kind, judge.target, judge.name) == (
        "judge",
        "http://127.0.0.1:8000/v1",
        "judge_a b",
    )
    assert judge.options == {"model": "a b", "rubric": "丁寧", "highest": 5}


def test_values_of_options_may_hold_commas_and_equal_signs() -> None:
    assert parse("regex:pattern=a,b=c,match=full").options == {"pattern": "a,b=c", "match": "full"}
    assert parse("regex:pattern=https?://x:8").options == {"pattern": "https?://x:8"}


WRONG = {
    "polite": "did you mean 'politeness'?",
    "politeness:strict=1": "there is no option 'strict'",
    "exact_match:colum=x": "did you mean 'column'?",
    "exact_match:pattern=(": "it is no regular expression",
    "exact_match:pattern=x,colum=y": "did you mean 'column'?",
    "exact_match:take=middle": "give one of first, last",
    "regex": "no pattern is given: regex:pattern=EXPRESSION",
    "length": "neither min nor max is given",
    "length:min=5,max=2": "min is above max",
    "length:min=x": "give a whole number of at least 0",
    "json_schema:schema=no_such.json": "it can't be read: No such file or directory",
    "code": "no sandbox is named",
    "code:sandbox=local": "no sandbox is named",
    "no_such.py:f": "there is no file no_such.py",
    "./no_such_folder": "there is no folder './no_such_folder'",
    "http://h/v1": "the model that judges is not named",
    "http://h/v1?model=m&modle=n": "did you mean 'model'?",
    "http://h/v1?model=m&lowest=5&highest=5": "lowest is not below highest",
    "": "there is no folder ''",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_reward_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert WRONG[text] in str(caught.value)


def test_every_wrong_option_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("length:unit=tokens,min=-1,max=x,marjin=3", float("nan"))
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    ("source", "function", "what"),
    [
        ("def reward(: pass", "reward", "is no Python file: line 1"),
        ("def reward(): ...", "rewrad", "did you mean 'reward'?"),
        ("x = 1", "reward", "it defines no function"),
        ("def a(): ...\ndef b(): ...", "", "it defines a, b"),
        ("x = 1\0", "reward", "is no Python file"),
    ],
)
def test_a_file_is_read_before_it_is_run(
    tmp_path: Path, source: str, function: str, what: str
) -> None:
    file = tmp_path / "own.py"
    file.write_text(source, "utf-8")
    with pytest.raises(ConfigError) as caught:
        parse(f"{file}:{function}" if function else str(file))
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("config.json", {"architectures": ["LlamaForCausalLM"]}, "the model is LlamaForCausalLM"),
        ("adapter_config.json", {"task_type": "CAUSAL_LM"}, "the adapter's task_type is CAUSAL_LM"),
        ("other.json", {}, "the folder has no config.json that can be read"),
    ],
)
def test_a_folder_of_another_model_is_refused(
    tmp_path: Path, file: str, content: dict[str, object], what: str
) -> None:
    (tmp_path / file).write_text(json.dumps(content), "utf-8")
    with pytest.raises(ConfigError) as caught:
        parse(str(tmp_path))
    assert what in str(caught.value)
    assert "train one with --objective reward" in str(caught.value)


def test_rewards_of_the_same_name_are_told_apart() -> None:
    texts = ["regex:pattern=a", "politeness", "regex:pattern=b", "regex:pattern=c"]
    names = distinct_names([parse(text) for text in texts])
    assert names == ["regex", "politeness", "regex_2", "regex_3"]
