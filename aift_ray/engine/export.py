"""Writing a model folder that plain transformers and peft open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from aift_ray.models import provenance
from aift_ray.models.decoder import causal_model
from aift_ray.models.initial_adapters import as_plain_lora


def write_model(
    folder: str,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: list[int],
    dtype: torch.dtype | None = None,
    state: dict[str, torch.Tensor] | None = None,
    streamed: Callable[[Path], None] | None = None,
    final: bool = False,
    base: str | None = None,
) -> None:
    """Save model or adapter with tokenizer, chat template and the tokens that end a turn.

    Args:
        dtype: of the stored weights of a full model; None: as they are.
        state: the weights, where they are not those that the model holds now.
        streamed: writes the weights of a full model into a file, where none holds them all.
        final: an adapter is to fit the base as it was published, not to be trained further.
        base: the location of the model that an adapter is trained on.
    """
    inner: Any = causal_model(model)
    if isinstance(model, PeftModel):
        # "auto" would ask the Hub whether the base model's vocabulary was resized
        kept = model.peft_config["default"]
        if final:
            model.peft_config["default"], state = as_plain_lora(model, state)
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
        model.peft_config["default"] = kept
        # PEFT's model card is a form with nothing filled in
        (Path(folder) / "README.md").unlink(missing_ok=True)
    elif streamed:
        # sharding gives the class another name
        inner.config.architectures = [type(inner).__name__.removeprefix("FSDP")]
        inner.config.dtype = dtype or inner.dtype
        inner.config.save_pretrained(folder)
        streamed(Path(folder) / "model.safetensors")
    else:
        if dtype:
            own = (state or model.state_dict()).items()
            # a tower may count something beside its weights
            state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in own}
        inner.config.dtype = dtype or inner.dtype
        inner.save_pretrained(folder, state_dict=state)
    inner.generation_config.eos_token_id = list(stop_ids)
    inner.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    provenance.record(Path(folder), base if isinstance(model, PeftModel) else None)
