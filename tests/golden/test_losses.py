"""Losses, gradient norms and held-out losses of small runs, compared with stored ones.

They hold between kinds of CPUs: the weights come from uniform random numbers, which are exact
everywhere, and the computation is in float32. After an intended change of the numbers:
`python -m tests.golden.test_losses`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.commandline import validated
from tests.conftest import make_tiny_model, write_rows
from tests.helpers.runs import started, stepped

STORED = Path(__file__).with_name("losses.json")
# of each number, relative. Other vector instructions (SSE4.1, AVX2) change them by 1e-7; int8,
# whose activations are rounded, by 3e-6
TOLERANCES = {"qlora 8-bit": 1e-4}
TOLERANCE = 1e-5
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "qlora": {"method": "qlora"},
    "qlora 8-bit": {"method": "qlora", "lora": {"qlora_4bit": False}},
}
# bitsandbytes dequantizes 4 bits by another kernel where a CPU has AVX512
KERNELS = {"qlora": "" if torch.backends.cpu.get_cpu_capability() == "AVX512" else ", AVX2"}
LAYOUTS = {"packed": "concat", "filled": "fill", "padded": "false"}
RUNS = [(method, layout) for method in METHODS for layout in LAYOUTS]


def make_model(folder: Path) -> Path:
    """The tiny model with weights that are the same on each machine."""
    from transformers import AutoModelForCausalLM

    make_tiny_model(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            random = torch.rand(weight.shape, generator=generator) - 0.5
            weight.copy_(1 + random if "norm" in name else random / 4)
    model.save_pretrained(folder)
    return folder


def losses(folder: Path, model: Path, method: str, layout: str) -> dict[str, list[float]]:
    """What the steps of a run and an evaluation after them give."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = METHODS[method] | {
        "model": str(model),
        "lora": {"lora_dropout": 0.0} | METHODS[method].get("lora", {}),
        "data": {
            "train_files": [str(write_rows(folder / "train.jsonl"))],
            "eval_files": [str(write_rows(folder / "eval.jsonl", 6, 100))],
            "sequence_length": 128,
            "packing": LAYOUTS[layout],
        },
        "training": {
            "learning_rate": 1e-3,
            "batch_size": 2 if layout == "filled" else 4,
            "gradient_accumulation_steps": 2,
            "num_epochs": 1 if layout != "filled" else 2,
            "warmup_steps": 1,
            "precision": "fp32",
            # gradients near zero, which differ between machines, move no weight
            "adam_epsilon": 1e-4,
        },
    }
    run = started(validated(settings), folder)
    lines = stepped(run)
    held_out = run.evaluator.loss(run.module) if run.evaluator else 0.0
    return {
        "loss": [line["loss"] for line in lines],
        "grad_norm": [line["grad_norm"] for line in lines],
        "eval_loss": [held_out],
    }


def stored_name(method: str, layout: str) -> str:
    """Under which the numbers of a run on a CPU like this one are stored."""
    return f"{method}, {layout}{KERNELS.get(method, '')}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("golden") / "model")


@pytest.mark.parametrize(("method", "layout"), RUNS)
def test_losses_are_the_stored_ones(method: str, layout: str, model: Path, tmp_path: Path) -> None:
    stored = json.loads(STORED.read_text("utf-8"))[stored_name(method, layout)]
    found = losses(tmp_path / "run", model, method, layout)
    assert found.keys() == stored.keys()
    for name, values in stored.items():
        assert len(values) == len(found[name]) > 0
        assert found[name] == pytest.approx(values, rel=TOLERANCES.get(method, TOLERANCE)), name


def main() -> None:
    """Store the losses anew; those of the other kernel stay as they are."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        found = {
            stored_name(method, layout): losses(folder / method / layout, model, method, layout)
            for method, layout in RUNS
        }
    found = json.loads(STORED.read_text("utf-8")) | found
    STORED.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
