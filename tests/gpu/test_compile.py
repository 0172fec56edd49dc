"""Compiled blocks on a GPU: inductor's kernels train what torch's do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.engine.build import build
from aift_ray.engine.checkpoint.writer import snapshot
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.helpers.runs import stepped

Configure = Callable[..., Any]
pytestmark = [
    # the compiler's advice (tensor cores, autotuning) is no error
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(
        not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"
    ),
]
RECOMPUTED = {"training__gradient_checkpointing": True}
# a compilation takes a while: each case for something that the others don't show
CASES: dict[str, dict[str, Any]] = {
    "full fp32": {"method": "full", "training__precision": "fp32"},
    "full bf16, recomputed": {"method": "full", "training__precision": "bf16"} | RECOMPUTED,
    "full fp16, padded": {
        "method": "full",
        "training__precision": "fp16",
        "data__packing": "false",
    },
    "lora bf16, recomputed": {"method": "lora", "training__precision": "bf16"} | RECOMPUTED,
    "nf4 bf16, recomputed": {"method": "qlora", "training__precision": "bf16"} | RECOMPUTED,
    "int8 bf16": {
        "method": "qlora",
        "training__precision": "bf16",
        "lora__qlora_4bit": False,
    },
}


def trained(config: Any, folder: Path) -> Any:
    """Losses, norms and final weights of a run on the first GPU."""
    run = build(prepare(config, folder, 1, True, None).job, Group(0, 1, torch.device("cuda", 0)))
    lines = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
    return lines, snapshot(run).model


@pytest.mark.parametrize("name", CASES)
def test_compiled_blocks_train_what_uncompiled_ones_do(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    common = CASES[name] | {
        "training__learning_rate": 1e-3,
        "training__batch_size": 4,
        "lora__lora_dropout": 0.0,
    }
    plain = trained(configure(**common), tmp_path)
    fast = trained(configure(**common, training__compile=True), tmp_path)
    assert not any("_orig_mod" in name for name in fast[1])
    assert max(parity.differences(plain, fast)) < (1e-4 if "fp32" in name else 2e-2)


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_compiled_blocks_and_small_moments_go_together(
    optimizer: str, configure: Configure, tmp_path: Path
) -> None:
    common = {
        "method": "qlora",
        "training__precision": "bf16",
        "training__optimizer": optimizer,
        "training__batch_size": 4,
        "lora__lora_dropout": 0.0,
    }
    plain = trained(configure(**common), tmp_path)
    fast = trained(configure(**common, training__compile=True), tmp_path)
    assert max(parity.differences(plain, fast)[:2]) < 5e-2
