"""Runs on models with towers beside the language model, and on others that aren't like a Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from aift_ray.config import LoRAConfig
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.families.towers import towers
from aift_ray.models.load import load_model
from aift_ray.models.lora.attach import add_adapters
from aift_ray.quantization import merge_adapter, quantizer
from tests.helpers.runs import on_workers, whole_on_workers
from tests.helpers.tiny_families import make, save, with_towers
from tests.helpers.whole_runs import Killed, losses, run

STEADY = {"training__batch_size": 4, "training__num_epochs": 2, "training__save_steps": 3}


def made(family: str, folder: Path) -> str:
    return str(make(family, folder) if family == "gpt2" else save(with_towers(family), folder))


def whole_model(folder: Path | str) -> Any:
    """All of a model, as plain transformers opens it."""
    auto = AutoModelForCausalLM if is_plain(folder) else AutoModelForMultimodalLM
    return auto.from_pretrained(folder)


def is_plain(folder: Path | str) -> bool:
    return AutoConfig.from_pretrained(folder).model_type == "gpt2"


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("gemma3", "full"),
        ("gemma3", "qlora"),
        ("gemma4", "lora"),
        ("mistral3", "full"),
        ("mistral3", "qlora"),
        ("mllama", "full"),
        pytest.param("qwen3_vl_moe", "full", marks=pytest.mark.slow),
        pytest.param("qwen3_vl", "lora", marks=pytest.mark.slow),
        ("gpt2", "lora"),
        ("gpt2", "qlora"),
    ],
)
def test_it_resumes_exactly_and_plain_transformers_opens_the_whole(
    family: str, method: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    location = made(family, tmp_path / "model")
    config = configure(model=location, method=method, **STEADY)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", kill_at=3)
    resumed = run(config, tmp_path / "killed")
    assert resumed.resumed_from == 3
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)
    base = whole_model(location)
    beside = [base.get_submodule(name) for name in towers(base)]
    before = [p.clone() for one in beside for p in one.parameters()]
    if method == "full":
        opened = whole_model(tmp_path / "whole" / "model")
        assert type(opened) is type(base)
        after = [p for name in towers(opened) for p in opened.get_submodule(name).parameters()]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
        # a run may start from it as from the source
        again = load_model(str(tmp_path / "whole" / "model"), torch.float32, None)
        for mine, theirs in zip(again.parameters(), whole.module.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    else:
        opened = PeftModel.from_pretrained(base, tmp_path / "whole" / "model")
    if method != "qlora":
        ids = torch.arange(5, 25)[None]
        whole.module.model.eval()
        with torch.no_grad():
            wanted = whole.module.model(input_ids=ids).logits
            torch.testing.assert_close(
                opened.eval()(input_ids=ids).logits, wanted, rtol=0, atol=1e-3
            )


STRATEGIES = {
    "mistral3": ("fsdp", "tensor", "pipeline"),
    "gemma4": ("ddp", "fsdp"),
    "gpt2": ("ddp", "fsdp"),
}
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("mistral3", "gemma4")]


@pytest.mark.parametrize("family", [*SLOW, "gpt2"])
def test_two_workers_take_the_steps_of_one(
    family: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    location = made(family, tmp_path / "model")
    # as small a step as keeps the rounding of gradients small
    steady = STEADY | {"training__learning_rate": 1e-4}
    if family == "gemma4":
        # so small a one is chaotic: a rounding of 1e-7 is 1e-3 some steps later
        steady |= {"training__max_steps": 1, "training__save_steps": 1}
    runs, wanted = {}, {}
    for method in ("full", "lora"):
        alone = configure(model=location, method=method, lora={"lora_dropout": 0.0}, **steady)
        run(alone, tmp_path / method)
        wanted[method] = [(loss, norm) for _, loss, _, norm in losses(tmp_path / method)]
        for strategy in STRATEGIES[family]:
            batch = 2 if strategy in ("ddp", "fsdp") else 4
            how = steady | {"training__batch_size": batch, "parallel__strategy": strategy}
            if batch == 4:
                how[f"parallel__{strategy}_parallel_size"] = 2
            more = {"model": location, "method": method, "lora": {"lora_dropout": 0.0}}
            runs[f"{strategy}_{method}"] = configure(**more, **how)
    for name, found in on_workers(runs, tmp_path).items():
        for one, other in zip(found, wanted[name.split("_")[1]], strict=True):
            assert one == pytest.approx(other, rel=1e-4), name


@pytest.mark.parametrize("family", ["gemma3", "gemma4", "mistral3", "qwen3_5", "gpt2"])
def test_an_adapter_merges_and_a_quantized_folder_gives_the_same_logits(
    family: str, tmp_path: Path
) -> None:
    location = made(family, tmp_path / "model")
    adapted = add_adapters(load_model(location, torch.float32, None), LoRAConfig(r=4), location)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.eval().save_pretrained(str(tmp_path / "adapter"))
    cpu, ids = torch.device("cpu"), torch.arange(5, 25)[None]
    merge_adapter.merge(location, tmp_path / "adapter", torch.float32, cpu, tmp_path / "merged")
    merged = whole_model(tmp_path / "merged")
    held = quantizer.quantize(location, Quantization(4), cpu, tmp_path / "held")
    # of a Qwen 3.5 the language model alone is quantized
    kind = AutoModelForCausalLM if family == "qwen3_5" else AutoModelForMultimodalLM
    opened = (AutoModelForCausalLM if family == "gpt2" else kind).from_pretrained(tmp_path / "held")
    opened, answering = opened.eval(), load_model(str(tmp_path / "held"), torch.float32, None)
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=0, atol=1e-3)
        assert torch.equal(opened(input_ids=ids).logits, held(input_ids=ids).logits)
        found = answering.eval()(input_ids=ids).logits
        torch.testing.assert_close(found, held(input_ids=ids).logits, rtol=0, atol=1e-5)
    source, whole = whole_model(location), whole_model(tmp_path / "merged")
    for name in towers(source):
        for a, b in zip(
            source.get_submodule(name).parameters(),
            whole.get_submodule(name).parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_shared_out_workers_save_the_whole(configure: Callable[..., Any], tmp_path: Path) -> None:
    location = made("mistral3", tmp_path / "model")
    steady = STEADY | {"training__learning_rate": 1e-4, "training__num_epochs": 1}
    run(configure(model=location, **steady), tmp_path / "alone")
    more = {"training__batch_size": 2, "parallel__strategy": "fsdp"}
    whole_on_workers({"shared": configure(model=location, **steady | more)}, tmp_path)
    one, two = (whole_model(tmp_path / name / "model").state_dict() for name in ("alone", "shared"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4, msg=name)
