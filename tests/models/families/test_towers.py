"""Of a model with towers beside its language model, that alone is loaded and trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMultimodalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from aift_ray.config import LoRAConfig
from aift_ray.data.collate import collate
from aift_ray.engine.family_check import measure
from aift_ray.engine.loss import LossModule
from aift_ray.errors import AiftError
from aift_ray.models.bnb.bnb_layers import Quantization, is_held_in
from aift_ray.models.catalog import CATALOG
from aift_ray.models.families.family_support import Support, known
from aift_ray.models.families.towers import absent, towers
from aift_ray.models.hub import load_config
from aift_ray.models.load import load_model
from aift_ray.models.lora.attach import add_adapters
from aift_ray.models.model_stats import measured
from tests.helpers.tiny_families import save, with_towers

WRAPPERS = ("gemma3", "gemma4", "gemma4_unified", "got_ocr2", "moss_transcribe_diarize", "fuyu")
# of these AutoModelForCausalLM knows nothing
WRAPPERS += ("mistral3", "qwen3_vl", "internvl", "llava")
# of these AutoModelForCausalLM opens the language model alone
TAKEN_OUT = ("qwen3_5", "qwen3_5_moe", "llama4", "mllama")
IDS = [torch.arange(5, 25), torch.arange(40, 52), torch.arange(60, 63)]


class Rows:
    """Token rows, each supervised from its second token on."""

    def row(self, index: int) -> tuple[Any, Any]:
        ids = IDS[index].numpy()
        return ids, np.array([0] + [1] * (len(ids) - 1))


@pytest.fixture(scope="module", params=WRAPPERS)
def wrapper(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny random model with towers."""
    folder = tmp_path_factory.mktemp(request.param)
    return str(save(with_towers(request.param), folder))


def of_towers(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for name in towers(model) for p in model.get_submodule(name).parameters()]


def size(weights: Any) -> int:
    return sum(p.numel() for p in weights)


def test_the_language_model_alone_is_loaded_and_planned(
    wrapper: str, configure: Callable[..., Any]
) -> None:
    whole = AutoModelForMultimodalLM.from_pretrained(wrapper)
    model = load_model(wrapper, torch.float32, None)
    assert list(absent(model)) == towers(whole)
    assert size(model.parameters()) == size(whole.parameters()) - size(of_towers(whole))
    mine = dict(model.named_parameters())
    assert mine.keys() < dict(whole.named_parameters()).keys()
    planned = measured(wrapper, configure(model=wrapper))
    assert planned.shape.parameters == size(mine.values())
    [note] = planned.notes
    assert "the final folder holds the whole" in note


def test_adapters_fit_the_whole_model_by_plain_peft(
    wrapper: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    whole = AutoModelForMultimodalLM.from_pretrained(wrapper)
    planned = measured(wrapper, configure(model=wrapper, method="lora", lora={"r": 4}))
    settings = LoRAConfig(r=4, bias="all", modules_to_save=["embed_tokens"], lora_dropout=0.0)
    adapted = add_adapters(load_model(wrapper, torch.float32, None), settings, wrapper)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    numbers = size(p for n, p in adapted.named_parameters() if n in trained and ".lora_" in n)
    assert numbers == planned.shape.adapter_parameters(4)
    adapted.save_pretrained(str(tmp_path))
    opened = PeftModel.from_pretrained(whole, str(tmp_path), is_trainable=True)
    theirs = {n for n, p in opened.named_parameters() if p.requires_grad and ".lora_" in n}
    assert theirs == {name for name in trained if ".lora_" in name}
    with torch.no_grad():
        wanted = adapted.eval()(input_ids=IDS[0][None]).logits
        found = opened.eval()(input_ids=IDS[0][None]).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("wrapper", [*WRAPPERS, *TAKEN_OUT], indirect=True)
def test_loss_and_gradients_are_those_of_each_text_alone(wrapper: str, padded: bool) -> None:
    plain = AutoModelForMultimodalLM.from_pretrained(wrapper, attn_implementation="eager").float()
    wanted = torch.zeros(())
    for ids in IDS:
        logits = plain(input_ids=ids[None]).logits[0, :-1].float()
        wanted = wanted + cross_entropy(logits, ids[1:], reduction="sum")
    wanted.backward()
    config = load_config(wrapper)
    support = known(config) or measure(config, "full")
    assert isinstance(support, Support)
    if not padded and not support.packed:
        pytest.skip("its rows are always padded")
    module = LossModule(load_model(wrapper, torch.float32, support.attention)).train()
    found = module(collate(Rows(), [0, 1, 2], padded=padded))
    found.backward()
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=0)
    # every trained weight has a part in it: DDP waits for none in vain
    trained = {n: p.grad for n, p in module.model.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in trained.items() if gradient is None]
    others = {in_any_place(n): p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert {in_any_place(name) for name in trained} == others.keys()
    for name, gradient in trained.items():
        other = others[in_any_place(name)]
        assert (gradient - other).norm() <= 1e-3 * other.norm() + 1e-6, name


def in_any_place(name: str) -> str:
    """A weight of a language model without the name that this has in the whole."""
    return re.sub(r"^(?:model\.|language_model\.)+", "", name)


@pytest.mark.parametrize("bits", [4, 8])
def test_towers_stay_as_they_are_where_the_language_model_is_quantized(
    wrapper: str, bits: Any
) -> None:
    model = load_model(wrapper, torch.float32, None, Quantization(bits), whole=True)
    beside = tuple(towers(model))
    held = [name for name, layer in model.named_modules() if is_held_in(layer, bits)]
    assert held
    assert not [name for name in held if name.startswith(beside)]
    plain = AutoModelForMultimodalLM.from_pretrained(wrapper)
    for mine, theirs in zip(of_towers(model), of_towers(plain), strict=True):
        assert torch.equal(mine, theirs)
    alone = load_model(wrapper, torch.float32, None, Quantization(bits))
    assert [name for name, layer in alone.named_modules() if is_held_in(layer, bits)] == held


@pytest.mark.parametrize("family", TAKEN_OUT)
def test_a_language_model_taken_out_of_its_wrapper_is_whole(
    family: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    save(with_towers(family), tmp_path)
    whole = AutoModelForMultimodalLM.from_pretrained(tmp_path).eval()
    model = load_model(str(tmp_path), torch.float32, None).eval()
    assert not towers(model)
    with torch.no_grad():
        wanted, found = whole(input_ids=IDS[0][None]).logits, model(input_ids=IDS[0][None]).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    [note] = measured(str(tmp_path), configure(model=str(tmp_path))).notes
    assert f"of a {family} the language model alone is" in note
    adapted = measured(str(tmp_path), configure(model=str(tmp_path), method="lora")).notes
    assert any("plain PEFT loads it on AutoModelForCausalLM" in note for note in adapted)


@pytest.mark.parametrize(("family", "kind"), [("t5gemma2", "gemma2"), ("seamless_m4t", "stablelm")])
def test_a_family_without_a_causal_language_model_is_refused_with_a_near_one(
    family: str, kind: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(AiftError, match=f"model family {family}: ") as refused:
        measured(str(tmp_path), configure(model=str(tmp_path)))
    other = str(refused.value).rsplit(" ", 1)[-1]
    assert CATALOG[other].architecture.model_type == kind


@pytest.mark.parametrize("family", ["git", "phi4_multimodal", "blip"])
def test_towers_within_the_language_model_are_refused(
    family: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(AiftError, match=f"model family {family}: .*is inside"):
        measured(str(tmp_path), configure(model=str(tmp_path)))


def test_a_wrapper_of_another_language_model_than_was_measured_is_measured_itself() -> None:
    usual = CONFIG_MAPPING["llava"]()
    assert isinstance(known(usual), Support)
    other = CONFIG_MAPPING["llava"](text_config={"model_type": "bloom"})
    assert known(other) is None
