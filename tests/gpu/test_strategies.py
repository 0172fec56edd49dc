"""The strategies on GPUs: what their twins on CPUs show, in 16 bits too, and from host memory.

NCCL joins two workers where there are two GPUs. On a single one they share it, joined by gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from aift_ray.engine.build import build
from aift_ray.models.attention import document_attention
from aift_ray.parallel.group import Group
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import ROOT, make_tiny_model, write_rows
from tests.helpers.ports import free_port
from tests.helpers.runs import stepped

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="gloo sends from no GPU")
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
# what is told apart in processes of its own
PLANS = [
    ["ddp", "fsdp", "zero1", "zero2"],
    ["tensor"],
    ["context", "context fsdp"],
    pytest.param(["pipeline", "pipeline gpipe", "pipeline interleaved"], marks=two_gpus),
    pytest.param(list(parity.DEEPSPEED), marks=[two_gpus, needs_deepspeed]),
]
# FSDP of torch 2.11 takes no integers for weights (pytorch#177844, mended by pytorch#177948)
takes_integers = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"), reason="FSDP of an older torch shares no 4 bits"
)
BOUND = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}


def alone(config: Any, folder: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step on the first GPU."""
    prepared = prepare(config, folder, 1, True, None)
    run = build(prepared.job, Group(0, 1, torch.device("cuda", 0)))
    return [(line["loss"], line["grad_norm"]) for line in stepped(run)]


def together(configs: dict[str, Any], folder: Path, workers: int = 2) -> dict[str, Any]:
    """The same of runs on several workers; what worker 0 saw, and its memory."""
    path = folder / "runs.json"
    path.write_text(json.dumps({k: v.model_dump(mode="json") for k, v in configs.items()}), "utf-8")
    port = str(free_port())
    command = [sys.executable, "-m", "tests.gpu.worker", str(workers), port, str(path)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths}
    said = folder / "said"
    with said.open("w") as log:
        children = [
            subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stderr=log)
            for rank in range(workers)
        ]
        ended = [child.wait(600) for child in children]
    assert ended == [0] * workers, said.read_text("utf-8")[-6000:]
    found: dict[str, Any] = json.loads(path.with_name("gpu0.json").read_text("utf-8"))
    return found


def config_of(strategy: str, method: str, precision: str, model: Path, rows: Path) -> Any:
    """A run of the table of equality, in any precision."""
    workers = 1 if strategy == "alone" else 2
    case = ("ddp" if strategy == "alone" else strategy, method, "bf16", "concat")
    config = parity.settings(case, workers, model, rows)
    config.training.precision = precision
    return config


@pytest.mark.parametrize("strategies", PLANS)
def test_two_workers_train_what_one_trains(strategies: list[str], tmp_path: Path) -> None:
    tiny_model = make_tiny_model(tmp_path / "tiny", num_hidden_layers=4)
    rows = write_rows(tmp_path / "train.jsonl", 22)
    cases = [
        case
        for case in product(strategies, ("full", "lora"), BOUND)
        # it is refused there
        if case[0] not in parity.DEEPSPEED or case[2] != "fp16"
    ]
    configs = {" ".join(case): config_of(*case, tiny_model, rows) for case in cases}
    found = together(configs, tmp_path)
    wrong = {}
    for strategy, method, precision in cases:
        wanted = alone(config_of("alone", method, precision, tiny_model, rows), tmp_path)
        got = torch.tensor(found[f"{strategy} {method} {precision}"]["lines"])
        apart = (got - torch.tensor(wanted)).abs().max().item()
        if not apart < BOUND[precision]:
            wrong[strategy, method, precision] = apart
    assert not wrong


@pytest.fixture
def group_of_one() -> Iterator[Group]:
    """An NCCL group with this process alone in it."""
    torch.distributed.init_process_group(
        "nccl", f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1
    )
    yield Group(0, 1, torch.device("cuda", 0))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("strategy", "backend"),
    [("fsdp", "auto"), pytest.param("zero3", "deepspeed", marks=needs_deepspeed)],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_one_gpu_trains_the_same_from_host_memory(
    method: str, precision: str, strategy: str, backend: str, group_of_one: Group, tmp_path: Path
) -> None:
    if backend == "deepspeed" and precision == "fp16":
        pytest.skip("it is refused")
    tiny_model = make_tiny_model(tmp_path / "tiny", num_hidden_layers=4)
    rows = write_rows(tmp_path / "train.jsonl", 22)
    config = config_of("alone", method, precision, tiny_model, rows)
    wanted = alone(config, tmp_path)
    config.parallel = config.parallel.model_copy(
        update={"strategy": strategy, "backend": backend, "offload": True}
    )
    # a row a micro-step, which offload fills up
    config.training.gradient_accumulation_steps *= config.training.batch_size
    config.training.batch_size = 1
    run = build(prepare(config, tmp_path, 1, True, None).job, group_of_one)
    # ds_tensor: what DeepSpeed keeps of a weight
    kept = [getattr(weight, "ds_tensor", weight) for weight in run.module.parameters()]
    assert {weight.device.type for weight in kept} == {"cpu"}
    assert run.plan.tokens == run.config.data.tokens_per_micro_batch >= 4096
    got = [(line["loss"], line["grad_norm"]) for line in stepped(run)]
    bound = BOUND[precision]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), rtol=bound, atol=bound)


@pytest.mark.parametrize(
    "strategy",
    ["ddp", *(pytest.param(name, marks=takes_integers) for name in ("fsdp", "zero1", "zero2"))],
)
def test_4_bit_bases_train_alike_on_two_gpus(
    strategy: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    found = together({"run": config_of(strategy, "qlora nf4", "bf16", tiny_model, rows)}, tmp_path)
    wanted = alone(config_of("alone", "qlora nf4", "bf16", tiny_model, rows), tmp_path)
    torch.testing.assert_close(
        torch.tensor(found["run"]["lines"]), torch.tensor(wanted), rtol=2e-2, atol=2e-2
    )


@takes_integers
def test_no_gpu_holds_a_4_bit_base_whole_while_it_loads(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "head_dim": 256}
    model = make_tiny_model(tmp_path / "wide", num_hidden_layers=16, **sizes)
    rows = write_rows(tmp_path / "train.jsonl", 22)
    more = ("deepspeed zero3",) if find_spec("deepspeed") else ()
    strategies = ("ddp", "fsdp", "zero2", "tensor", *more)
    configs = {name: config_of(name, "qlora nf4", "bf16", model, rows) for name in strategies}
    loading = {name: run["loading"] for name, run in together(configs, tmp_path).items()}
    assert max(loading[name] for name in strategies[1:]) < 0.75 * loading["ddp"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_moved_to_host_memory_trains_the_same_and_leaves_the_gpu(
    method: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    kept = config_of("fsdp", method, "bf16", tiny_model, rows)
    moved = config_of("fsdp", method, "bf16", tiny_model, rows)
    moved.parallel.offload = True
    found = together({"kept": kept, "moved": moved}, tmp_path)
    torch.testing.assert_close(
        torch.tensor(found["moved"]["lines"]),
        torch.tensor(found["kept"]["lines"]),
        rtol=1e-3,
        atol=1e-3,
    )
    assert found["moved"]["devices"] == ["cpu"]
    assert found["kept"]["devices"] == ["cuda"]
    assert found["moved"]["held"] < found["kept"]["held"]


def test_loss_scaling_passes_over_steps_that_overflow(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    config = config_of("alone", "full", "fp16", tiny_model, rows)
    run = build(prepare(config, tmp_path, 1, True, None).job, Group(0, 1, torch.device("cuda", 0)))
    assert run.scaler.is_enabled()
    run.scaler.scale(torch.zeros((), device="cuda"))
    run.scaler._scale.fill_(2.0**40)  # type: ignore[union-attr]
    before = [weight.detach().clone() for weight in run.module.parameters()]
    stepped(run, 1)
    for old, new in zip(before, run.module.parameters(), strict=True):
        assert torch.equal(old, new), "gradients that overflow move nothing"
    assert run.scaler.get_scale() < 2.0**40
    while run.scaler.get_scale() > 2.0**16:
        stepped(run, 1)
    (line,) = stepped(run, 1)
    assert line["loss"] > 0
    assert line["grad_norm"] < float("inf")


@pytest.mark.skipif(
    not torch.cuda.is_available()
    or not document_attention.flash_computes(torch.device("cuda", 0), torch.bfloat16),
    reason="needs an Ampere GPU or newer",
)
def test_flash_attention_sees_no_other_document(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    config = config_of("alone", "full", "bf16", tiny_model, rows)
    laid = alone(config, tmp_path)
    config.data.packing = "false"
    padded = alone(config, tmp_path)
    torch.testing.assert_close(torch.tensor(laid), torch.tensor(padded), rtol=2e-2, atol=2e-2)


def test_the_computed_memory_is_near_what_a_step_takes(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "train.jsonl", 22)
    config = config_of("alone", "full", "bf16", ROOT / "aift_ray/models/assets/hina-4m", rows)
    prepared = prepare(config, tmp_path, 1, True, None)
    torch.cuda.reset_peak_memory_stats()
    stepped(build(prepared.job, Group(0, 1, torch.device("cuda", 0))), 2)
    assert prepared.memory is not None
    states = prepared.memory.total - prepared.memory.activations
    assert torch.cuda.max_memory_allocated() > 0.9 * states
