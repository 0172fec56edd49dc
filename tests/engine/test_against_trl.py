"""Ten steps of each objective equal TRL's, on the same rows, adapters and order.

Needs an environment with TRL: AIFT_TRL_ENV, or this one with the extra bench.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aift_ray.commandline import validated
from tests.conftest import ROOT, SHIPPED
from tests.helpers.preference_rows import labelled, pairs, write
from tests.helpers.runs import started, stepped

pytestmark = [pytest.mark.slow]
STEPS, ROWS = 10, 8
Trl = Callable[[dict[str, Any], Path], list[dict[str, Any]]]
# larger steps of all weights make rounding errors grow beyond 1e-4 within ten steps
RATES = {"lora": 2e-4, "full": 2e-5}
# objective: our settings, TRL's, and the rows of its micro-batches
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "sigmoid": ("dpo", {}, {"loss_type": "sigmoid"}, 4),
    "beta": ("dpo", {"beta": 0.5}, {"loss_type": "sigmoid", "beta": 0.5}, 4),
    "sigmoid_norm": ("dpo", {"length_normalized": True}, {"loss_type": "sigmoid_norm"}, 4),
    "sft": (
        "dpo",
        {"rpo_alpha": 0.5},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        1,
    ),
    "ipo": ("ipo", {}, {"loss_type": "ipo"}, 4),
    "hinge": ("hinge", {}, {"loss_type": "hinge"}, 4),
    "robust": (
        "robust",
        {"label_smoothing": 0.2},
        {"loss_type": "robust", "label_smoothing": 0.2},
        4,
    ),
    "orpo": ("orpo", {}, {}, 4),
    "simpo": (
        "simpo",
        {"beta": 2.0, "simpo_gamma": 1.0},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
        4,
    ),
    "cpo": ("cpo", {}, {"loss_type": "sigmoid", "cpo_alpha": 1.0}, 1),
    "kto": (
        "kto",
        {"desirable_weight": 1.5},
        {"loss_type": "kto", "desirable_weight": 1.5},
        ROWS,
    ),
    "reward": (
        "reward",
        {"center_rewards_coefficient": 0.05},
        {"center_rewards_coefficient": 0.05},
        4,
    ),
}
# ours: TRL's
REWARDS = {name: name for name in ("rewards/chosen", "rewards/rejected", "rewards/margins")}
SCORES = {"rewards/margins": "margin", "rewards/accuracies": "accuracy"}


def trl_python() -> str:
    """The Python that has TRL; the test is skipped where none has."""
    place = os.environ.get("AIFT_TRL_ENV")
    if place:
        return str(Path(place) / "bin" / "python")
    if importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed: set AIFT_TRL_ENV, or install the extra bench")
    return sys.executable


@pytest.fixture(scope="module")
def trl() -> Iterator[Trl]:
    """What TRL sees of each step of a run; one process for all."""
    command = [trl_python(), "-m", "tests.helpers.trl_trainer"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdin
        assert process.stdout

        def run(spec: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
            given, taken = folder / "spec.json", folder / "steps.json"
            given.write_text(json.dumps(spec), "utf-8")
            print(given, taken, sep="\t", file=process.stdin, flush=True)
            # TRL prints lines of its own
            assert "done\n" in process.stdout, "it has ended"
            steps: list[dict[str, Any]] = json.loads(taken.read_text("utf-8"))
            return steps

        yield run
        process.stdin.close()


def token_rows(run: Any) -> list[dict[str, Any]]:
    """The rows of a run as it trains them."""
    found = []
    for index in range(len(run.rows)):
        ids, flags = run.rows.row(index)
        score = float(run.rows.scores[index])
        trained = np.flatnonzero(flags)
        start = int(trained[0])
        assert flags[start : trained[-1]].all()
        if run.config.objective != "reward":
            # what the template writes after the end of a turn changes no loss
            ids = ids[: trained[-1] + 1]
        score_or_none = None if np.isnan(score) else score
        found.append({"ids": ids.tolist(), "start": start, "score": score_or_none})
    return found


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("case", CASES)
def test_ten_steps_equal_trl(case: str, method: str, trl: Trl, tmp_path: Path) -> None:
    hold_against_trl(case, method, SHIPPED, ROWS, trl, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_ten_steps_of_a_real_model_equal_trl(case: str, trl: Trl, tmp_path: Path) -> None:
    folder = Path(os.environ.get("AIFT_REAL_MODELS", tmp_path)) / "gemma3-270m"
    if not folder.is_dir():
        pytest.skip("gemma3-270m is not there: AIFT_REAL_MODELS names the folder of real models")
    hold_against_trl(case, "lora", folder, 2, trl, tmp_path)


def hold_against_trl(
    case: str, method: str, model: Path, number: int, trl: Trl, tmp_path: Path
) -> None:
    """Ten steps of `number` rows each, here and in TRL, on the same weights."""
    objective, own, settings, batch = CASES[case]
    batch = min(batch, number)
    # rounding grows more from step to step in a model of more layers
    rate = RATES["lora" if method == "lora" and model == SHIPPED else "full"]
    rows = labelled(number) if objective == "kto" else pairs(number)
    if objective == "reward":
        rows = [row | {"margin": 0.1 * number} for number, row in enumerate(rows)]
    run = started(
        validated(
            {
                "model": str(model),
                "method": method,
                "objective": objective,
                "preference": own,
                "lora": {"lora_dropout": 0.0},
                "data": {
                    "train_files": [str(write(tmp_path / "rows.jsonl", rows))],
                    "sequence_length": 128,
                },
                "training": {
                    "learning_rate": rate,
                    "batch_size": 2,
                    "gradient_accumulation_steps": number // 2,
                    "max_steps": STEPS,
                    "warmup_steps": 0,
                    "lr_scheduler": "constant",
                    "weight_decay": 0.0,
                    "gradient_checkpointing": False,
                },
            }
        ),
        tmp_path,
    )
    spec = {
        "objective": objective,
        "model": str(model),
        "rows": token_rows(run),
        "batch": batch,
        "accumulation": number // batch,
        "learning_rate": rate,
        "steps": STEPS,
        "settings": settings if objective == "reward" else {"beta": 0.1, **settings},
    }
    if method == "lora":
        spec["adapter"] = str(tmp_path / "adapter")
        run.module.model.save_pretrained(spec["adapter"])
    elif objective == "reward":
        # with the output layer that it begins with
        spec["model"] = str(tmp_path / "scorer")
        run.module.model.save_pretrained(spec["model"])
        run.job.load_tokenizer().save_pretrained(spec["model"])
    lines = stepped(run)
    for line, other in zip(lines, trl(spec, tmp_path), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-4)
        assert line["grad_norm"] == pytest.approx(float(other["grad_norm"]), rel=1e-4, abs=1e-4)
        for name, theirs in REWARDS.items() if objective != "reward" else SCORES.items():
            assert line[name] == pytest.approx(float(other[theirs]), rel=1e-4, abs=1e-4)
        if objective == "kto":
            assert line["kl"] == pytest.approx(float(other["kl"]), rel=1e-4, abs=1e-4)
