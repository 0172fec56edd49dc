"""Stages on several workers train, evaluate, answer and save what one process does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from aift_ray.engine import checkpoint
from aift_ray.errors import ConfigError
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import make_tiny_model, write_rows
from tests.helpers.runs import whole_on_workers
from tests.helpers.whole_runs import evaluated, losses, run, run_on

Configure = Callable[..., Any]
CASES = [
    ("pipeline", "full", "fp32", "concat"),
    ("pipeline", "full", "bf16", "concat"),
    ("pipeline", "lora", "fp32", "fill"),
    ("pipeline", "qlora nf4", "fp32", "padded"),
    ("pipeline", "qlora int8", "fp32", "concat"),
    ("pipeline gpipe", "full", "fp32", "concat"),
    ("pipeline interleaved", "full", "fp32", "concat"),
    ("pipeline interleaved", "qlora nf4", "fp32", "recomputed"),
]
STAGES = {"parallel__strategy": "pipeline", "parallel__pipeline_parallel_size": 2}


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of four blocks, its output layer the embeddings' weight."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=4)


def test_two_stages_train_what_one_process_trains(deep_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    found = parity.compare(CASES, tmp_path, deep_model, rows)
    passed = {case: values for case, values in found.items() if max(values) > parity.bound(case)}
    assert passed == {}
    held = [json.loads((tmp_path / f"held{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    size = sum(p.nbytes for p in AutoModelForCausalLM.from_pretrained(deep_model).parameters())
    table = 5056 * 64 * 4
    for name in ("pipeline|full|fp32|concat", "pipeline interleaved|full|fp32|concat"):
        shares = [of[name] for of in held]
        assert sum(shares) == size + table, "the weight that the ends share is held twice"
        # the output layer's work weighs as much as some blocks
        assert max(shares) - table < 0.76 * (size - table)


@pytest.mark.slow
def test_two_stages_of_two_replicas_train_what_one_process_trains(
    deep_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    chosen = [("pipeline 2 x 2", *case[1:]) for case in CASES if case[0] == "pipeline"]
    found = parity.compare(chosen, tmp_path, deep_model, rows)
    passed = {case: values for case, values in found.items() if max(values) > parity.bound(case)}
    assert passed == {}


STEADY = {
    "training__lr_scheduler": "constant",
    "training__learning_rate": 1e-3,
    "training__save_steps": 3,
    "training__max_steps": 6,
    "training__batch_size": 2,
    "training__gradient_accumulation_steps": 2,
    "lora__lora_dropout": 0.0,
}


def test_a_run_of_one_process_goes_on_in_stages_and_back(
    configure: Configure, deep_model: Path, tmp_path: Path
) -> None:
    best = evaluated(tmp_path) | {"training__load_best": True}
    interleaved = {"parallel__pipeline_schedule": "interleaved"}
    methods = {"full": best, "lora": best | interleaved, "qlora": {}}
    common = STEADY | {"model": str(deep_model)}
    configs = {}
    for method, more in methods.items():
        own = {k: v for k, v in more.items() if not k.startswith("parallel")}
        run(configure(method=method, **common, **own), tmp_path / f"alone_{method}")
        start = {"resume": str(tmp_path / f"alone_{method}" / "checkpoints" / "step-3")}
        for name, how in ((f"stages_{method}", {}), (f"onward_{method}", start)):
            configs[name] = configure(method=method, **common, **STAGES, **more, **how)
    whole_on_workers(configs, tmp_path)
    for method in methods:
        wanted = losses(tmp_path / f"alone_{method}")
        from_stages = tmp_path / f"stages_{method}" / "checkpoints" / "step-3"
        back = configure(method=method, resume=str(from_stages), **common)
        run_on(back, tmp_path / f"back_{method}")
        close(losses(tmp_path / f"stages_{method}"), wanted)
        close(losses(tmp_path / f"onward_{method}"), wanted[3:])
        close(losses(tmp_path / f"back_{method}"), wanted[3:])
    for method, loader in (("full", AutoModelForCausalLM), ("lora", AutoPeftModelForCausalLM)):
        alone, two = (run_dir.summary(tmp_path / f"{n}_{method}") for n in ("alone", "stages"))
        assert two["strategy"] == "pipeline"
        assert two["best_step"] == alone["best_step"]
        assert two["exact_match"] == alone["exact_match"]
        assert two["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-4)
        same_folders(tmp_path / f"alone_{method}", tmp_path / f"stages_{method}", loader)


def close(found: list[Any], wanted: list[Any]) -> None:
    assert [line[0] for line in found] == [line[0] for line in wanted]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-4)


def same_folders(alone: Path, stages: Path, loader: Any) -> None:
    """The final models are alike, and the checkpoints are the same files."""
    one, two = (loader.from_pretrained(path / "model") for path in (alone, stages))
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
    one, two = (path / "checkpoints" / "step-3" for path in (alone, stages))
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    assert checkpoint.damage(two) is None
    sizes = {p.name: p.stat().st_size for p in one.glob("*.safetensors")}
    assert sizes == {p.name: p.stat().st_size for p in two.glob("*.safetensors")}


def test_without_a_size_all_workers_are_stages(configure: Configure, tmp_path: Path) -> None:
    config = configure(parallel__strategy="pipeline", ray__num_workers=2)
    prepared = prepare(config, tmp_path / "run", 2, False, None)
    assert prepared.job.config.parallel.pipeline_parallel_size == 2
    assert set((prepared.job.layout or {}).values()) == {0, 1}
    assert prepared.job.global_batch == 8, "they hold one model together"
    with pytest.raises(ConfigError, match="a stage of pipeline is a worker, and there is one"):
        configure(parallel__strategy="pipeline", ray__num_workers=1)


@pytest.mark.parametrize(
    ("more", "workers", "part"),
    [
        ({"parallel__pipeline_parallel_size": 3}, 3, "3 stages can't be made of 2 blocks"),
        ({"parallel__pipeline_schedule": "interleaved"}, 2, "4 stages can't be made of 2 blocks"),
        ({}, 3, "3 is not a multiple of parallel.pipeline_parallel_size 2"),
        (
            {"method": "lora", "lora__modules_to_save": ["lm_head"]},
            2,
            "lm_head is embeddings and output layer, the first and the last stage",
        ),
    ],
)
def test_what_makes_no_pipeline_is_refused_before_anything_starts(
    more: dict[str, Any], workers: int, part: str, configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=part):
        prepare(configure(**STAGES | more), tmp_path, workers, False, None)


def test_the_global_batch_counts_replicas_not_stages(configure: Configure, tmp_path: Path) -> None:
    config = configure(**STAGES, training__batch_size=3, parallel__pipeline_microbatches=3)
    prepared = prepare(config, tmp_path, 4, False, None)
    assert prepared.job.global_batch == 6
    assert [len(part) for part in prepared.plan.share(0, 0, 2)] == [1, 1, 1]
    assert config.worker_range(0) == (2, 2)
    assert config.worker_range(5) == (4, 4)
