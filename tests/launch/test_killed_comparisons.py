"""Launched runs of comparisons on two workers: one loses a worker and its driver, one nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.faults.kills import progressed, recovered, resumed, strike, vanished
from tests.helpers.command import Command, curve_of, flags, summary_of
from tests.helpers.preference_rows import labelled, pairs, write

pytestmark = [pytest.mark.slow, pytest.mark.ray]
STEPS, WEIGHTS = 120, "adapter_model.safetensors"
SETTINGS = {
    "method": "lora",
    "lora__lora_dropout": 0.1,
    "parallel__strategy": "ddp",
    "training__batch_size": 2,
    "training__gradient_accumulation_steps": 1,
    "training__learning_rate": 1e-3,
    "training__max_steps": STEPS,
    "training__save_steps": 10,
    "ray__max_failures": -1,
}


@pytest.mark.parametrize("objective", ["dpo", "kto", "reward"])
def test_kills_change_no_bit_of_a_comparison(
    objective: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", labelled(40) if objective == "kto" else pairs(40))

    def command(folder: Path) -> Command:
        return resumed(flags(tiny_model, rows, folder, **{"objective": objective, **SETTINGS}))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, text = command(whole).done(600)
    assert status == 0, text
    running = command(killed)
    victims = []
    for victim in ("worker", "driver"):
        if progressed(running, killed, 3):
            victims.append(strike(running, killed, victim))
            if not running.alive():
                vanished(running)
                running = command(killed)
            recovered(running, killed)
    status, text = running.done(600)
    assert status == 0, text
    assert [kill["victim"] for kill in victims] == ["worker", "driver"]
    assert summary_of(killed)["status"] == "done"
    assert len(curve_of(whole)) == STEPS
    assert curve_of(killed) == curve_of(whole)
    one, other = (load_file(place / "model" / WEIGHTS) for place in (whole, killed))
    assert all(one[name].equal(other[name]) for name in one | other)
