"""Adapters on the experts of a mixture, and experts in 4 bits, against PEFT and bitsandbytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from aift_ray.config import LoRAConfig
from aift_ray.errors import ConfigError
from aift_ray.models import load
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.bnb.experts_4bit import Packed4bitExperts
from aift_ray.models.families import experts
from aift_ray.models.lora.attach import add_adapters, reload_adapters
from aift_ray.models.lora.target_modules import adapted_layers, check_targets
from aift_ray.quantization.measure import memory_bytes
from tests.conftest import make_tiny_mixture

# experts as (out, in), the same under other names of the checkpoint, and transposed with biases
KINDS = ("qwen3_moe", "mixtral", "gpt_oss")
EXPERTS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
ADAPTED = LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.0, experts=True)
IDS = torch.randint(5, 500, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each kind."""
    root = tmp_path_factory.mktemp("mixtures")
    return {kind: make_tiny_mixture(root / kind, kind) for kind in KINDS}


def loaded(folder: Path, quantization: Quantization | None = None) -> Any:
    return load.load_model(str(folder), torch.float32, "eager", quantization)


def moved(model: Any, seed: int = 1) -> Any:
    """Give every adapter an effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) / 10
    return model


def gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in found.values())
    return loss.item(), found


def dequantized(model: Any, plain: Any) -> Any:
    """`plain` with the weights of `model` in 4 bits as bitsandbytes dequantizes them."""
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = weight
        if isinstance(module, Packed4bitExperts):
            owner = plain.get_submodule(name.rsplit(".", 1)[0])
            for own, state in module.states.items():
                owner.get_parameter(own).data = dequantize_4bit(module.data(own), state)
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_experts_are_those_of_peft(kind: str, folders: dict[str, Path]) -> None:
    torch.manual_seed(0)
    ours = add_adapters(loaded(folders[kind]), ADAPTED, "")
    torch.manual_seed(0)
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=attention,
        target_parameters=EXPERTS,
        task_type="CAUSAL_LM",
    )
    plain: Any = AutoModelForCausalLM.from_pretrained(
        folders[kind], attn_implementation="eager", dtype=torch.float32
    )
    theirs = get_peft_model(plain, config)
    (loss, found), (wanted, others) = gradients(moved(ours)), gradients(moved(theirs))
    assert loss == wanted
    assert found.keys() == others.keys()
    assert sum("experts" in name for name in found) == 2 * 2 * 2
    assert all(torch.equal(found[name], others[name]) for name in found)
    assert all(grad.abs().sum() > 0 for grad in found.values())


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_experts_in_4_bits_is_that_of_the_dequantized_model(
    kind: str, adapted: bool, recomputed: bool, folders: dict[str, Path]
) -> None:
    config = ADAPTED.model_copy(update={"experts": adapted})
    narrow, plain = loaded(folders[kind], Quantization(4)), loaded(folders[kind])
    published = {n: p.clone() for n, p in plain.named_parameters() if "experts" in n}
    wide = dequantized(narrow, plain)
    changed = [not torch.equal(p, wide.get_parameter(n)) for n, p in published.items()]
    assert sum(changed) == 2 * 2, "the experts of both blocks are rounded, their biases are not"
    models = []
    for base in (narrow, wide):
        if recomputed:
            base.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        models.append(moved(add_adapters(base, config, "")).train())
    (loss, found), (wanted, others) = map(gradients, models)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert found.keys() == others.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, others[name], rtol=1e-4, atol=1e-6, msg=name)
    assert not experts.expert_parameters(narrow), "nothing is left dequantized"


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_the_same_on_4_bits_and_in_plain_peft(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    narrow = moved(add_adapters(loaded(folders[kind], Quantization(4)), ADAPTED, "")).eval()
    narrow.save_pretrained(tmp_path / "adapter")
    again = reload_adapters(loaded(folders[kind], Quantization(4)), str(tmp_path / "adapter"))
    wide = dequantized(loaded(folders[kind], Quantization(4)), loaded(folders[kind]))
    plain = PeftModel.from_pretrained(wide, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        wanted = plain(IDS).logits
        torch.testing.assert_close(narrow(IDS).logits, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.eval()(IDS).logits, wanted, rtol=1e-4, atol=1e-5)
        with plain.disable_adapter():
            assert (plain(IDS).logits - wanted).abs().max() > 1e-2, "the adapter does something"
    merged: Any = plain.merge_and_unload(safe_merge=True)
    merged.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tmp_path / "merged")(IDS).logits, wanted, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_memory_held_in_4_bits_is_what_the_plan_counts(kind: str, folders: dict[str, Path]) -> None:
    held = memory_bytes(loaded(folders[kind], Quantization(4)))
    planned = load.weight_bytes(str(folders[kind]), torch.float32, 4)
    assert held == pytest.approx(planned, rel=0.05)
    whole = load.weight_bytes(str(folders[kind]), torch.float32)
    assert memory_bytes(loaded(folders[kind])) == pytest.approx(whole, rel=0.05)
    # the saving alone is held to the same share: most of so small a model is embeddings
    assert whole - held == pytest.approx(whole - planned, rel=0.05)
    assert planned < whole


def test_experts_are_quantized_one_by_one_while_they_are_read(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(model: Any, *_: Any) -> None:
        seen.append(sorted(experts.expert_parameters(model)))

    monkeypatch.setattr(load, "pack", watch)
    loaded(folders["qwen3_moe"], Quantization(4))
    assert seen == [[]], "nothing wide is left when the last file has been read"


def test_8_bits_leave_the_experts_as_they_are(folders: dict[str, Path]) -> None:
    model = loaded(folders["qwen3_moe"], Quantization(8))
    assert len(experts.expert_parameters(model)) == 2 * 2


def test_routers_that_are_linear_layers_get_no_adapters() -> None:
    sizes = {"num_experts": 4, "num_hidden_layers": 2, "vocab_size": 512, "num_dense_layers": 1}
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("afmoe", **sizes))
    router = "model.layers.1.mlp.router.gate"
    assert experts.routers(model) == {router}
    assert isinstance(model.get_submodule(router), torch.nn.Linear)
    assert not any("router" in name for name in adapted_layers(model, LoRAConfig()))


@pytest.mark.parametrize("kind", ["recurrent_gemma", "llama", "mamba"])
def test_other_models_have_no_experts(kind: str) -> None:
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 512}
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    assert experts.expert_parameters(model) == {}


@pytest.mark.parametrize(
    ("kind", "values", "bits", "what"),
    [
        ("qwen3_moe", {"target_modules": ["q_proj", "gate_proj"]}, None, "PEFT takes gate_proj"),
        ("mixtral", {"target_modules": ["q_proj", "w2"]}, None, "PEFT takes w2"),
        ("qwen3_moe", {"modules_to_save": ["experts"]}, 4, "held in 4 bits"),
        ("qwen3_moe", {"modules_to_save": ["experts"], "experts": True}, None, "trained whole"),
    ],
)
def test_what_can_not_be_had_with_experts_is_refused(
    kind: str, values: dict[str, Any], bits: int | None, what: str, folders: dict[str, Path]
) -> None:
    model = load.skeleton(str(folders[kind]))
    with pytest.raises(ConfigError, match=what):
        check_targets(model, LoRAConfig(lora_dropout=0.0, **values), bits)


def test_a_dense_model_has_no_experts_to_adapt(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="the model has no experts"):
        check_targets(load.skeleton(str(tiny_model)), ADAPTED)
