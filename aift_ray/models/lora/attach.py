"""LoRA adapters on a model, and what of a model is trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from aift_ray.config import LoRAConfig
from aift_ray.models.added_tokens import AddedTokens, grow
from aift_ray.models.bnb.experts_4bit import adaptable
from aift_ray.models.families.experts import target_parameters
from aift_ray.models.families.sequence_classifier import HEAD
from aift_ray.models.linear_layers import is_transposed
from aift_ray.models.lora.embedding_rows import ends, needed_rows
from aift_ray.models.lora.init_weights import ITERATIONS, keep_start, start_from_what_was_lost
from aift_ray.models.lora.peft_compat import cast_inputs_by, disable_adapters
from aift_ray.models.lora.target_modules import (
    adapted_layers,
    check_targets,
    freeze,
    named_for_peft,
)


def add_adapters(
    model: PreTrainedModel, config: LoRAConfig, location: str, added: AddedTokens | None = None
) -> PeftModel:
    """Put fresh adapters on `model`; its own weights are frozen.

    Args:
        location: the folder that `model` was loaded from; LoftQ reads it once more.
        added: tokens of the model that are new, and trained too.

    Raises:
        ConfigError: a target module that the model does not have.
    """
    with adaptable(model), _without_warnings():
        check_targets(model, config)
        adapted: PeftModel = get_peft_model(model, _peft_config(config, model, added))
    if config.init_lora_weights == "pissa":
        keep_start(adapted)
    if config.init_lora_weights == "loftq":
        start_from_what_was_lost(adapted, location)
    return trained_in_fp32(adapted)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without PEFT's warning of adapters on tied embeddings: they are merged exactly here.

    And without that of transformers of a name that PEFT uses.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _ties(model: PreTrainedModel, whole: list[str]) -> bool:
    """Whether embeddings and output layer are one, and are trained as a whole."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return False
    ends = [n for n, m in model.named_modules() if m is head or m is table]
    return any(name.endswith(one) for name in ends for one in whole)


def ready_to_answer(model: torch.nn.Module) -> None:
    """Put layers that were trained as a whole into the base's dtype, as reloading does.

    Without autocast, layers in fp32 and others in 16 bits don't go together.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            frozen = list(module.original_module.parameters())
            for copy in module.modules_to_save.values():
                for own, other in zip(copy.parameters(), frozen, strict=True):
                    own.data = own.data.to(other.dtype)


def _peft_config(config: LoRAConfig, model: PreTrainedModel, added: AddedTokens | None) -> Any:
    pissa = config.init_lora_weights == "pissa"
    targets, whole = named_for_peft(model, config)
    tables = ends(model) if added else []
    if added and not added.alone:
        whole = list(dict.fromkeys([*whole, *tables]))
    # PEFT knows the output layer of such a model, and trains it as a whole
    scores = hasattr(model, HEAD)
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        # PEFT does not look at it for a layer held in fewer bits, whose matrix was turned round
        fan_in_fan_out=any(map(is_transposed, adapted_layers(model, config).values())),
        lora_dropout=config.lora_dropout,
        bias=config.bias,
        task_type="SEQ_CLS" if scores else config.task_type,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=f"pissa_niter_{ITERATIONS}" if pissa else True,
        modules_to_save=whole or None,
        ensure_weight_tying=_ties(model, whole),
        trainable_token_indices=dict.fromkeys(tables, added.ids) if added and added.alone else None,
        target_parameters=target_parameters(model) if config.experts else None,
    )


def continue_adapters(
    model: PreTrainedModel,
    config: LoRAConfig,
    location: str,
    folder: str,
    added: AddedTokens | None = None,
) -> PeftModel:
    """Put the adapters of a checkpoint on the base of `location`, to be trained further."""
    if config.init_lora_weights != "pissa":
        return reload_adapters(model, folder)
    # the base must lose again what the adapters have taken from it
    adapted = add_adapters(model, config, location, added)
    set_peft_model_state_dict(adapted, load_peft_weights(folder, "cpu"))
    return adapted


def reload_adapters(model: PreTrainedModel, folder: str, trainable: bool = True) -> PeftModel:
    """Put saved adapters on `model`, to be trained further or to answer."""
    grow(model, needed_rows(Path(folder), model))
    # adapters are initialized at random before they are read
    with adaptable(model), _without_warnings(), torch.random.fork_rng(devices=()):
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    return trained_in_fp32(adapted)


def merged(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """`model` with saved adapters made part of its weights."""
    with _without_warnings():
        found: Any = reload_adapters(model, folder, trainable=False).merge_and_unload(
            safe_merge=True
        )
    whole: PreTrainedModel = found
    return whole


def trained_in_fp32(model: PeftModel) -> PeftModel:
    """Hold what is trained in fp32, and freeze what belongs to no language model."""
    # with `bias: all` PEFT trains those of other towers too
    freeze(model)
    # PEFT does so for adapters, not for biases that are trained with them
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    leave_casts_to_autocast(model)
    return model


def leave_casts_to_autocast(model: torch.nn.Module) -> None:
    """Keep PEFT from casting the inputs of adapters to fp32 where autocast casts them back.

    It changes no bit, in the backward pass neither. Dropout and DoRA compute with the cast input
    themselves, so that layers with one of them are left as they are.
    """
    for module in model.modules():
        if not isinstance(module, Linear) or module.lora_variant:
            continue
        if all(isinstance(dropout, torch.nn.Identity) for dropout in module.lora_dropout.values()):
            cast_inputs_by(module, _cast_unless_autocast_does)


def _cast_unless_autocast_does(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x if torch.is_autocast_enabled(x.device.type) else x.to(dtype)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The base alone, inside this context; every weight keeps its `requires_grad`.

    PEFT's own context switches it off and on, which FSDP does not see where it holds gathered
    weights beside their shares: the adapters would then get no gradient.
    """
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    for layer in layers:
        disable_adapters(layer, True)
    try:
        yield
    finally:
        for layer in layers:
            disable_adapters(layer, False)
