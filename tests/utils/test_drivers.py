"""GPUs that the driver shows and torch can't use.

There is no old driver here: `torch.cuda.device_count`, `torch.cuda.is_available` and the version
that nvidia-smi gives are stand-ins.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from aift_ray import train
from aift_ray.errors import ConfigError
from aift_ray.utils import drivers
from aift_ray.utils.exit_status import guarded

ROOT = Path(__file__).parents[2]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, str, bool], None]:
    """Two GPUs that the driver shows, under this driver and torch's build of CUDA."""

    def show(driver: str | None, cuda: str, usable: bool) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
        monkeypatch.setattr(drivers, "driver_version", lambda: driver)

    return show


def refusal() -> str:
    with pytest.raises(ConfigError) as caught:
        drivers.usable_gpus()
    (problem,) = caught.value.problems
    return f"{problem.what}; {problem.remedy}"


def test_a_driver_that_is_too_old_is_named_beside_what_is_needed(card: Any) -> None:
    card("550.54.15", "13.0", False)
    told = refusal()
    assert "driver is 550.54.15" in told
    assert "CUDA 13.0, which needs 580 or newer" in told
    assert "pip install torch==2.13.0+cu128" in told


def test_an_older_build_is_offered_only_where_it_would_run(card: Any) -> None:
    card("470.82", "13.0", False)
    assert "needs 580" in refusal()
    assert "cu128" not in refusal()
    card("470.82", "12.8", False)
    assert "install driver 525 or newer" in refusal()


def test_a_driver_that_is_new_enough_is_not_blamed(card: Any) -> None:
    for version in ("580.95", "610.1", None):
        card(version, "13.0", False)
        told = refusal()
        assert "needs" not in told
        assert "aift-ray doctor" in told
    card("550.54", "13.0", True)
    assert drivers.usable_gpus() == 2


def test_a_command_ends_with_one_message(
    card: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card("550.54.15", "13.0", False)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "あ"}\n', "utf-8")
    flags = ["--model", "hina-4m", "--train-file", str(rows), "--output-dir", str(tmp_path / "o")]
    assert guarded(train.run, [*flags, "--dry-run"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "needs 580 or newer" in told
    assert "Traceback" not in told


def test_the_lock_and_the_package_take_torchs_older_builds() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for text in (lock, project):
        (pin,) = re.findall(r"^[ \"]*(torch==[\w.+]+)", text, re.MULTILINE)
        assert Requirement(pin).specifier.contains("2.13.0+cu128")
