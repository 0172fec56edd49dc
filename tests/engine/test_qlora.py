"""Adapters on a base in 4 or 8 bits: the same steps, saved and resumed as any other adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

from aift_ray.data.collate import collate
from aift_ray.engine.loss import model_inputs
from aift_ray.errors import ConfigError
from aift_ray.models.bnb.bnb_layers import layers
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests.helpers.runs import curve, started
from tests.helpers.whole_runs import evaluated, losses, resumed_exactly, run

Configure = Callable[..., Any]
BITS = {"nf4": {"method": "qlora"}, "int8": {"method": "qlora", "lora__qlora_4bit": False}}
SPREADS: dict[str, dict[str, Any]] = {
    "two by two, accumulated": {
        "training__batch_size": 2,
        "training__gradient_accumulation_steps": 4,
    },
    "padded": {"data__packing": "false"},
    "recomputed activations": {"training__gradient_checkpointing": True},
}


@pytest.mark.parametrize("held", BITS)
def test_batch_of_eight_is_the_same_step(held: str, configure: Configure, tmp_path: Path) -> None:
    common = BITS[held] | {"lora__lora_dropout": 0.0}
    whole = curve(configure(**common), tmp_path)
    assert whole[-1][0] < whole[0][0], "it learns"
    for name, values in SPREADS.items():
        spread = curve(configure(**common, **values), tmp_path)
        torch.testing.assert_close(
            torch.tensor(whole), torch.tensor(spread), rtol=1e-4, atol=1e-4, msg=name
        )


@pytest.mark.parametrize(("held", "bits"), [("nf4", 4), ("int8", 8)])
def test_the_blocks_are_quantized_and_the_adapters_are_not(
    held: str, bits: int, configure: Configure, tmp_path: Path
) -> None:
    model = started(configure(**BITS[held]), tmp_path).module.model
    assert len(layers(model, bits)) == 2 * 7
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert set(trained.values()) == {torch.float32}


def test_a_setting_of_lora_turns_it_on_too(configure: Configure, tmp_path: Path) -> None:
    config = configure(method="lora", lora__use_qlora=True)
    assert layers(started(config, tmp_path).module.model, 4)


@pytest.mark.parametrize("held", BITS)
def test_a_resumed_run_gives_the_losses_of_one_that_was_never_stopped(
    held: str, configure: Configure, tmp_path: Path
) -> None:
    values = {"training__batch_size": 4, "training__save_steps": 3, "lora__lora_dropout": 0.3}
    config = configure(**BITS[held], **values)
    resumed_exactly(config, tmp_path)
    assert run_dir.summary(tmp_path / "whole")["method"] == "qlora"


def test_an_evaluation_between_steps_changes_no_step(configure: Configure, tmp_path: Path) -> None:
    run(configure(method="qlora"), tmp_path / "plain")
    run(configure(method="qlora", **evaluated(tmp_path)), tmp_path / "evaluated")
    assert losses(tmp_path / "plain") == losses(tmp_path / "evaluated")


def test_the_final_adapter_loads_on_the_plain_base(configure: Configure, tmp_path: Path) -> None:
    done = run(configure(method="qlora"), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    reloaded = AutoPeftModelForCausalLM.from_pretrained(folder, attn_implementation="documents")
    mine = {n: p for n, p in done.module.model.named_parameters() if "lora_" in n}
    theirs = {n: p for n, p in reloaded.named_parameters() if "lora_" in n}
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert all("lora_" in n for n in load_file(folder / "adapter_model.safetensors"))
    batch = collate(done.rows, [0, 1, 2], padded=False)
    with torch.no_grad():
        quantized = done.module.model.eval()(**model_inputs(batch)).logits
        plain = reloaded.eval()(**model_inputs(batch)).logits
    # the base differs by what 4 bits round away
    assert torch.nn.functional.cosine_similarity(quantized, plain, dim=-1).min() > 0.95


@pytest.mark.parametrize("other", [{"method": "lora"}, {"lora__qlora_4bit": False}])
def test_a_checkpoint_goes_on_with_the_base_it_was_trained_on_only(
    other: dict[str, Any], configure: Configure, tmp_path: Path
) -> None:
    run(configure(method="qlora", training__save_steps=1), tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step-1"
    assert prepare(configure(method="qlora"), tmp_path, 1, False, step).job.resume == step
    with pytest.raises(ConfigError, match="was trained as qlora in 4 bits, and this run is"):
        prepare(configure(**({"method": "qlora"} | other)), tmp_path, 1, False, step)
