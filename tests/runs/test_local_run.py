"""A single worker on this machine, started by the command as a user starts it: without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from aift_ray.commandline import parse
from aift_ray.config import RunConfig
from aift_ray.engine import checkpoint
from aift_ray.runs import progress, restart_causes, supervise
from aift_ray.utils.host_memory import in_use
from tests.conftest import ROOT, write_rows
from tests.helpers.command import Command, curve_of, flags, summary_of
from tests.helpers.runs import curve

LONG = {"num-workers": 1, "training__num_epochs": 10, "training__save_steps": 10}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl")


def started(model: Path, rows: Path, folder: Path, **values: Any) -> Command:
    others = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment = others | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder.parent / "cache")}
    return Command(flags(model, rows, folder, **LONG | values), environment)


def worker(command: Command) -> psutil.Process:
    (child,) = psutil.Process(command.process.pid).children()
    return child


def test_a_killed_worker_is_followed_by_one_that_goes_on(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    held_out = write_rows(tmp_path / "eval.jsonl", 4, 100)
    more = {"eval-file": held_out, "training__eval_steps": 40, "training__exact_match_rows": 2}
    command = started(tiny_model, rows, folder, **more)
    command.at_checkpoint(folder, 10)
    family = psutil.Process(command.process.pid).children(recursive=True)
    assert len(family) == 1, "the worker, and nothing of Ray"
    family[0].send_signal(signal.SIGKILL)
    status, output = command.done()
    assert status == 0, output
    assert output.count("workers lost: worker 0: killed by SIGKILL") == 1
    assert output.count("plan\n") == 1, "it was shown before"
    found = summary_of(folder)
    assert (found["restarts"], found["causes"]) == (1, ["worker 0: killed by SIGKILL"])
    assert found["resumed_from"] >= 10
    # what the killed worker had not told yet, nobody tells
    assert "step 40 evaluated: held-out loss" in output
    for word in ("Warning", "Traceback", "it/s"):
        assert word not in output, output
    argv = flags(tiny_model, rows, tmp_path / "whole", **LONG | more)
    whole = curve(parse(argv, RunConfig, "train", "").config, tmp_path / "whole")
    assert curve_of(folder) == whole, "to the bit"


def test_a_worker_that_is_lost_too_often_ends_the_run(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = started(tiny_model, rows, folder, ray__max_failures=0, training__num_epochs=200)
    command.at_checkpoint(folder, 10)
    worker(command).send_signal(signal.SIGSEGV)
    status, output = command.done()
    assert status == 1, output
    assert "training failed: worker 0: killed by SIGSEGV" in output
    steps = checkpoint.steps(folder / "checkpoints")
    assert f"the last good checkpoint is checkpoints/step-{steps[-1]}" in output
    assert summary_of(folder)["status"] == "failed"
    assert "Traceback" not in output


def test_ctrl_c_before_the_first_step_ends_at_once(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = started(tiny_model, rows, folder)
    end = time.monotonic() + 120
    while not (folder / "config.yaml").exists():
        assert command.alive(), command.output()
        assert time.monotonic() < end
        time.sleep(0.05)
    command.process.send_signal(signal.SIGINT)
    began = time.monotonic()
    status, output = command.done()
    assert status == 130, output
    assert time.monotonic() - began < 5
    assert "stopped before the first step; go on with --config" in output
    assert summary_of(folder)["status"] == "interrupted"


def test_the_worker_of_a_killed_command_ends_with_it(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = started(tiny_model, rows, folder)
    command.at_step(folder, 1)
    child = worker(command)
    command.process.kill()
    assert child.wait(10) is not None or not child.is_running()


@pytest.mark.slow
def test_sigterm_costs_no_step(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = started(tiny_model, rows, folder)
    command.at_step(folder, 12)
    command.process.send_signal(signal.SIGTERM)
    status, output = command.done()
    assert status == 75, output
    assert checkpoint.steps(folder / "checkpoints")[-1] == len(curve_of(folder))


FULL = """
import sys, time
from pathlib import Path
from aift_ray.commandline import validated
from aift_ray.utils.exit_status import guarded
from aift_ray.runs import supervise
from aift_ray.utils import host_memory

def run(argv):
    attempt = supervise.fork(config, folder, time.time())
    attempt.tell(memory="3.00 GiB (weights 3.00 GiB)")
    time.sleep(60)
    return 0

host_memory.in_use = lambda: (96, 100)
config, folder = validated({"ray": {"max_failures": 1}}), Path(sys.argv[1])
sys.exit(guarded(run, ()))
"""


def test_a_worker_is_ended_before_the_machine_is_full(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.count("workers lost: worker 0: ended, for the machine ran low") == 1
    for part in ("computed for a worker: 3.00 GiB", "try --training.batch_size"):
        assert part in done.stderr
    assert summary_of(tmp_path)["restarts"] == 1


def test_the_memory_of_a_container_counts(tmp_path: Path) -> None:
    machine = in_use(tmp_path)
    assert machine[1] == psutil.virtual_memory().total
    for name, text in {"max": "max", "current": "900", "stat": "file 7\ninactive_file 100"}.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n", "ascii")
    assert in_use(tmp_path)[1] == machine[1], "it has no limit"
    (tmp_path / "memory.max").write_text("1000\n", "ascii")
    assert in_use(tmp_path) == (800, 1000)


@pytest.mark.parametrize(
    ("argv", "address"),
    [
        (["--num-workers", "2"], ""),
        (["--num-workers", "1:2"], ""),
        (["--data.prepare", "ray"], ""),
        (["--ray.resources_per_worker", '{"disk": 1}'], ""),
        ([], "local"),
    ],
)
def test_what_ray_is_for_is_left_to_it(
    argv: list[str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_HEAVY", ())
    monkeypatch.setattr(supervise.threading, "active_count", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    one = parse(["--num-workers", "1"], RunConfig, "train", "").config
    assert supervise.possible(one)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert not supervise.possible(parse(argv, RunConfig, "train", "").config)


def test_a_process_with_torch_or_threads_does_not_fork() -> None:
    import torch  # noqa: F401

    assert not supervise.possible(parse([], RunConfig, "train", "").config)


@pytest.mark.parametrize("width", [60, 80])
def test_a_bar_says_what_is_done_and_what_is_left_only_where_it_is_known(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    console = Console(
        force_terminal=True, width=width, record=True, file=(tmp_path / "out").open("w")
    )
    (tmp_path / progress.STAGE).write_text('{"stage": "loading the model"}', "utf-8")
    with progress.Follower(tmp_path, console) as follower:
        follower.poll()
        shown = "".join(s.text for s in console.render(follower._bar.get_renderable()))
        assert "loading the model 0:00" in shown
        assert "left" not in shown
        assert "None" not in shown
        restart_causes.add_failure(
            tmp_path / restart_causes.FAILURES, ["worker 0: killed by SIGKILL"]
        )
        line = '{"step": 3, "total_steps": 9, "epoch": 1.0, "loss": 0.5, "tokens_per_second": 7}'
        (tmp_path / ".progress.json").write_text(line, "utf-8")
    text = console.export_text()
    assert "workers lost: worker 0: killed by SIGKILL" in text
    assert "step 3/9 epoch 1.00, loss 0.5000" in text


def test_metrics_of_comparisons_are_no_scores_of_an_evaluation(tmp_path: Path) -> None:
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    # no rejected answer in the step of kto
    lines = [
        '{"step": 1, "loss": 0.5, "rewards/chosen": 1.0, "rewards/rejected": null}',
        '{"step": 2, "eval_rewards/accuracies": 0.75, "eval_rewards/rejected": null}',
        '{"step": 2, "jnli/exact_match": 0.5}',
    ]
    with progress.Follower(tmp_path, console) as follower:
        (tmp_path / progress.METRICS).write_text("\n".join(lines) + "\n", "utf-8")
        follower.poll()
    text = console.export_text()
    assert "step 1" not in text
    assert "step 2 evaluated: margin accuracy 75.0%\n" in text
    assert "step 2 evaluated: jnli/exact_match 50.0%\n" in text
