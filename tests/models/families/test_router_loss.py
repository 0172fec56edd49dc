"""The auxiliary loss of a mixture's routers is that of transformers, under every strategy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from aift_ray.data.collate import collate
from aift_ray.engine.loop import train_step
from aift_ray.errors import ConfigError
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import make_tiny_mixture
from tests.helpers.runs import started, stepped
from tests.parallel.test_model_parallel import placed

Configure = Callable[..., Any]
ASKED = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
KINDS = ("qwen3_moe", "mixtral", "gpt_oss")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("balanced")
    return {kind: make_tiny_mixture(root / kind, kind, **ASKED) for kind in KINDS}


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_models_own_forward(
    kind: str,
    padded: bool,
    recomputed: bool,
    folders: dict[str, Path],
    configure: Configure,
    tmp_path: Path,
) -> None:
    layout = {"data__packing": "false" if padded else "concat"}
    values = {"model": str(folders[kind]), "training__gradient_checkpointing": recomputed}
    run = started(configure(**values, **layout), tmp_path)
    # of several documents in a row transformers' own forward would see one
    batch = collate(run.rows, [0, 5, 9] if padded else [5], padded=padded)
    number = len(batch.labels)
    loss = run.module(batch) / number
    loss.backward()
    plain: Any = AutoModelForCausalLM.from_pretrained(
        folders[kind], attn_implementation="eager", dtype=torch.float32
    ).train()
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.label_positions + 1] = batch.labels
    output = plain(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=labels,
        use_cache=False,
    )
    assert 0.5 * output.aux_loss.item() > 0.1, "it is a part of the loss that is seen"
    output.loss.backward()
    torch.testing.assert_close(loss, output.loss, rtol=1e-5, atol=1e-5)
    wanted = dict(plain.named_parameters())
    for name, weight in run.module.model.named_parameters():
        torch.testing.assert_close(weight.grad, wanted[name].grad, rtol=1e-3, atol=1e-5, msg=name)
    assert run.module.routers.taken() == pytest.approx(output.aux_loss.item() * number, rel=1e-5)
    with torch.no_grad():
        evaluated = run.module.eval()(batch) / number
    assert evaluated.item() == pytest.approx((output.loss - 0.5 * output.aux_loss).item(), abs=1e-5)


def micro_batches(folders: dict[str, Path], workers: int, **values: Any) -> dict[str, Any]:
    common = {"training__batch_size": 2, "training__learning_rate": 1e-3}
    common["training__gradient_accumulation_steps"] = 4 // workers
    return {"model": str(folders["qwen3_moe"])} | common | values


def test_every_strategy_trains_it_as_one_process_does(
    folders: dict[str, Path], configure: Configure, tmp_path: Path
) -> None:
    run = started(configure(**micro_batches(folders, 1)), tmp_path)
    lines = stepped(run)
    weights = parity.snapshot(run).model
    one = [(line["loss"], line["grad_norm"]) for line in lines]
    names = ("ddp", "fsdp", "zero1", "zero2")
    configs = {
        name: configure(**micro_batches(folders, 2, parallel__strategy=name)) for name in names
    }
    curves, moved = parity.spread(configs, tmp_path, 2)
    for name in names:
        found = parity.differences((one, weights), (curves[name], moved[name]))
        assert max(found) < parity.BOUNDS["fp32"], name
    apart = placed(
        configure(**micro_batches(folders, 1, parallel__strategy="model_parallel")), tmp_path
    )
    assert [line["aux_loss"] for line in stepped(apart)] == [line["aux_loss"] for line in lines]


def test_it_is_logged_by_its_name_and_lowers_itself(
    folders: dict[str, Path], configure: Configure, tmp_path: Path
) -> None:
    run = started(configure(**micro_batches(folders, 1)), tmp_path)
    shares = run.plan.share(0, 0, 1)
    plain: Any = AutoModelForCausalLM.from_pretrained(folders["qwen3_moe"], dtype=torch.float32)
    wanted, total = 0.0, 0
    for indices in shares:
        batch = collate(run.rows, indices, padded=True)
        with torch.no_grad():
            found = plain(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask
            ).aux_loss.item()
        wanted, total = wanted + found * len(batch.labels), total + len(batch.labels)
    line, _ = train_step(run)
    assert line["aux_loss"] == pytest.approx(wanted / total, rel=1e-5)


def test_it_is_refused_or_told_where_it_can_not_act(
    folders: dict[str, Path], configure: Configure, tmp_path: Path
) -> None:
    model = {"model": str(folders["qwen3_moe"])}
    pipeline = {"parallel__strategy": "pipeline", "parallel__pipeline_parallel_size": 2}
    with pytest.raises(ConfigError, match="of the routers of all blocks, and a stage has some"):
        prepare(configure(**model, **pipeline), tmp_path, 2, False, None)
    told = prepare(configure(**model, method="lora"), tmp_path, 1, False, None).warnings
    assert any("output_router_logits" in one and "LoRA freezes the routers" in one for one in told)
    plain = make_tiny_mixture(tmp_path / "plain")
    run = started(configure(model=str(plain)), tmp_path)
    assert "aux_loss" not in train_step(run)[0]
