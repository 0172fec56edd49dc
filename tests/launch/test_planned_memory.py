"""What the plan says that a worker on a CPU holds, against what it held, by the launched command.

AIFT_REAL_MODELS names the folder of real models; without it the shipped model alone is run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import KEITAI, ROOT, SHIPPED

pytestmark = pytest.mark.slow
REAL = os.environ.get("AIFT_REAL_MODELS", "")
MODELS = [SHIPPED, *([Path(REAL) / "gemma3-270m"] if REAL else [])]


@pytest.mark.parametrize("recomputed", ["true", "false"])
@pytest.mark.parametrize("model", MODELS, ids=lambda folder: folder.name)
def test_a_worker_holds_what_the_plan_says(model: Path, recomputed: str, tmp_path: Path) -> None:
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    lines = (KEITAI / "eval.jsonl").read_text("utf-8").splitlines(keepends=True)
    rows.write_text("".join(lines[:32]), "utf-8")
    argv = {"model": model, "train-file": rows, "output-dir": run, "max-steps": 2}
    argv |= {"num-workers": 1, "training.warmup_steps": 0}
    argv |= {"training.gradient_checkpointing": recomputed}
    command = [sys.executable, "-m", "aift_ray.train"]
    command += [part for name, value in argv.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    planned = re.search(r"memory a worker +([0-9.]+) GiB", told.stdout)
    assert planned, told.stdout
    (held,) = json.loads((run / "summary.json").read_text("utf-8"))["peak_memory_gb"]
    assert float(planned[1]) == pytest.approx(held, rel=0.1)
