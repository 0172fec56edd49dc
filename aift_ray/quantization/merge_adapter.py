"""An adapter made part of the weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from aift_ray.errors import ModelError
from aift_ray.models import load as loading
from aift_ray.models import provenance
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.decoder import causal_model
from aift_ray.models.families.refusals import is_llama_like, refusal
from aift_ray.models.full_model_folder import WholeFolder
from aift_ray.models.hub import load_config
from aift_ray.models.lora.attach import reload_adapters
from aift_ray.models.wrappers import is_wrapper
from aift_ray.quantization.output_folder import copy_companions
from aift_ray.quantization.quantizer import check_finite, copy_tokenizer


def load(
    location: str,
    adapter: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
) -> torch.nn.Module:
    """A model with an adapter on top of its weights, or without one, ready to evaluate."""
    model = loading.load_model(location, dtype, None, quantization, {"": device})
    with warnings.catch_warnings():
        # PEFT warns of tied weights, which are taken care of
        warnings.simplefilter("ignore", UserWarning)
        found = reload_adapters(model, str(adapter), trainable=False) if adapter else model
    found.eval()
    return found


def merge(
    location: str, adapter: Path, dtype: torch.dtype, device: torch.device, folder: Path
) -> torch.nn.Module:
    """Write the model with the adapter merged into its weights; the model.

    Tokenizer, chat template and generation settings are the adapter's where it has them: they are
    what it was trained with.

    Raises:
        ModelError: the merged model computes infinite or NaN logits.
    """
    adapted: Any = load(location, adapter, dtype, device)
    untied = _untie(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        # safe_merge refuses weights that are not finite
        model = adapted.merge_and_unload(safe_merge=True)
    if untied:
        _settle_ties(model)
    _write(location, model, folder)
    copy_tokenizer(location, folder)
    copy_companions(adapter, folder)
    provenance.record(folder)
    check_finite(model, str(folder))
    merged: torch.nn.Module = model.eval()
    return merged


def _write(location: str, model: PreTrainedModel, folder: Path) -> None:
    """Write a model, or the whole that it is the language model of."""
    if not is_wrapper(load_config(location)):
        model.save_pretrained(folder)
        return
    whole, state = WholeFolder(location), model.state_dict()
    apart = [name for name in _ends(model) if not whole.holds(name)]
    table, head = _pair(model)
    tied = head.weight is table.weight
    if apart and not tied:
        what = (
            "merged, its output layer would differ from its embeddings, and the files of the "
            f"whole model have no place for {apart[0]}"
        )
        layout = "serve it as an adapter, or train one without embed_tokens and lm_head"
        raise ModelError([refusal(whole.family, what, layout, is_llama_like, "adapter")])
    folder.mkdir(exist_ok=True)
    whole.write(folder, state.items())


def _ends(model: PreTrainedModel) -> list[str]:
    """Names of the weights of the embeddings and the output layer."""
    ends = _pair(model)
    return [f"{name}.weight" for name, one in model.named_modules() if any(one is e for e in ends)]


def _pair(model: PreTrainedModel) -> tuple[Any, Any]:
    """Embeddings and output layer."""
    return model.get_input_embeddings(), model.get_output_embeddings()


def _untie(model: PeftModel) -> bool:
    """Give the output layer a weight of its own where it shares that of adapted embeddings.

    In one weight, what is merged into either would act on both.
    """
    inner = causal_model(model)
    ends: list[Any] = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    adapted = any(isinstance(end, LoraLayer) for end in ends)
    table, head = (end.get_base_layer() if isinstance(end, LoraLayer) else end for end in ends)
    if not adapted or head is None or head.weight is not table.weight:
        return False
    head.weight = torch.nn.Parameter(table.weight.detach().clone(), requires_grad=False)
    return True


def _settle_ties(model: PreTrainedModel) -> None:
    """Have the two share a weight again, where it is the same; else be saved with two."""
    table, head = _pair(model)
    # adapters that were tied too, as PEFT's ensure_weight_tying does, differ by rounding
    same = torch.allclose(head.weight, table.weight, rtol=torch.finfo(head.weight.dtype).eps)
    if same:
        head.weight = table.weight
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = same
