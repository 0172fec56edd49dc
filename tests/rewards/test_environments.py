"""Completions of several turns: real processes, and tokens against transformers' chat template."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from transformers import AutoTokenizer

from aift_ray.config import GRPOConfig
from aift_ray.data.examples import Example, Message
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.engine.grpo.completion_generation import Completion
from aift_ray.engine.grpo.episode_generation import EpisodeGenerator
from aift_ray.errors import ConfigError, ModelError, RewardError
from aift_ray.rewards.environment import Calculator, parse_environment
from aift_ray.rewards.environments import Environments
from aift_ray.rewards.episodes import Replies
from tests.conftest import SHIPPED

COUNTING = """
import os, time
class Counting:
    def reset(self, row):
        self.left, self.seen = row["turns"], []
        return f"{self.left} turns"
    def step(self, answer):
        if answer == "raises":
            raise ValueError("bad answer")
        if answer == "hangs":
            time.sleep(60)
        if answer == "sleeps":
            time.sleep(0.5)
        self.seen.append(answer)
        self.left -= 1
        return " ".join(self.seen) if self.left else None
"""


@pytest.fixture
def counting(tmp_path: Path) -> str:
    file = tmp_path / "own.py"
    file.write_text(COUNTING, "utf-8")
    return f"{file}:Counting"


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("<calc>12 * (3 + 4)</calc>", "84"),
        ("<calc>1/3</calc>", "0.333333333333"),
        ("<calc>1</calc> <calc>0.1 + 0.2</calc>", "0.3"),
        ("<calc>6 ÷ 2 × -3</calc>", "-9"),
        ("<calc>2 ** 10 % 1000 // 7</calc>", "3"),
        ("<calc>1/0</calc>", "error: division by zero"),
        ("<calc>__import__('os')</calc>", "error: __import__('os') is no arithmetic expression"),
        ("<calc>10 ** 10 ** 10</calc>", "error: 10 ** 10 ** 10 is no arithmetic expression"),
        ("<calc>(9**64)**64</calc>", "error: (9**64)**64 is no arithmetic expression"),
        ("<calc>9**64</calc>", "error: the value is too large"),
        ("<calc>True</calc>", "error: True is no arithmetic expression"),
        (f"<calc>{'(' * 90}1{')' * 90}</calc>", "1"),
        ("<calc>" + "1+" * 200 + "1</calc>", "error: more than 200 characters"),
        ("答えは 84 です。", None),
    ],
)
def test_the_calculator(answer: str, reply: str | None) -> None:
    assert Calculator().step(answer) == reply


def test_episodes_keep_their_state_apart(counting: str) -> None:
    spec = parse_environment(counting)
    with Environments(spec, timeout=20.0, memory=None, processes=2) as held:
        assert held.reset([{"turns": 1}, {"turns": 3}, {"turns": 2}]) == [
            "1 turns",
            "3 turns",
            "2 turns",
        ]
        user = {"role": "user"}
        first = held.step({0: "a", 1: "b", 2: "c"})
        assert first == {0: None, 1: [user | {"content": "b"}], 2: [user | {"content": "c"}]}
        assert held.step({1: "d", 2: "e"}) == {1: [user | {"content": "b d"}], 2: None}
        held.reset([{"turns": 2}])
        assert held.step({0: "x"}) == {0: [user | {"content": "x"}]}


def test_an_episode_goes_on_after_its_process_is_lost(counting: str) -> None:
    with Environments(parse_environment(counting), timeout=20.0, memory=None, processes=1) as held:
        held.reset([{"turns": 5}])
        held.step({0: "a"})
        # what computes ends with its guards, soon after
        computing = psutil.Process(held.pids[0]).children(recursive=True)
        os.kill(held.pids[0], signal.SIGKILL)
        psutil.wait_procs(computing, 10)
        assert held.step({0: "b"}) == {0: [{"role": "user", "content": "a b"}]}
        killer = threading.Timer(0.2, os.kill, (held.pids[0], signal.SIGKILL))
        killer.start()
        assert held.step({0: "sleeps"}) == {0: [{"role": "user", "content": "a b sleeps"}]}
        killer.join()


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("raises", r"row 0, turn 1: ValueError: bad answer \(line 9 of own.py\)"),
        ("hangs", r"row 0, turn 1: it did not answer within 1 s"),
    ],
)
def test_an_environment_that_fails_is_named(counting: str, answer: str, what: str) -> None:
    spec = parse_environment(counting)
    with Environments(spec, timeout=1.0, memory=None, processes=1) as held:
        held.reset([{"turns": 5}])
        with pytest.raises(RewardError, match=what):
            held.step({0: answer})


@pytest.mark.parametrize(
    ("source", "text", "what"),
    [
        ("", "calculater", "did you mean 'calculator'?"),
        ("class A: ...", "own.py:B", "has no class 'B'"),
        ("class A: ...", "own.py:", "no class of the file is named"),
        ("class A:\n    def reset(self, row): ...", "own.py:A", "A has no method step"),
        ("class A:\n    def __init__(self, x): ...", "own.py:A", "missing 1 required positional"),
    ],
)
def test_what_is_no_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, text: str, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(source, "utf-8")
    with pytest.raises(ConfigError) as caught:
        Environments(parse_environment(text), timeout=20.0, memory=None, processes=1)
    assert what in str(caught.value)


STEP = "    def step(self, answer):\n        return None\n"


@pytest.mark.parametrize(
    ("methods", "what"),
    [
        ("    def reset(self): ...\n" + STEP, "turn 0: TypeError: A.reset() takes 1 positional"),
        ("    def reset(self, row): return '問'\n" + STEP, "write the text into the rows"),
        ("    def reset(self, row): ...\n    def step(self): ...\n", "turn 1: TypeError: A.step()"),
        (
            "    def reset(self, row): ...\n    def step(self, a): return 1\n",
            "step returned something",
        ),
    ],
)
def test_an_episode_is_tried_before_the_start(methods: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"class A:\n{methods}", "utf-8")
    spec = parse_environment(f"{file}:A")
    with Environments(spec, timeout=20.0, memory=None, processes=1) as held:
        said = [str(problem) for problem in held.check({"prompt": "問い"})]
    assert len(said) == 1
    assert what in said[0]


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(AutoTokenizer.from_pretrained(SHIPPED))


def episodes(
    encoder: PromptEncoder, script: list[dict[int, str]], asked: list[Any], **limits: int
) -> tuple[list[list[int]], list[Completion]]:
    """Of the calculator, with a model that says what a script has for each turn and prompt."""
    prompts = [[Message("user", question)] for question in ("十二かける七は？", "三は？")]
    tokenizer, turns = encoder.tokenizer, iter(script)
    whole = encoder.encode(
        Example("messages", "", 0, messages=(prompts[0][0], Message("assistant", "x")))
    )
    end = whole.ids[max(at for at, flag in enumerate(whole.supervised) if flag)]

    class Scripted:
        """What the episodes ask of a generator of completions."""

        def __call__(self, given: list[Any], keys: Any) -> list[list[Completion]]:
            asked.append([ids.tolist() for ids in given])
            said = next(turns)
            assert len(said) == len(given) == len(keys)
            found = [[*tokenizer.encode(t, add_special_tokens=False), end] for t in said.values()]
            return [[Completion(np.array(f), np.zeros(len(f)), False)] for f in found]

    options = {"max_turns": 4, "max_completion_length": 400} | limits
    read = [encoder.chat_ids(prompt) for prompt in prompts]
    spec, keys = parse_environment("calculator"), [[(0, 0)], [(0, 1)]]
    with Environments(spec, timeout=20.0, memory=None, processes=1) as held:
        generator = EpisodeGenerator(held, tokenizer, GRPOConfig(**options), encoder.stop_ids)
        scripted: Any = Scripted()
        made = generator.generate(scripted, [{}, {}], [np.array(ids) for ids in read], keys)
    return read, [completion for (completion,) in made]


SCRIPT = [{0: "<calc>12*7</calc>", 1: "三です。"}, {0: "<calc>84+1</calc>"}, {0: "八十四です。"}]


def test_tokens_are_those_of_the_chat_template_and_replies_are_not_the_models_own(
    encoder: PromptEncoder,
) -> None:
    asked: list[Any] = []
    (prompt, _), (first, second) = episodes(encoder, SCRIPT, asked)
    said = ["<calc>12*7</calc>", "84", "<calc>84+1</calc>", "85", "八十四です。"]
    roles = ["assistant", "user"] * 2 + ["assistant"]
    assert [each["content"] for each in first.messages] == said
    assert [each["role"] for each in first.messages] == roles
    assert not first.truncated
    tokenizer = encoder.tokenizer
    chat = [{"role": "user", "content": "十二かける七は？"}, *first.messages]
    wanted = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = prompt + first.ids.tolist()
    assert tokenizer.decode(ids) == wanted.removesuffix("\n")
    # the model was asked with exactly the tokens that are trained
    assert [turn[0] for turn in asked] == [ids[: len(turn[0])] for turn in asked]
    own = [token for token, flag in zip(first.ids.tolist(), first.own, strict=True) if flag]
    ends = [token for token in own if token in encoder.stop_ids]
    assert len(ends) == 3
    shown = tokenizer.decode(own, skip_special_tokens=True)
    assert shown == "".join(said[::2])
    assert all(second.own)
    assert [each["content"] for each in second.messages] == ["三です。"]


def test_the_last_turn_and_the_limit_of_tokens_cut_an_episode(encoder: PromptEncoder) -> None:
    _, (first, second) = episodes(encoder, SCRIPT[:2], [], max_turns=2)
    assert (first.truncated, second.truncated) == (True, False)
    assert [each["role"] for each in first.messages] == ["assistant", "user", "assistant"]
    assert all(first.own[-3:])
    _, (first, _) = episodes(encoder, SCRIPT, [], max_completion_length=5)
    assert (first.truncated, len(first.ids)) == (True, 5)
    assert len(first.messages) == 1


def test_a_template_that_rewrites_answers_is_refused() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' and not loop.last %}"
        "[old]{% endif %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(ModelError, match="writes an answer otherwise when another turn follows"):
        Replies(PromptEncoder(tokenizer))
