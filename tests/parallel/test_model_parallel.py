"""Layers over the devices of one process.

A machine without GPUs has one device that computes. Shown here are the split, on models without
weights; runs whose pieces are all placed and hooked, on the CPU; and that activations follow their
blocks to another device, the meta device, where shapes are computed and no numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from aift_ray.engine.build import build
from aift_ray.engine.checkpoint.writer import snapshot
from aift_ray.engine.loss import model_inputs
from aift_ray.errors import ConfigError
from aift_ray.models.split import pieces_of
from aift_ray.parallel import model_parallel
from aift_ray.planning.partition import HOST
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.helpers.runs import CPU, started, stepped
from tests.helpers.whole_runs import ALONE

Configure = Callable[..., Any]
STEADY = {"lora__lora_dropout": 0.0, "training__batch_size": 4}


def placed(config: Any, folder: Path) -> Any:
    """A run each piece of which is placed, as on several devices, in the host."""
    prepared = prepare(config, folder, 1, False, None)
    assert prepared.job.layout is None, "a machine without GPUs is one device"
    names = pieces_of(started(config, folder).module.model).names
    return build(replace(prepared.job, layout=dict.fromkeys(names, HOST)), ALONE)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("recompute", [False, True])
def test_placed_pieces_train_what_one_device_trains(
    method: str, recompute: bool, configure: Configure, tmp_path: Path
) -> None:
    more = STEADY | {"method": method, "training__gradient_checkpointing": recompute}
    alone = started(configure(**more), tmp_path)
    run = placed(configure(parallel__strategy="model_parallel", **more), tmp_path)
    found = [[(line["loss"], line["grad_norm"]) for line in stepped(one)] for one in (alone, run)]
    weights = [snapshot(one).model for one in (alone, run)]
    differences = parity.differences((found[0], weights[0]), (found[1], weights[1]))
    assert max(differences) == 0, "the same operations on the same device"


def test_activations_follow_the_blocks_to_another_device(
    configure: Configure, tmp_path: Path
) -> None:
    run = started(configure(), tmp_path)
    model = run.module.model
    pieces, meta = pieces_of(model), torch.device("meta")
    batch = run.plan.longest_micro_batch()
    from aift_ray.engine.step_batches import micro_batch

    inputs = model_inputs(micro_batch(run, batch))
    inputs = {k: v for k, v in inputs.items() if "cu_seq" not in k and "max_length" not in k}
    devices = dict.fromkeys((pieces.embeddings, pieces.blocks[0]), CPU)
    devices |= dict.fromkeys((pieces.blocks[1], pieces.norm, pieces.head), meta)
    # the output layer comes to the embeddings whose weight it shares
    devices[pieces.head] = CPU
    model_parallel.place(model, devices, CPU)
    states = model.get_decoder()(**inputs).last_hidden_state
    assert states.device == meta
    assert states.shape == (*inputs["input_ids"].shape, 64)
    assert {p.device.type for p in model.get_submodule(pieces.blocks[1]).parameters()} == {"meta"}
    assert {p.device.type for p in model.get_submodule(pieces.blocks[0]).parameters()} == {"cpu"}


def large(folder: Path) -> str:
    """A folder with the numbers of a 13B Llama, and the tokenizer of the shipped model."""
    from transformers import AutoTokenizer

    from tests.conftest import SHIPPED

    numbers = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
    numbers |= {"num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000}
    AutoConfig.for_model("llama", **numbers).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED).save_pretrained(folder)
    # never read: its header alone says that there are weights
    from safetensors.torch import save_file

    save_file({"none": torch.zeros(1)}, folder / "model.safetensors")
    return str(folder)


TWO = {0: "22GB", 1: "22GB"}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, as far as the planning of a layout asks."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_thirteen_billion_weights_are_split_over_two_devices(
    configure: Configure, tmp_path: Path
) -> None:
    more = {"training__gradient_checkpointing": True, "training__batch_size": 1}
    more |= {"parallel__strategy": "model_parallel", "parallel__max_memory_per_gpu": TWO}
    model = large(tmp_path)
    lora = prepare(configure(model=model, method="lora", **more), tmp_path, 1, True, None)
    assert lora.job.layout is not None
    numbers = list(lora.job.layout.values())
    assert numbers == sorted(numbers)
    assert min(numbers.count(0), numbers.count(1)) > 8
    with pytest.raises(ConfigError) as refused:
        prepare(configure(model=model, **more), tmp_path, 1, True, None)
    message = str(refused.value)
    assert "the devices take 44 GB" in message
    assert "GB more (computed)" in message
    assert "--method lora fits" in message


@pytest.mark.usefixtures("two_gpus")
def test_what_fits_no_device_lies_in_the_host_where_that_is_allowed(
    configure: Configure, tmp_path: Path
) -> None:
    small = {"parallel__max_memory_per_gpu": {0: "1MB"}, "parallel__strategy": "model_parallel"}
    with pytest.raises(ConfigError, match="spill_to_cpu puts the rest in the host"):
        prepare(configure(**small), tmp_path, 1, True, None)
    spilled = configure(parallel__spill_to_cpu=True, **small)
    layout = prepare(spilled, tmp_path, 1, True, None).job.layout
    assert layout is not None
    assert HOST in layout.values()


@pytest.mark.parametrize(
    ("settings", "workers", "part"),
    [
        ({"parallel__max_memory_per_gpu": TWO}, 1, "names GPU 0, 1, and this machine has 0"),
        ({}, 2, "model_parallel is one, which holds all devices"),
    ],
)
def test_what_is_not_there_is_refused(
    settings: dict[str, Any], workers: int, part: str, configure: Configure, tmp_path: Path
) -> None:
    config = configure(parallel__strategy="model_parallel", **settings)
    with pytest.raises(ConfigError, match=part):
        prepare(config, tmp_path, workers, False, None)
