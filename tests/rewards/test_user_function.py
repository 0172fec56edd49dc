"""Functions of a user's file as rewards, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from aift_ray.errors import ConfigError, RewardError
from aift_ray.rewards import Rewards, parse
from aift_ray.rewards.early_check import problems_with

PROMPTS = ["一", "二", "三", "四"]
COMPLETIONS = ["あ", "いい", "ううう", "ええええ"]


def rewards(folder: Path, source: str, name: str = "reward", **options: Any) -> Rewards:
    """Of a function in a file."""
    file = folder / "own.py"
    file.write_text(source, encoding="utf-8")
    settings: dict[str, Any] = {"timeout": 20.0, "memory": None, "processes": 1} | options
    return Rewards([parse(f"{file}:{name}")], **settings)


def test_is_called_as_trl_calls_it(tmp_path: Path) -> None:
    source = """
def reward(prompts, completions, **kwargs):
    given = ["completion_ids", "trainer_state", "log_extra", "log_metric"]
    assert set(kwargs) == {"answer", *given}
    assert kwargs["trainer_state"].global_step == 7
    kwargs["log_metric"]("mean_length", 2.5)
    kwargs["log_extra"]("shown", list(completions))
    return [len(c) + a if p != "四" else None
            for p, c, a in zip(prompts, completions, kwargs["answer"])]
"""
    with rewards(tmp_path, source) as scored:
        found = scored.score(PROMPTS, COMPLETIONS, {"answer": [1, 2, 3, 4]}, {"global_step": 7})
        assert found == [[2.0, 4.0, 6.0, None]]
        assert scored.metrics == {"mean_length": [2.5]}
        assert scored.extra == {"shown": COMPLETIONS}


def test_a_coroutine_is_awaited(tmp_path: Path) -> None:
    source = "async def reward(prompts, completions, **kwargs): return [1] * len(prompts)"
    with rewards(tmp_path, source) as scored:
        assert scored.score(PROMPTS, COMPLETIONS, {}) == [[1.0] * 4]


BREAKING = """
import os, signal, time
def reward(prompts, completions, **kwargs):
    found = []
    for text in completions:
        if text == "hangs":
            time.sleep(60)
        if text == "ends":
            os._exit(3)
        if text == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if text == "allocates":
            bytearray(8 << 30)
        if text == "raises":
            raise KeyError("missing")
        if text == "exits":
            raise SystemExit(4)
        if text == "interrupts":
            raise KeyboardInterrupt("as a test library does")
        if text == "closes":
            os.closerange(3, 1000)
        found.append({"nan": float("nan"), "inf": float("inf"), "text": "1"}.get(text, len(text)))
    return found
"""
WRONG = {
    "ends": "its process ended with status 3, 2 times",
    "crashes": "its process was ended by signal 11 (SIGSEGV), 2 times",
    "allocates": "MemoryError (line 13 of own.py): it needs more memory than its limit",
    "raises": "KeyError: 'missing' (line 15 of own.py)",
    "exits": "it called sys.exit(4)",
    "interrupts": "KeyboardInterrupt: as a test library does (line 19 of own.py)",
    "closes": "its process ended with status 1, 2 times",
    "nan": "it returned nan, expected a finite number, or None for no reward",
    "inf": "it returned inf, expected a finite number, or None for no reward",
    "text": "it returned '1', a str, expected a number or None",
}


def test_what_breaks_a_function_is_named_and_its_process_replaced(tmp_path: Path) -> None:
    with rewards(tmp_path, BREAKING, memory=2 << 30) as scored:
        for completion, what in WRONG.items():
            with pytest.raises(RewardError) as caught:
                scored.score(PROMPTS, ["あ", "いい", completion, "う"], {})
            assert f"reward reward, row 2: {what}" in str(caught.value)
            assert f"the completion is {completion!r}" in str(caught.value)
            assert scored.score(PROMPTS, COMPLETIONS, {}) == [[1.0, 2.0, 3.0, 4.0]]


def test_a_function_that_hangs_is_ended_after_its_time(tmp_path: Path) -> None:
    with rewards(tmp_path, BREAKING, timeout=0.5, loading_timeout=60.0) as scored:
        (before,) = scored.pids
        with pytest.raises(RewardError, match=r"row 1: it did not answer within 0\.5 s"):
            scored.score(PROMPTS, ["あ", "hangs", "いい", "う"], {})
        assert not psutil.pid_exists(before)
        assert scored.score(PROMPTS, COMPLETIONS, {}) == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("given", "default"), [(-1, -1.0), pytest.param("none", None, marks=pytest.mark.slow)]
)
def test_a_default_takes_the_place_of_rewards_that_fail(
    tmp_path: Path, given: Any, default: float | None
) -> None:
    completions = ["あ", "nan", "crashes", "いい", "raises"]
    with rewards(tmp_path, BREAKING, on_failure=given, processes=2) as scored:
        found = scored.score(["一"] * 5, completions, {})
    assert found == [[1.0, default, default, 2.0, default]]


def test_a_process_killed_from_outside_changes_no_reward(tmp_path: Path) -> None:
    source = """
import random, time
def reward(prompts, completions, **kwargs):
    time.sleep(0.5)
    return [random.random() + hash(text) % 7 for text in completions]
"""
    with rewards(tmp_path, source) as scored:
        undisturbed = scored.score(PROMPTS, COMPLETIONS, {})
        killer = threading.Timer(0.2, os.kill, (scored.pids[0], signal.SIGKILL))
        killer.start()
        assert scored.score(PROMPTS, COMPLETIONS, {}) == undisturbed
        killer.join()
        assert scored.replaced == 1


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import no_such_module\n", "can't be imported: ModuleNotFoundError: No module named"),
        ("raise RuntimeError('at import')\n", "can't be imported: RuntimeError: at import (line 1"),
        pytest.param(
            "import sys\nsys.exit(0)\n", "can't be imported: SystemExit: 0", marks=pytest.mark.slow
        ),
        ("reward = 5\n", "reward is a int, expected a function"),
        ("def reward(completions, **kwargs): ...\n", ""),
        ("def reward(prompts, completions): ...\n", "it takes no completion_ids, log_extra"),
        ("def reward(a, b, /): ...\n", "its parameter a can't be given by name"),
        ("import time\ntime.sleep(30)\n", "could not be loaded: it did not answer within 1 s"),
        ("import os\nos._exit(9)\n", "could not be loaded: its process ended with status 9"),
    ],
)
def test_what_can_be_told_before_the_start_is(tmp_path: Path, source: str, what: str) -> None:
    if "reward" not in source:
        source += "def reward(prompts, completions, **kwargs): ...\n"
    timeouts = {"timeout": 1.0, "loading_timeout": 1.0 if "sleep" in source else 60.0}
    if not what:
        rewards(tmp_path, source, **timeouts).close()
        return
    with pytest.raises(ConfigError) as caught:
        rewards(tmp_path, source, **timeouts)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ("[1.0]", "rows 0 to 3: it returned 1 rewards, expected 4: one for each completion"),
        pytest.param(
            "1.0",
            "rows 0 to 3: it returned a float, expected a list of 4 numbers",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_no_list_of_rewards_is_an_error(tmp_path: Path, returned: str, what: str) -> None:
    source = f"def reward(prompts, completions, **kwargs): return {returned}"
    with (
        rewards(tmp_path, source, on_failure=0.0) as scored,
        pytest.raises(RewardError) as caught,
    ):
        scored.score(PROMPTS, COMPLETIONS, {})
    assert what in str(caught.value)


def test_a_needed_column_that_rows_lack_is_named(tmp_path: Path) -> None:
    source = "def reward(prompts, completions, solution, **kwargs): ..."
    with rewards(tmp_path, source) as scored:
        (problem,) = scored.check(["answer", "level"])
        assert "it needs solution, which no column of the rows has" in str(problem)
        assert "columns are: answer, level" in str(problem)
        assert scored.check(["solution"]) == []


def test_tensors_and_arrays_are_lists_of_numbers(tmp_path: Path) -> None:
    source = """
import numpy
def reward(prompts, completions, **kwargs): return numpy.arange(len(prompts)) / 2
"""
    with rewards(tmp_path, source) as scored:
        assert scored.score(PROMPTS, COMPLETIONS, {}) == [[0.0, 0.5, 1.0, 1.5]]


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    source = "import subprocess\ndef reward(prompts, completions, **kwargs):\n"
    source += "    subprocess.Popen(['sleep', '600'])\n    while True: pass\n"
    file.write_text(source, "utf-8")
    program = (
        "import sys, threading; from aift_ray.rewards import Rewards, parse\n"
        f"scored = Rewards([parse('{file}:reward')], timeout=600, memory=None, processes=2)\n"
        "print(*scored.pids, flush=True)\n"
        "scored.score(['a'], ['b'], {})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as driver:
        assert driver.stdout
        workers = [psutil.Process(int(pid)) for pid in driver.stdout.readline().split()]
        assert len(workers) == 2
        while not (
            started := [c for w in workers for c in w.children(True) if c.name() == "sleep"]
        ):
            time.sleep(0.05)
        driver.kill()
    _, alive = psutil.wait_procs(workers + started, timeout=10)
    assert not alive


@pytest.mark.parametrize("processes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_number_of_processes_changes_no_reward(tmp_path: Path, processes: int) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import random\ndef reward(prompts, completions, **kwargs):\n"
        "    return [len(prompts) + random.random() for _ in prompts]\n"
    )
    specs = [parse(f"{file}:reward:rows_per_call=3"), parse("politeness"), parse(f"{file}:reward")]
    completions = [f"{n}です。" if n % 3 else f"{n}だ。" for n in range(40)]
    with Rewards(specs, timeout=20.0, memory=None, processes=processes) as scored:
        found = scored.score(completions, completions, {})
    with Rewards(specs, timeout=20.0, memory=None, processes=2) as scored:
        assert scored.score(completions, completions, {}) == found
    assert [int(value or 0) for value in found[0]] == [3] * 39 + [1]
    assert [int(value or 0) for value in found[2]] == [40] * 40


def test_every_reward_that_can_not_score_the_rows_is_told_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module\ndef reward(): ...\n", "utf-8")
    file = tmp_path / "own.py"
    file.write_text("def needs(prompts, completions, level, **kwargs): ...\n", "utf-8")
    texts = [f"{tmp_path}/broken.py:reward", f"{file}:needs", "exact_match:column=nope"]
    texts += ["http://127.0.0.1:9/v1?model=m&column=nope", "politeness"]
    specs = [parse(text) for text in texts]
    found = problems_with(specs, {("answer",): ["rows:1"]}, timeout=20.0, memory=None)
    said = sorted(str(problem).split("\n")[0] for problem in found)
    assert said == [
        "reward exact_match: the rows have no column 'nope'",
        "reward judge_m: the rows have no column 'nope'",
        f"reward needs: {file}: needs: it needs level, which no column of the rows has",
        f"reward reward: {tmp_path}/broken.py can't be imported: ModuleNotFoundError: "
        "No module named 'no_such_module' (line 1 of broken.py)",
    ]


def test_rows_without_a_column_that_others_have_are_named(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "def needs(prompts, completions, level, **kwargs): ...\n"
        "def may(prompts, completions, level=None, **kwargs): ...\n",
        "utf-8",
    )
    specs = [parse(text) for text in (f"{file}:needs", f"{file}:may", "exact_match", "politeness")]
    rows = {("answer", "level"): ["rows:1", "rows:3"], ("answer",): ["rows:2"], (): ["rows:4"]}
    found = problems_with(specs, rows, timeout=20.0, memory=None)
    lack = "rows lack a column that it needs and others have:"
    assert [str(problem).split("\n")[0] for problem in found] == [
        f"reward needs: {lack} rows:2, rows:4",
        f"reward exact_match: {lack} rows:4",
    ]


def test_rewards_of_trl_run_as_they_are(tmp_path: Path) -> None:
    rewards_of_trl = pytest.importorskip("trl.rewards", reason="trl is not installed (extra bench)")
    file = tmp_path / "own.py"
    file.write_text("from trl.rewards import think_format_reward\n", "utf-8")
    said = ["<think>\n数える\n</think>\n4", "4"]
    completions = [[{"role": "assistant", "content": text}] for text in said]
    wanted = rewards_of_trl.think_format_reward(completions)
    with Rewards(
        [parse(f"{file}:think_format_reward")], timeout=60.0, memory=None, processes=1
    ) as scored:
        assert scored.score([[]] * 2, completions, {"answer": ["4", "4"]}) == [wanted]
    assert wanted == [1.0, 0.0]
