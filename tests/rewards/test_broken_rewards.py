"""Broken rewards through the launched command: named, with a status, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.grpo.rollout_rows import prompts, write
from tests.helpers.command import until

BROKEN = '''
import os
import time

import psutil

CALLS = []


def good(completions):
    return [float(len(str(each)) % 7) for each in completions]


def later(completions, act):
    """The first generation is scored, so that a step is taken."""
    CALLS.append(1)
    return good(completions) if len(CALLS) < 2 else act()


def raises(prompts, completions, **columns):
    return later(completions, lambda: {}["no such key"])


def short(prompts, completions, **columns):
    return good(completions)[:-1]


def nan(prompts, completions, **columns):
    return [float("nan")] * len(completions)


def vanishes(prompts, completions, **columns):
    os._exit(0)


def greedy(prompts, completions, **columns):
    return [float(len(bytearray(psutil.virtual_memory().total * 3 // 4))) for each in completions]


def hangs(prompts, completions, **columns):
    return later(completions, lambda: time.sleep(600))
'''
# of each, what the error says
SAYS = {
    "raises": "KeyError: 'no such key' (line ",
    "short": "it returned 15 rewards, expected 16: one for each completion",
    "nan": "it returned nan, expected a finite number, or None for no reward",
    "vanishes": "its process ended with status 0, 2 times",
    "greedy": "it needs more memory than its limit",
    "hangs": "it did not answer within 2 s",
}
RUN = ["--grpo.num_generations", "4", "--grpo.max_completion_length", "8"]
RUN += ["--training.batch_size", "16", "--training.gradient_accumulation_steps", "1"]
RUN += ["--data.sequence_length", "128", "--max-steps", "3", "--training.logging_steps", "1"]
RUN += ["--grpo.reward_timeout", "2", "--num-workers", "1"]


@pytest.fixture
def command(tmp_path: Path, tiny_model: Path) -> list[str]:
    (tmp_path / "broken.py").write_text(BROKEN, "utf-8")
    rows = write(tmp_path / "rows.jsonl", prompts(8))
    found = [sys.executable, "-m", "aift_ray.train", "--objective", "grpo", *RUN]
    return [*found, "--model", str(tiny_model), "--train-file", str(rows)]


def run(command: list[str], folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    whole = [*command, *flags]
    return subprocess.run(
        whole, env=environment, capture_output=True, text=True, check=False, timeout=200
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_a_broken_reward_is_named_and_what_was_trained_is_kept(
    name: str, tmp_path: Path, command: list[str]
) -> None:
    folder = tmp_path / "run"
    reward = ["--reward", f"{tmp_path / 'broken.py'}:{name}", "--output-dir", str(folder)]
    found = run(command, tmp_path, *reward)
    said = " ".join(found.stderr.split())
    assert found.returncode == 1, found.stderr
    assert f"reward {name}, row" in said, found.stderr
    assert SAYS[name] in said, found.stderr
    assert "Traceback" not in found.stderr
    assert json.loads((folder / "summary.json").read_text("utf-8"))["status"] == "failed"
    if "later" in BROKEN.split(f"def {name}(")[1].split("\ndef ")[0]:
        # of two steps: the first was trained, and is saved
        assert "the last good checkpoint is checkpoints/step-1" in said


@pytest.mark.slow
def test_a_mended_reward_goes_on_as_if_it_had_never_failed(
    tmp_path: Path, command: list[str]
) -> None:
    file = tmp_path / "broken.py"
    command = [*command, "--reward", f"{file}:raises"]
    assert run(command, tmp_path, "--output-dir", str(tmp_path / "failed")).returncode == 1
    file.write_text(BROKEN.replace("len(CALLS) < 2", "True"), "utf-8")
    for name in ("failed", "whole"):
        done = run(command, tmp_path, "--output-dir", str(tmp_path / name), "--resume", "latest")
        assert done.returncode == 0, done.stderr
    assert steps_of(tmp_path / "failed") == steps_of(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_twice_ends_a_run_whose_reward_hangs(tmp_path: Path, command: list[str]) -> None:
    folder = tmp_path / "run"
    whole = [*command, "--reward", f"{tmp_path / 'broken.py'}:hangs", "--output-dir", str(folder)]
    whole += ["--grpo.reward_timeout", "300", "--training.save_steps", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(whole, env=environment, stderr=subprocess.PIPE, text=True)
    while not (folder / "checkpoints" / "step-1").is_dir():
        assert process.poll() is None
        time.sleep(0.1)
    for _ in range(2):
        time.sleep(1)
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said


@pytest.mark.slow
def test_what_a_reward_prints_and_starts_neither_stops_nor_outlives_the_run(
    tmp_path: Path, command: list[str]
) -> None:
    mark = f"8{os.getpid()}"
    (tmp_path / "loud.py").write_text(
        "import subprocess\n"
        "def loud(prompts, completions, **columns):\n"
        "    print('loud ' * 2_000_000)\n"
        "    for apart in [True, False] * 10:\n"
        f"        subprocess.Popen(['sleep', '{mark}'], start_new_session=apart)\n"
        "    return [float(len(str(each)) % 7) for each in completions]\n",
        "utf-8",
    )
    done = run(
        command,
        tmp_path,
        *("--reward", f"{tmp_path / 'loud.py'}:loud", "--output-dir", str(tmp_path / "run")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loud loud" in done.stderr
    assert "loud loud" not in done.stdout

    def left() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or ())]

    assert until(lambda: not left(), 5), left()


def steps_of(folder: Path) -> list[tuple[int, float, float, float]]:
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [(s["step"], s["loss"], s["grad_norm"], s["reward"]) for s in lines if "loss" in s]
