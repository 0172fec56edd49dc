"""What the doctor says of a machine, for each thing that can be wrong with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aift_ray.utils.diagnostics import Finding, of_clocks, of_exchange, of_machine, of_versions
from aift_ray.utils.machine import PACKAGES, Gpu, Machine, look

GIB = 2**30
A5000 = Gpu("NVIDIA RTX A5000", 23 * GIB, 24 * GIB)
WELL = Machine(
    name="h1",
    python="3.11.9",
    packages=dict.fromkeys(PACKAGES, "1.0"),
    unmet=[],
    cards=2,
    driver="580.95",
    cuda="13.0",
    gpus=[A5000, A5000],
    gpu_error="",
    nccl="2.27",
    shm=8 * GIB,
    memory=64 * GIB,
    disk=200 * GIB,
    hub="reached",
)


def problems(findings: Any) -> list[Finding]:
    return [finding for finding in findings if finding.level == "problem"]


def test_a_machine_that_is_well_has_nothing_to_mend() -> None:
    assert problems(of_machine(WELL)) == []


WRONG = {
    "driver": ({"driver": None, "gpus": [], "cuda": "13.0"}, "container toolkit"),
    "cuda": ({"cuda": None, "gpus": []}, "--force-reinstall torch"),
    "too old": ({"gpus": [], "driver": "550.54"}, "pip install torch==1.0+cu128"),
    "hidden": ({"gpus": [], "gpu_error": "no device"}, "CUDA_VISIBLE_DEVICES"),
    "gpu": ({"gpus": [A5000, Gpu("NVIDIA RTX A5000", GIB, 24 * GIB)]}, "another process"),
    "nccl": ({"nccl": None}, "CUDA build"),
    "shm": ({"shm": 64 * 2**20}, "--shm-size"),
    "disk": ({"disk": GIB}, "RAY_TMPDIR"),
    "packages": ({"unmet": ["torch is 2.12.0, torch==2.13.0 is required"]}, "requirements.lock"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_its_remedy(name: str) -> None:
    changes, remedy = WRONG[name]
    (found,) = problems(of_machine(replace(WELL, **changes)))
    assert remedy in found.remedy
    assert found.node == "h1"


def test_a_machine_without_a_gpu_is_well() -> None:
    assert problems(of_machine(replace(WELL, cards=0, gpus=[], driver=None, cuda=None))) == []


def test_a_head_that_does_not_compute_needs_no_gpu() -> None:
    assert problems(of_machine(replace(WELL, gpus=[], driver=None), computes=False)) == []


def test_a_hub_out_of_reach_is_worth_a_note_and_chosen_silence_is_not() -> None:
    for hub, level in (("not reached: no route", "note"), ("offline", "ok")):
        (found,) = (f for f in of_machine(replace(WELL, hub=hub)) if f.check == "hub")
        assert found.level == level


def test_versions_that_differ_are_named_with_their_places() -> None:
    other = replace(WELL, name="h2", packages=WELL.packages | {"torch": "2.0"})
    assert problems(of_versions([WELL, replace(WELL, name="h3")])) == []
    (found,) = problems(of_versions([WELL, other, replace(WELL, name="h3")]))
    assert found.what == "torch 1.0 on h1, h3; torch 2.0 on h2"


def test_a_clock_is_wrong_when_it_differs_by_more_than_the_way_takes() -> None:
    ahead = [("h1", 0.0, 0.01), ("h2", 3.0, 0.2), ("h3", 3.0, 2.5), ("h4", -2.0, 0.1)]
    assert [f.node for f in problems(of_clocks(ahead))] == ["h2", "h4"]
    assert "behind" in problems(of_clocks(ahead))[1].what


def test_gpus_that_hang_are_told_with_what_helped() -> None:
    assert problems([of_exchange("h1", 2, ("", ""))]) == []
    (found,) = problems([of_exchange("h1", 2, ("no answer within 60 s", ""))])
    assert "no answer within 60 s" in found.what
    assert "set NCCL_P2P_DISABLE=1" in found.remedy
    (found,) = problems([of_exchange("h1", 2, ("unhandled error", "unhandled error"))])
    assert "didn't help" in found.remedy
    assert problems([of_exchange("h1", 2, None)])


def test_this_machine_can_be_looked_at() -> None:
    found = look()
    assert found.packages["torch"].startswith("2.13")
    assert found.memory > GIB
    assert {finding.check for finding in of_machine(found)} >= {"packages", "gpu", "hub"}
