"""A model in parts, each loaded and run by itself, computes what the whole one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aift_ray.config import LoRAConfig
from aift_ray.errors import ModelError
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.load import load_model, skeleton
from aift_ray.models.lora.attach import add_adapters
from aift_ray.models.split import StandIn, outlined, pieces_of

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "sliding_window": 4,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
FAMILIES += ("stablelm", "gpt_neox")


def saved(family: str, folder: Path, **changes: Any) -> str:
    """The folder of a tiny random model of an architecture."""
    config = AutoConfig.for_model(family, **SIZES | changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return str(folder)


def loaded(location: str, only: list[str] | None = None) -> Any:
    return load_model(location, torch.float32, "eager", only=only).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_one_after_the_other_are_the_whole(family: str, tmp_path: Path) -> None:
    location = saved(family, tmp_path)
    pieces = pieces_of(skeleton(location))
    whole = loaded(location)
    first = loaded(location, [pieces.embeddings, *pieces.blocks[:2]])
    second = loaded(location, [*pieces.blocks[2:], pieces.norm, pieces.head])
    ids = torch.arange(1, 13).unsqueeze(0)
    with torch.no_grad():
        states = first.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        second.get_decoder().layers[0].received = states
        # what comes before the first block is not looked at
        shape = torch.zeros_like(states)
        last = second.get_decoder()(inputs_embeds=shape, use_cache=False).last_hidden_state
        wanted = whole.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        head = whole.get_output_embeddings()(wanted)
        torch.testing.assert_close(last, wanted, rtol=0, atol=0)
        torch.testing.assert_close(second.get_output_embeddings()(last), head, rtol=0, atol=0)


def test_blocks_that_use_the_keys_of_earlier_ones_are_not_split(tmp_path: Path) -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4}
    kinds |= {"hidden_size_per_layer_input": 0}
    pieces_of(skeleton(saved("gemma4_text", tmp_path / "apart", **kinds)))
    shared = saved("gemma4_text", tmp_path / "shared", **kinds, num_kv_shared_layers=2)
    with pytest.raises(ModelError, match="use the keys and values of earlier") as refused:
        pieces_of(skeleton(shared))
    [problem] = refused.value.problems
    assert problem.where == "model family gemma4_text"
    assert problem.remedy.startswith("use --strategy ddp or fsdp")


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_a_part_holds_its_own_weights_alone_and_gets_the_adapters_of_the_whole(
    bits: Any, tmp_path: Path
) -> None:
    location = saved("llama", tmp_path, tie_word_embeddings=True)
    pieces = pieces_of(skeleton(location))
    assert pieces.tied
    held = Quantization(bits) if bits else None

    def adapted(only: list[str] | None) -> dict[str, torch.Tensor]:
        base = load_model(location, torch.float32, None, held, only=only)
        torch.manual_seed(1)
        with outlined(base, skeleton(location)):
            model = add_adapters(base, LoRAConfig(), location)
        state: dict[str, torch.Tensor] = model.state_dict()
        return state

    whole = adapted(None)
    parts = [
        adapted([pieces.embeddings, pieces.blocks[0]]),
        adapted([*pieces.blocks[1:], pieces.norm, pieces.head]),
    ]
    assert set(whole) == set(parts[0]) | set(parts[1])
    assert {name for name in parts[0] if name in parts[1]} == {
        name for name in whole if "embed_tokens" in name
    }, "an output layer needs the weight that it shares"
    for name, value in (parts[0] | parts[1]).items():
        assert torch.equal(value, whole[name]), name


def test_a_stand_in_counts_the_tokens_of_a_cache(tmp_path: Path) -> None:
    location = saved("gemma3_text", tmp_path)
    pieces = pieces_of(skeleton(location))
    whole = loaded(location)
    last = loaded(location, [pieces.blocks[2], pieces.norm])
    assert isinstance(last.get_input_embeddings(), StandIn)
    ids = torch.arange(1, 13).unsqueeze(0)
    states = torch.randn(1, 12, 32)
    kept = whole.get_decoder()(input_ids=ids[:, :11], use_cache=True).past_key_values
    own = last.get_decoder()(inputs_embeds=states[:, :11], use_cache=True).past_key_values
    assert [own.get_seq_length(n) for n in range(3)] == [kept.get_seq_length(n) for n in range(3)]
    with torch.no_grad():
        one = last.get_decoder()(inputs_embeds=states[:, 11:], past_key_values=own)
        all_ = last.get_decoder()(inputs_embeds=states, use_cache=False)
    torch.testing.assert_close(one.last_hidden_state[:, 0], all_.last_hidden_state[:, 11])


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_a_model_that_cannot_be_split_is_refused(family: str) -> None:
    config = AutoConfig.for_model(family)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="can't be split"):
        pieces_of(model)
