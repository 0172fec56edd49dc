"""Which token caches are there, whose they are, and which of them go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aift_ray.data import cache_index
from aift_ray.runs import ray_sessions
from tests.conftest import ROOT

DAY = 86_400


def cache(place: Path, number: int, size: int, days: float) -> Path:
    folder = place / f"{number:032x}"
    folder.mkdir(parents=True)
    (folder / "train.arrow").write_bytes(b"x" * size)
    os.utime(folder, (time.time() - days * DAY,) * 2)
    return folder


def run_of(output: Path, status: str) -> Path:
    output.mkdir()
    (output / "summary.json").write_text(json.dumps({"status": status}), "utf-8")
    return output


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four caches: new and large, in use, of a run that is done, of nobody."""
    made = [cache(tmp_path / "tokens", n, size, 0) for n, size in enumerate((500, 300, 200, 100))]
    cache_index.note_user(made[1], run_of(tmp_path / "running", "running"))
    cache_index.note_user(made[2], run_of(tmp_path / "done", "done"))
    cache_index.note_user(made[2], tmp_path / "gone")
    (tmp_path / "tokens" / "families.json").write_text("{}", "utf-8")
    for folder, days in zip(made, (1, 40, 20, 60), strict=True):
        os.utime(folder, (time.time() - days * DAY,) * 2)
    return tmp_path / "tokens"


def numbers(found: list[cache_index.Cache]) -> list[int]:
    return [int(each.folder.name, 16) for each in found]


def test_caches_are_found_with_their_users_last_used_first(place: Path) -> None:
    found = cache_index.found(place)
    assert numbers(found) == [0, 2, 1, 3]
    assert [user.name for user in found[1].users] == ["done"], "the other folder is gone"
    assert [each.running for each in found] == [False, False, True, False]


@pytest.mark.parametrize(
    ("limits", "going"),
    [
        ({"older_than_days": 30}, [3]),
        ({"older_than_days": 10}, [3, 2]),
        # the one in use stays, whatever its age, and counts
        ({"keep_bytes": 900}, [3, 2]),
        ({"keep_bytes": 0}, [3, 2, 0]),
        ({"keep_bytes": 10_000}, []),
    ],
)
def test_what_goes_is_old_or_too_much(
    place: Path, limits: dict[str, Any], going: list[int]
) -> None:
    assert numbers(cache_index.doomed(cache_index.found(place), **limits)) == going


def command(place: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aift_ray", "cache", *argv, "--cache-dir", str(place)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(place.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_lists_and_prunes(place: Path) -> None:
    shown = json.loads(command(place, "list", "--json").stdout)
    assert len(shown) == 4
    assert sum(each["running"] for each in shown) == 1
    tried = command(place, "prune", "--older-than", "30", "--dry-run")
    assert "would go: " + "0" * 31 + "3" in tried.stdout
    assert len(cache_index.found(place)) == 4
    assert command(place, "prune", "--older-than", "30").returncode == 0
    assert numbers(cache_index.found(place)) == [0, 2, 1]
    assert (place / "families.json").exists()
    for argv, what in (("prune",), "--older-than DAYS"), (("lsit",), "list, prune"):
        refused = command(place, *argv)
        assert refused.returncode == 2
        assert what in refused.stderr


def test_only_sessions_of_this_program_that_are_over_go(tmp_path: Path) -> None:
    names = {n: f"session_2026-01-01_00-00-00_000000_{n}" for n in (2**22 + 1, os.getpid())}
    for name in (*names.values(), "session_2026-01-01_00-00-00_000000_4194306"):
        (tmp_path / name).mkdir()
    for name in names.values():
        ray_sessions.mark(tmp_path / name)
    assert [p.name for p in ray_sessions.over(time.time() + 1, tmp_path)] == [names[2**22 + 1]]
    assert ray_sessions.over(time.time() - DAY, tmp_path) == []
