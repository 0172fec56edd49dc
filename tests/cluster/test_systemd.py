"""systemd takes the units, and the programs and flags that they start exist."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aift_ray.commandline import parse
from aift_ray.config import RunConfig
from tests.conftest import ROOT

UNITS = sorted((ROOT / "cluster" / "systemd").glob("*.service"))
BIN = Path(sys.executable).parent


def commands(unit: Path) -> list[str]:
    lines = unit.read_text("utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith("ExecStart=")]


def test_there_is_a_unit_for_each_service() -> None:
    assert [u.stem for u in UNITS] == ["aift-ray-serve", "aift-ray-train@", "ray-head"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_a_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name.replace("@.", "@some.")
    text = unit.read_text("utf-8").replace("/opt/aift-ray/current/bin", str(BIN))
    # the user and the files of settings are made by whoever installs it
    text = text.replace("User=aift", "User=root").replace("Group=aift", "Group=root")
    copy.write_text(text, "utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(copy)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    own = [line for line in ended.stderr.splitlines() if copy.name in line]
    assert own == []
    copy.write_text(text.replace("RestartSec=", "RestartSeconds="), "utf-8")
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "RestartSeconds" in wrong.stderr, "a mistake would be seen"


def test_the_flags_of_the_units_exist() -> None:
    (train,) = commands(ROOT / "cluster" / "systemd" / "aift-ray-train@.service")
    program, verb, *flags = shlex.split(train)
    assert (Path(program).name, verb) == ("aift-ray", "train")
    found = parse(flags[2:], RunConfig, "train", "").config
    assert (found.resume, found.output_dir) == ("latest", "/var/lib/aift-ray/runs/%i")
    (head,) = commands(ROOT / "cluster" / "systemd" / "ray-head.service")
    shown = subprocess.run([str(BIN / "ray"), "start", "--help"], capture_output=True, text=True)
    for flag in shlex.split(head)[2:]:
        assert flag.partition("=")[0] in shown.stdout
