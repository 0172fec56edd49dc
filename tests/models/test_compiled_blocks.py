"""Compiled blocks train what uncompiled ones do, and leave the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from aift_ray.errors import ConfigError
from aift_ray.models import compiled_blocks
from aift_ray.runs import prepare as preparing
from aift_ray.utils.compilers import compiler
from tests import parity
from tests.conftest import write_rows
from tests.helpers.runs import curve, started, stepped
from tests.helpers.whole_runs import losses, run, run_on

Configure = Callable[..., Any]
# the compiler looks at it, and pytest makes an error of the warning
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
STEADY = {
    "training__batch_size": 4,
    "training__save_steps": 3,
    "training__learning_rate": 1e-3,
    "lora__lora_dropout": 0.0,
}
COMPILED = {"training__compile": True}
CASES = {
    "full, recomputed": {"method": "full", "training__gradient_checkpointing": True},
    "lora, recomputed": {"method": "lora", "training__gradient_checkpointing": True},
    "nf4": {"method": "qlora"},
}
LONGER = {
    "full": {"method": "full"},
    "full, padded": {"method": "full", "data__packing": "false"},
    "int8": {"method": "qlora", "lora__qlora_4bit": False},
}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the graphs that were compiled; they run as they are, traced backwards too."""
    from torch._dynamo.backends.debugging import aot_eager

    found: list[int] = []

    def backend(module: Any, inputs: Any, **how: Any) -> Any:
        found.append(len(module.graph.nodes))
        return aot_eager(module, inputs, **how)

    torch._dynamo.reset()
    monkeypatch.setattr(compiled_blocks, "BACKEND", backend)
    return found


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(n, marks=pytest.mark.slow) for n in LONGER)]
)
def test_compiled_blocks_train_what_uncompiled_ones_do(
    name: str, configure: Configure, tmp_path: Path, graphs: list[int]
) -> None:
    common = STEADY | (CASES | LONGER)[name]
    plain = curve(configure(**common), tmp_path)
    assert graphs == []
    fast = curve(configure(**common, **COMPILED), tmp_path)
    assert sum(graphs) > 30, "most of a block is compiled"
    assert len(graphs) <= 24, "rows of other lengths and blocks that are alike share a compilation"
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(plain), rtol=1e-4, atol=1e-5)


def test_evaluation_and_answers_run_uncompiled(
    configure: Configure, tmp_path: Path, graphs: list[int]
) -> None:
    held_out = str(write_rows(tmp_path / "eval.jsonl", 4, 100))
    evaluated = {"data__eval_files": [held_out], "training__exact_match_rows": 2}
    made = started(configure(**STEADY, **evaluated, **COMPILED), tmp_path)
    assert made.evaluator
    assert made.evaluator.loss(made.module) is not None
    assert made.evaluator.exact_match(made.module) is not None
    assert graphs == []
    stepped(made, 1)
    assert graphs


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_a_run_goes_on_with_and_without_compiled_blocks(
    method: str, configure: Configure, tmp_path: Path, graphs: list[int]
) -> None:
    more = STEADY | {"method": method, "training__gradient_checkpointing": True}
    configs = {"plain": configure(**more), "fast": configure(**more, **COMPILED)}
    for name, config in configs.items():
        run(config, tmp_path / name)
        assert bool(graphs) == (name == "fast")
    step = {name: tmp_path / name / "checkpoints" / "step-3" for name in configs}
    for own, other in (("plain", "fast"), ("fast", "plain")):
        onward = configs[own].model_copy(update={"resume": str(step[other])})
        run_on(onward, tmp_path / f"{other}-{own}")
        found, wanted = losses(tmp_path / f"{other}-{own}"), losses(tmp_path / "plain")[3:]
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-4)
    for place in ("model", "checkpoints/step-3"):
        folders = [tmp_path / name / place for name in configs]
        files = [sorted(p.name for p in folder.iterdir()) for folder in folders]
        assert files[0] == files[1]
        for name in [n for n in files[0] if n.endswith((".safetensors", ".moments"))]:
            one, two = (_names(folder / name) for folder in folders)
            assert one == two
            assert not any("_orig_mod" in weight for weight in one)


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return sorted(file.keys())


SPREAD = [("fsdp", "full", "fp32", "recomputed")]
MORE = [
    *[(name, "full", "fp32", "recomputed") for name in ("ddp", "zero1", "tensor", "pipeline")],
    ("fsdp", "qlora nf4", "fp32", "concat"),
    ("zero2", "lora", "fp32", "padded"),
]


@pytest.mark.slow
@pytest.mark.parametrize("cases", [SPREAD, MORE])
def test_compiled_blocks_of_two_workers_train_what_one_process_trains(
    cases: list[tuple[str, str, str, str]], tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    runs = {}
    for case in cases:
        config = parity.settings(case, 2, tiny_model, rows)
        config.training.compile = True
        runs["|".join(case)] = config
    found, weights = parity.spread(runs, tmp_path, 2)
    for case in cases:
        wanted = parity.alone(parity.settings(("ddp", *case[1:]), 1, tiny_model, rows), tmp_path)
        name = "|".join(case)
        apart = parity.differences(wanted, (found[name], weights[name]))
        assert max(apart) <= parity.bound(case), case


@pytest.mark.slow
@pytest.mark.skipif(not compiler(gpu=False), reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["full, recomputed", pytest.param("nf4", marks=pytest.mark.slow)])
def test_blocks_that_inductor_compiles_train_what_uncompiled_ones_do(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    common = STEADY | CASES[name]
    plain = curve(configure(**common), tmp_path)
    fast = curve(configure(**common, **COMPILED), tmp_path)
    assert fast != plain, "other kernels round otherwise"
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(plain), rtol=1e-4, atol=1e-5)


def test_no_compiler_is_said_before_anything_starts(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"training\.compile: torch\.compile needs a C\+\+"):
        preparing.prepare(configure(**COMPILED), tmp_path, 1, False, None)
