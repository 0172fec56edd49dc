"""The Python examples of the page on rewards, run as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from aift_ray.rewards import builtin, parse
from aift_ray.rewards.environment import parse_environment
from tests.conftest import ROOT


def test_the_examples_run(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "rewards.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    files = {named[1]: each for each in blocks if (named := re.match(r"# (\w+\.py)\n", each))}
    for name, source in files.items():
        (tmp_path / name).write_text(source, "utf-8")
    assert parse(f"{tmp_path}/rewards.py:short:rows_per_call=8").rows_per_call == 8
    assert parse_environment(f"{tmp_path}/guess.py:Guess").function == "Guess"
    program = "".join(each for each in blocks if each not in files.values())
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "[[1.0, 0.0], [1.0, 1.0]]",
        "{0: [{'role': 'user', 'content': '84'}]}",
    ], done.stderr


def test_both_pages_name_every_reward_and_option() -> None:
    for name in ("docs/rewards.md", "docs/ja/rewards.md"):
        page = (ROOT / name).read_text("utf-8")
        for reward, held in builtin.BUILTIN.items():
            (row,) = re.findall(rf"^\| `{reward}` \|.*$", page, re.MULTILINE)
            assert re.findall(r"`(\w+)`", row)[1:] == list(held.options)
