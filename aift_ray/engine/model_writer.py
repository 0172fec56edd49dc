"""Writing a model folder that plain transformers and peft open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from aift_ray.engine.tokenizer_files import TokenizerFiles
from aift_ray.models import hub, provenance
from aift_ray.models.decoder import causal_model
from aift_ray.models.families.sequence_classifier import HEAD
from aift_ray.models.folder_check import has_tokenizer
from aift_ray.models.full_model_folder import WholeFolder
from aift_ray.models.lora.init_weights import as_plain_lora
from aift_ray.models.transformers_compat import conversions, ignored_on_save
from aift_ray.parallel.dtensor_utils import is_partitioned, is_shared_out


def can_stream(model: torch.nn.Module) -> bool:
    """Whether a model is sharded, and its weights have the names of their file."""
    if isinstance(model, PeftModel) or not is_shared_out(model):
        return False
    if any(is_partitioned(weight) for weight in model.parameters()):
        # by DeepSpeed, in pieces that have no place in the file
        return False
    return not conversions(model)


def named_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model, each once, by the name that it has in a file."""
    ignored = ignored_on_save(causal_model(model))
    found: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, weight in state.items():
        if name not in ignored:
            found.setdefault(id(weight), name)
    return {name: state[name] for name in found.values()}


def write_model(
    folder: str,
    model: torch.nn.Module,
    tokenizer: TokenizerFiles,
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
        base: the location of the model that is trained, or that an adapter is trained on.
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
    _write_generation(folder, inner, stop_ids)
    tokenizer.copy(Path(folder))
    # a model that stands by itself belongs to no other
    alone = final and not isinstance(model, PeftModel)
    provenance.record(Path(folder), None if alone else base)


def write_whole(
    folder: str,
    model: torch.nn.Module,
    tokenizer: TokenizerFiles,
    stop_ids: list[int],
    location: str,
    chat_template: str | None,
    weights: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Save a trained language model in the whole that it belongs to, with its towers.

    Args:
        location: of the whole.
        chat_template: of the run.
        weights: of the language model, by name.

    Raises:
        OSError: it could not be written.
        ModelError: the source does not hold the weights by now.
    """
    WholeFolder(location).write(Path(folder), weights)
    _write_generation(folder, causal_model(model), stop_ids)
    if not holds_prompts(Path(folder), chat_template):
        tokenizer.copy(Path(folder))
    provenance.record(Path(folder))


def holds_prompts(folder: Path, chat_template: str | None) -> bool:
    """Whether a folder holds a tokenizer, and this chat template."""
    if not has_tokenizer(folder):
        return False
    same: bool = hub.load_tokenizer(str(folder)).chat_template == chat_template
    return same


def _write_generation(folder: str, model: PreTrainedModel, stop_ids: list[int]) -> None:
    if hasattr(model, HEAD):
        # what scores answers makes none
        return
    model.generation_config.eos_token_id = list(stop_ids)
    model.generation_config.save_pretrained(folder)
