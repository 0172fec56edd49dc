"""Rewards that can't score are refused by the launched command, before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_broken_rewards_end_the_command_with_status_2(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def needs(prompts, completions, level, **kwargs): ...\n", "utf-8")
    (tmp_path / "broken.py").write_text("1 / 0\ndef reward(): ...\n", "utf-8")
    rows = [{"prompt": f"{n}番", "answer": str(n)} for n in range(8)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    command = [sys.executable, "-m", "aift_ray.train", "--objective", "grpo"]
    command += ["--train-file", str(file), "--output-dir", str(tmp_path / "out")]
    command += ["--reward", f"{own}:needs", "--reward", f"{tmp_path}/broken.py:reward"]
    command += ["--grpo.num_generations", "2", "--training.batch_size", "4"]
    command += ["--num-workers", "1", "--training.max_steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "it needs level, which no column of the rows has" in done.stderr
    assert "can't be imported: ZeroDivisionError: division by zero (line 1 of" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
