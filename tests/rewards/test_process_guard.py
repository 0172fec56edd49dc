"""What a reward starts: it ends with the reward's process, and has limits with it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from aift_ray.errors import RewardError
from aift_ray.rewards import Rewards, parse

MARK = "AIFT_TEST_REWARD"
# two helpers that leave group and session, one of them an orphan
ESCAPES = """
import os, subprocess, time

def reward(prompts, completions, **kwargs):
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        os._exit(0)
    if completions == ["hangs"]:
        time.sleep(600)
    if completions == ["ends"]:
        os._exit(3)
    return [1.0] * len(completions)
"""
FORKS = """
import os

def reward(prompts, completions, **kwargs):
    while completions == ["forks"]:
        os.fork()
    return [1.0] * len(completions)
"""
SHARES = """
import os, time

def reward(prompts, completions, **kwargs):
    held = bytearray(os.urandom(1)) * (150 << 20)
    copies = completions == ["copies"]
    for _ in range(4):
        if os.fork() == 0:
            if copies:
                held[::4096] = bytes(len(held[::4096]))
            time.sleep(15)
            os._exit(0)
    # a busy machine needs seconds to copy
    time.sleep(15 if copies else 1)
    return [1.0] * len(completions)
"""


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the environment of a reward's processes holds, and no other's."""
    value = f"{os.getpid()} {time.monotonic_ns()}"
    monkeypatch.setenv(MARK, value)
    return value


def alive(value: str) -> list[psutil.Process]:
    """The processes that a reward has started, and its own."""
    found = []
    for process in psutil.process_iter():
        try:
            same = process.environ().get(MARK) == value
        except psutil.Error:
            continue
        if same and process.pid != os.getpid():
            found.append(process)
    return found


def wait_for_helpers(value: str) -> None:
    """Wait until both are there, and nothing more of those before."""
    until = time.monotonic() + 10
    while [each.name() for each in alive(value)].count("sleep") != 2:
        assert time.monotonic() < until
        time.sleep(0.05)


def rewards(folder: Path, source: str, **options: Any) -> Rewards:
    file = folder / "own.py"
    file.write_text(source, "utf-8")
    settings: dict[str, Any] = {"timeout": 20.0, "memory": None, "processes": 1} | options
    return Rewards([parse(f"{file}:reward")], **settings)


@pytest.mark.parametrize(
    "how",
    [
        "its process is killed",
        "its guard is killed",
        "the guard of that is killed",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("returns", "hangs", "ends")),
    ],
)
def test_no_process_of_a_reward_outlives_it(how: str, tmp_path: Path, marked: str) -> None:
    with rewards(tmp_path, ESCAPES, timeout=1.0, loading_timeout=60.0) as scored:
        if how in ("hangs", "ends"):
            with pytest.raises(RewardError):
                scored.score(["一"], [how], {})
        else:
            assert scored.score(["一"], [how], {}) == [[1.0]]
            wait_for_helpers(marked)
        if how.endswith("killed"):
            outer = psutil.Process(scored.pids[0])
            (inner,) = outer.children()
            own = inner.children()[0]
            victim = {"its guard": inner, "its process": own}.get(how[:-10], outer)
            victim.send_signal(signal.SIGKILL)
            # until then it may still answer
            psutil.wait_procs([own], timeout=10)
            assert scored.score(["一"], [how], {}) == [[1.0]]
            wait_for_helpers(marked)
    assert not alive(marked)


@pytest.mark.slow
def test_a_reward_that_forks_without_end_is_named_and_ended(tmp_path: Path, marked: str) -> None:
    with rewards(tmp_path, FORKS) as scored:
        with pytest.raises(RewardError, match="row 0: it had more than 256 processes, 2 times"):
            scored.score(["一"], ["forks"], {})
        assert scored.score(["一"], ["あ"], {}) == [[1.0]]
    assert not alive(marked)


@pytest.mark.slow
def test_the_limit_of_memory_is_for_all_processes_of_a_reward(tmp_path: Path, marked: str) -> None:
    with rewards(tmp_path, SHARES, memory=500 << 20) as scored:
        # what they share counts once
        assert scored.score(["一"], ["あ"], {}) == [[1.0]]
        with pytest.raises(RewardError, match="hold more memory together than its limit") as caught:
            scored.score(["一"], ["copies"], {})
        assert "--grpo.reward_memory" in str(caught.value)
    assert not alive(marked)
