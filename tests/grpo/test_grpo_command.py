"""The launched command with objective grpo: what it trains, leaves, and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM, PeftModel

from aift_ray import GRPOTrainer, JapaneseModel, LoRAConfig, TrainingConfig
from aift_ray.errors import ConfigError
from tests.conftest import ROOT, SHIPPED
from tests.grpo.rollout_rows import prompts, write, write_rewards

TRAIN = [sys.executable, "-m", "aift_ray.train"]
SHORT = ["--grpo.max_completion_length", "8", "--grpo.num_generations", "4"]
SHORT += ["--training.batch_size", "8", "--training.gradient_accumulation_steps", "2"]
SHORT += ["--data.sequence_length", "128", "--training.logging_steps", "1"]


TOLD = """
import statistics


def told(prompts, completions, completion_ids, trainer_state, log_metric, log_extra, **columns):
    log_metric("done", trainer_state.global_step)
    log_metric("left", trainer_state.max_steps - trainer_state.global_step)
    log_metric("ids", statistics.mean(map(len, completion_ids)))
    log_metric("reward", 1e9)
    rewards = [float(sum(ids) % 7) for ids in completion_ids]
    log_extra("said", rewards)
    log_extra("too_few", [1])
    return rewards
"""


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}


def train(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*TRAIN, "--output-dir", str(folder / "run"), "--objective", "grpo", *flags]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )


def steps_of(folder: Path) -> list[tuple[int, float, float, float | None]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [(s["step"], s["loss"], s["grad_norm"], s.get("reward")) for s in found if "loss" in s]


@pytest.fixture
def flags(tmp_path: Path, tiny_model: Path) -> list[str]:
    rows = write(tmp_path / "rows.jsonl", prompts(8))
    return ["--model", str(tiny_model), "--train-file", str(rows), *SHORT]


def test_the_command_trains_by_rewards(tmp_path: Path, flags: list[str]) -> None:
    held_out = write(tmp_path / "eval.jsonl", prompts(3, 50))
    rewards = write_rewards(tmp_path)
    done = train(
        tmp_path,
        *flags,
        *("--reward", f"{rewards}:wanted", "--eval-file", str(held_out), "--max-steps", "3"),
        *("--training.learning_rate", "1e-2", "--training.eval_steps", "2"),
    )
    assert done.returncode == 0, done.stderr
    assert "grpo, loss dapo" in done.stdout
    assert "16 completions" in done.stdout
    folder = tmp_path / "run"
    assert [step for step, *_ in steps_of(folder)] == [1, 2, 3]
    samples = [json.loads(s) for s in (folder / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [s["step"] for s in samples] == [0, 0, 0, 2, 2, 2, 3, 3, 3]
    assert set(samples[0]) == {"step", "prompt", "completion", "reward", "rewards"}
    assert "spread" in done.stdout
    assert "rewards 0.0 s" in done.stdout
    assert samples[0]["completion"] in (folder / "report.html").read_text("utf-8")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["eval_reward"] == -summary["eval_loss"]
    assert summary["objective"] == "grpo"
    AutoPeftModelForCausalLM.from_pretrained(folder / "model")
    assert "| objective | grpo |" in (folder / "model" / "README.md").read_text("utf-8")


def test_functions_are_told_what_trl_tells_them(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "told.py").write_text(TOLD, "utf-8")
    held_out = write(tmp_path / "eval.jsonl", prompts(2, 50))
    done = train(
        tmp_path,
        *flags,
        *("--reward", "told.py:told", "--eval-file", str(held_out), "--max-steps", "4"),
        *("--grpo.num_iterations", "2", "--training.eval_steps", "4"),
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(s) for s in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    # a generation is 2 steps; what is logged is a mean over it, and never a metric of the run
    assert [line.get("done") for line in steps] == [0, None, 2, None]
    assert [line["left"] for line in steps if "left" in line] == [4, 2]
    assert all(line["reward"] != 1e9 for line in steps if "reward" in line)
    assert steps[0]["ids"] == steps[0]["completions/mean_length"]
    [evaluated] = [s for s in lines if s["step"] == 4 and "eval_done" in s]
    assert evaluated["eval_done"] == 4
    samples = [json.loads(s) for s in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert samples
    assert all(s["extra"] == {"said": repr(s["reward"])} for s in samples)


def test_a_dry_run_shows_the_plan_and_the_prompts(tmp_path: Path, flags: list[str]) -> None:
    done = train(tmp_path, *flags, "--reward", "length:max=10", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "grpo, loss dapo" in done.stdout
    assert "rows.jsonl:1, prompt (" in done.stdout.replace("\n", "")
    assert not (tmp_path / "run").exists()


def test_python_trains_by_functions_and_names(tmp_path: Path, tiny_model: Path) -> None:
    trainer = GRPOTrainer(
        JapaneseModel(str(tiny_model)),
        LoRAConfig(r=4),
        TrainingConfig(
            batch_size=8,
            gradient_accumulation_steps=1,
            max_steps=2,
            logging_steps=1,
            output_dir=str(tmp_path / "run"),
        ),
        reward=[rewards_of_python, "length:max=10"],
        grpo={"num_generations": 4, "max_completion_length": 8},
        data={"sequence_length": 64, "cache_dir": str(tmp_path / "cache")},
    )
    model = trainer.train(train_texts=prompts(4))
    assert isinstance(model, PeftModel)
    [metrics] = tmp_path.rglob("metrics.jsonl")
    line = json.loads(metrics.read_text("utf-8").splitlines()[0])
    assert {"rewards/rewards_of_python/mean", "rewards/length/mean"} <= set(line)
    with pytest.raises(ConfigError, match="top level"):
        GRPOTrainer(trainer.model, None, trainer.training_config, lambda prompts, completions: [])


def rewards_of_python(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    """A reward that processes of their own import from this file."""
    return [float(len(str(each)) % 5) for each in completions]


def test_a_broken_reward_is_named(tmp_path: Path, flags: list[str]) -> None:
    rewards = write_rewards(tmp_path)
    broken = train(tmp_path, *flags, "--reward", f"{rewards}:broken", "--max-steps", "2")
    assert broken.returncode == 1, broken.stderr
    assert "broken" in broken.stderr
    assert "no such thing" in broken.stderr
    assert "Traceback" not in broken.stderr


@pytest.mark.slow
def test_a_hanging_reward_is_an_error_or_a_default(tmp_path: Path, flags: list[str]) -> None:
    rewards = write_rewards(tmp_path)
    hangs = [*flags, "--reward", f"{rewards}:hangs", "--max-steps", "1"]
    began = time.monotonic()
    found = train(tmp_path, *hangs, "--grpo.reward_timeout", "1")
    assert (found.returncode, "hangs" in found.stderr) == (1, True), found.stderr
    assert time.monotonic() - began < 120


@pytest.mark.slow
def test_what_is_wrong_ends_with_status_2(tmp_path: Path, flags: list[str]) -> None:
    write_rewards(tmp_path)
    wrong: list[tuple[list[str], str]] = [
        ([], "grpo.reward: no reward is given"),
        (["--reward", "no_such_reward"], "no_such_reward"),
        (["--reward", "japanese", "--grpo.rollout_workers", "2"], "placement apart only"),
        (["--reward", "japanese", "--grpo.asynchronous", "true"], "can't do both at once"),
        (["--reward", "japanese", "--grpo.engine", "vllm"], "vllm generates in processes"),
        (["--reward", "japanese", "--strategy", "tensor"], "tensor divides the model"),
        (["--reward", "japanese", "--data.packing", "fill"], "completions have none"),
        (["--reward", "japanese", "--grpo.num_generations", "5"], "5 does not divide the 16"),
        (["--reward", "japanese", "--grpo.reward_weights", "1,2"], "holds 2 weights"),
        (["--reward", "japanese", "--preference.beta", "0.1"], "acts with objective"),
        (["--reward", "japanese", "--grpo.max_completion_length", "127"], "leaves no room"),
        (
            ["--reward", "japanese", "--training.batch_size", "64"],
            "8 prompts are fewer than the 32",
        ),
    ]
    for more, said in wrong:
        found = train(tmp_path, *flags, *more)
        text = " ".join(found.stderr.split())
        assert (found.returncode, said in text) == (2, True), found.stderr
    write(tmp_path / "rows.jsonl", [*prompts(1), {"question": "a"}, {"prompt": 3}])
    found = train(tmp_path, *flags, "--reward", "japanese")
    assert found.returncode == 2
    for said in ("rows.jsonl:2: no key holds a prompt", "rows.jsonl:3: prompt is"):
        assert said in " ".join(found.stderr.split()), found.stderr


@pytest.mark.faults
def test_a_worker_that_is_killed_anywhere_goes_on_to_the_bit(
    tmp_path: Path, flags: list[str]
) -> None:
    how = [*flags, "--reward", f"{write_rewards(tmp_path)}:digest", "--max-steps", "12"]
    how += ["--training.save_steps", "1", "--training.learning_rate", "1e-2"]
    how += ["--grpo.num_iterations", "2"]
    whole = train(tmp_path, *how, "--output-dir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    wanted = steps_of(tmp_path / "whole")
    for number in range(5):
        folder = tmp_path / f"killed{number}"
        command = [*TRAIN, "--objective", "grpo", *how, "--output-dir", str(folder)]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path))
        progress = folder / "metrics.jsonl"
        while not progress.is_file() or len(progress.read_text("utf-8").splitlines()) <= number:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.1 * number)
        _kill_all(process.pid)
        process.wait()
        found = train(tmp_path, *how, "--output-dir", str(folder), "--resume", "latest")
        assert found.returncode == 0, found.stderr
        assert steps_of(folder) == wanted


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_actors_apart_generate_what_the_worker_would(
    kill: bool, tmp_path: Path, flags: list[str]
) -> None:
    how = [*flags, "--reward", f"{write_rewards(tmp_path)}:digest", "--max-steps", "12"]
    how += ["--training.learning_rate", "1e-2", "--grpo.rollout_batch_size", "4"]
    done = train(tmp_path, *how, "--output-dir", str(tmp_path / "here"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "apart"
    command = [*TRAIN, "--objective", "grpo", *how, "--output-dir", str(folder)]
    command += ["--grpo.placement", "apart"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path))
    try:
        killed = False
        while kill and not killed and process.poll() is None:
            killed = _kill_actor(process.pid, folder)
            time.sleep(0.02)
        assert process.wait(300) == 0
        assert killed == kill
    finally:
        process.kill()
    assert steps_of(folder) == steps_of(tmp_path / "here")


@pytest.mark.ray
@pytest.mark.slow
def test_actors_apart_play_the_episodes_that_the_worker_would(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"instruction": f"{n}+{n}は？"} for n in range(8)])
    how = ["--model", str(SHIPPED), "--train-file", str(rows), *SHORT, "--max-steps", "2"]
    how += ["--grpo.environment", "calculator", "--reward", "length:max=10"]
    how += ["--grpo.max_completion_length", "32", "--training.learning_rate", "1e-2"]
    apart = ["--grpo.placement", "apart"]
    for name, more in {"here": [], "apart": apart}.items():
        done = train(tmp_path, *how, *more, "--output-dir", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    assert steps_of(tmp_path / "apart") == steps_of(tmp_path / "here")


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_run_whose_generations_are_made_ahead_goes_on_to_the_bit(
    tmp_path: Path, flags: list[str]
) -> None:
    how = [*flags, "--reward", f"{write_rewards(tmp_path)}:digest", "--max-steps", "6"]
    how += ["--training.learning_rate", "1e-2", "--training.save_steps", "1"]
    how += ["--grpo.placement", "apart", "--grpo.asynchronous", "true"]
    whole = train(tmp_path, *how, "--output-dir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    command = [*TRAIN, "--objective", "grpo", *how, "--output-dir", str(folder)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path))
    progress = folder / "metrics.jsonl"
    while not progress.is_file() or len(progress.read_text("utf-8").splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    _kill_all(process.pid)
    process.wait()
    found = train(tmp_path, *how, "--output-dir", str(folder), "--resume", "latest")
    assert found.returncode == 0, found.stderr
    assert steps_of(folder) == steps_of(tmp_path / "whole")


def _kill_actor(pid: int, folder: Path) -> bool:
    """Kill the actor that generates, once a step was taken; whether it is done."""
    import psutil

    if not (folder / "metrics.jsonl").is_file() or not steps_of(folder):
        return False
    for each in psutil.Process(pid).children(recursive=True):
        if "_RolloutActor" in each.name() or "_RolloutActor" in " ".join(each.cmdline()):
            each.kill()
            return True
    return False


def _kill_all(pid: int) -> None:
    """A process and its children, as when their machine is lost."""
    import psutil

    family: list[Any] = [psutil.Process(pid)]
    family += family[0].children(recursive=True)
    for each in family:
        try:
            each.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
