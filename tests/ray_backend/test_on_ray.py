"""Training on real Ray workers, started by the command as a user starts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from aift_ray.commandline import parse
from aift_ray.config import RunConfig
from aift_ray.engine import checkpoint
from tests.conftest import ROOT, write_rows
from tests.helpers.command import BIN, Cluster, Command, curve_of, flags, summary_of
from tests.helpers.ports import free_port
from tests.helpers.runs import curve, on_workers

pytestmark = pytest.mark.ray


def alone(argv: list[str], folder: Path) -> list[tuple[float, float]]:
    """The same run in one process: twice the batch, half the workers."""
    config = parse(argv, RunConfig, "train", "").config
    config.training.batch_size *= 2
    return curve(config, folder)


def same(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> None:
    assert len(a) == len(b)
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-5)


# of the command `ray job submit`; what Ray says in the job itself is not among it
RAYS_OWN = re.compile(
    r"[\d: ,-]+\s(INFO (\w*sdk|cli|packaging|job_manager)|SUCC cli|WARNING working_dir)\.py:\d+ -- "
)


def job(cluster: Cluster, argv: list[str]) -> tuple[int, str]:
    """Exit status and output of training that is submitted as a job; Ray's own lines left out."""
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT), "--"]
    command += ["python", "-m", "aift_ray.train", *argv]
    done = subprocess.run(
        command,
        env=cluster.jobs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    lines = done.stdout.splitlines(keepends=True)
    return done.returncode, "".join(line for line in lines if not RAYS_OWN.match(line))


def test_two_ray_workers_of_a_job_take_the_steps_of_one_process(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    held_out = write_rows(tmp_path / "eval.jsonl", 4, 100)
    argv = flags(
        tiny_model,
        rows_file,
        folder,
        training__exact_match_rows=2,
        ray__storage_path=tmp_path / "store",
    )
    wanted = alone(argv, tmp_path)
    argv += ["--eval-file", str(held_out)]
    status, output = job(cluster, argv)
    assert status == 0, output
    same(curve_of(folder), wanted)
    found = summary_of(folder)
    assert (found["status"], found["world_size"], found["restarts"]) == ("done", 2, 0)
    assert len(found["peak_memory_gb"]) == 2
    assert found["start_s"] < found["wall_s"]
    assert output.index("plan") < output.index("step 1/9") < output.index("summary")
    for word in ("Warning", "WARNING", "INFO", "pid="):
        assert word not in output, output
    assert list((tmp_path / "store").rglob("trainer_state.pt")), "checkpoints are copied there"
    again, _ = Command([*argv, "--resume", "latest"], cluster.environment).done()
    assert again == 0, "a finished run is left alone"


LONG = {"training__num_epochs": 20, "training__save_steps": 10}


@pytest.fixture(scope="module")
def long_run(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[float, float]]]:
    """Rows, and the curve of 60 steps on two workers without Ray that nothing disturbed."""
    folder = tmp_path_factory.mktemp("long")
    rows = write_rows(folder / "train.jsonl")
    config = parse(flags(tiny_model, rows, folder / "run", **LONG), RunConfig, "train", "").config
    alone = config.model_copy(update={"output_dir": None})
    return rows, [tuple(pair) for pair in on_workers({"long": alone}, folder)["long"]]


def stopped(command: Command, folder: Path, number: signal.Signals) -> tuple[int, str]:
    """Stop a run after some steps; its exit status and output."""
    command.at_step(folder, 3)
    command.process.send_signal(number)
    status, output = command.done()
    assert "go on with" in output, output
    assert summary_of(folder)["status"] == "interrupted"
    return status, output


@pytest.mark.faults
def test_a_run_that_is_stopped_and_then_killed_goes_on_as_if_it_had_not_been(
    cluster: Cluster,
    tiny_model: Path,
    long_run: tuple[Path, list[tuple[float, float]]],
    tmp_path: Path,
) -> None:
    rows, whole = long_run
    folder = tmp_path / "run"
    argv = flags(tiny_model, rows, folder, **LONG)
    status, output = stopped(Command(argv, cluster.environment), folder, signal.SIGINT)
    assert status == 130, output
    steps = checkpoint.steps(folder / "checkpoints")
    assert steps[-1] == len(curve_of(folder)) < len(whole)
    again = Command([*argv, "--resume", "latest"], cluster.environment)
    again.at_step(folder, steps[-1] + 12)
    again.process.kill()
    assert f"resumed from checkpoints/step-{steps[-1]}" in again.output()
    again.process.wait()
    steps = checkpoint.steps(folder / "checkpoints")
    status, output = Command([*argv, "--resume", "latest"], cluster.environment).done()
    assert status == 0, output
    # workers outlive their command by a moment, in which they may save once more
    resumed = summary_of(folder)["resumed_from"]
    assert steps[-1] <= resumed < len(whole)
    assert f"resumed from checkpoints/step-{resumed}" in output
    assert curve_of(folder) == whole, "to the bit"


def test_a_killed_worker_costs_no_more_than_the_steps_since_the_last_checkpoint(
    cluster: Cluster,
    tiny_model: Path,
    long_run: tuple[Path, list[tuple[float, float]]],
    tmp_path: Path,
) -> None:
    rows, whole = long_run
    folder = tmp_path / "run"
    command = Command(flags(tiny_model, rows, folder, **LONG), cluster.environment)
    command.at_checkpoint(folder, 20)
    os.kill(worker_pids(cluster)[-1], signal.SIGKILL)
    status, output = command.done()
    assert status == 0, output
    assert output.count("workers lost: worker ") == 1
    found = summary_of(folder)
    assert found["restarts"] == 1
    assert len(found["causes"]) == 1
    assert found["resumed_from"] >= 20
    assert curve_of(folder) == whole, "to the bit"


def worker_pids(cluster: Cluster) -> list[int]:
    """Processes of the cluster's Ray Train workers."""
    found = [
        process.pid
        for process in psutil.Process(cluster.head.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    assert len(found) == 2
    return found


def test_a_job_that_fails_exits_with_an_error(
    cluster: Cluster, tiny_model: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "答えがない"}\n', "utf-8")
    status, output = job(cluster, flags(tiny_model, bad, tmp_path / "run"))
    assert status != 0
    assert "bad.jsonl:1: the key output is missing" in output


@pytest.mark.faults
def test_a_loss_that_is_not_finite_ends_the_run_without_retrying(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "broken"
    shutil.copytree(tiny_model, model)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    folder = tmp_path / "run"
    status, output = Command(flags(model, rows_file, folder), cluster.environment).done()
    assert status == 1, output
    assert "step 1: loss nan" in output
    assert "train.jsonl:" in output
    assert "there is no checkpoint yet" in output
    assert "Traceback" not in output
    assert summary_of(folder)["status"] == "failed"
    assert summary_of(folder)["restarts"] == 0


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_disk_that_fills_up_ends_the_run_and_names_the_last_checkpoint(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        folder = disk / "run"
        argv = flags(
            tiny_model, rows_file, folder, training__num_epochs=400, training__save_steps=5
        )
        command = Command(argv, cluster.environment)
        command.at_checkpoint(folder, 10)
        filler = disk / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(b"x" * 2**16)
                    file.flush()
            except OSError:
                pass
        status, output = command.done()
        filler.unlink()
        assert status == 1, output
        assert "No space left" in output
        assert "last good checkpoint is checkpoints/step-" in output
        assert "Traceback" not in output
        step = checkpoint.steps(folder / "checkpoints")[-1]
        assert checkpoint.damage(folder / "checkpoints" / f"step-{step}") is None
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_without_a_cluster_one_is_started_and_nothing_is_left_of_it(
    cluster: Cluster,
    tiny_model: Path,
    rows_file: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    others = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
    environment = {k: v for k, v in cluster.environment.items() if k not in others}
    # the name of a socket in it may have 107 bytes
    held = tempfile.TemporaryDirectory(prefix="ray-")
    request.addfinalizer(held.cleanup)
    home, temporary = tmp_path / "home", Path(held.name)
    home.mkdir()
    environment |= {"HOME": str(home), "TMPDIR": str(temporary)}
    argv = flags(tiny_model, rows_file, tmp_path / "run", method="full", training__num_epochs=200)
    command = Command(argv, environment)
    status, output = stopped(command, tmp_path / "run", signal.SIGTERM)
    assert status == 75, output
    assert len(command.family()) > 4
    _, left = psutil.wait_procs(command.family(), timeout=10)
    assert left == []
    assert not (home / ".ray").exists(), "every other Ray program would take the token from there"
    assert list(temporary.rglob("auth_token")) == []


def test_a_cluster_that_is_not_there_is_named(
    cluster: Cluster, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    environment = cluster.environment | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    argv = flags(tiny_model, rows_file, tmp_path / "run")
    status, output = Command(argv, environment).done()
    assert status == 2, output
    assert "can't be reached" in output
    assert "Traceback" not in output
