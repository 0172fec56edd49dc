"""Two workers of torchrun take the steps of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from aift_ray.commandline import parse
from aift_ray.config import RunConfig
from tests.helpers.command import BIN, curve_of, flags
from tests.helpers.ports import free_port
from tests.helpers.runs import curve


def test_two_workers_of_torchrun_take_the_steps_of_one_process(
    tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    argv = flags(tiny_model, rows_file, tmp_path / "run", **{"training.local_rank": 0})
    start = [sys.executable, str(BIN / "torchrun"), "--nproc-per-node=2"]
    start += [f"--master-port={free_port()}", "-m", "aift_ray.train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *argv], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("summary") == 1, "one worker talks"
    config = parse(argv, RunConfig, "train", "").config
    config.training.batch_size *= 2
    alone = torch.tensor(curve(config, tmp_path))
    torch.testing.assert_close(
        torch.tensor(curve_of(tmp_path / "run")), alone, rtol=1e-5, atol=1e-5
    )
