"""LoRA adapters on a model, and what of a model is trained."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper, load_peft_weights
from transformers import PreTrainedModel

from aift_ray.config import LoRAConfig
from aift_ray.errors import ConfigError, ModelError, Problem
from aift_ray.models import experts
from aift_ray.models.experts_4bit import adaptable
from aift_ray.models.initial_adapters import (
    ITERATIONS,
    keep_start,
    start_from_what_was_lost,
)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Last names of all linear layers of the decoder blocks, sorted."""
    head = model.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return sorted(names)


def add_adapters(model: PreTrainedModel, config: LoRAConfig, location: str) -> PeftModel:
    """Put fresh adapters on `model`; its own weights are frozen.

    Args:
        location: the folder that `model` was loaded from; LoftQ reads it once more.

    Raises:
        ConfigError: a target module that the model does not have.
    """
    with adaptable(model):
        check_targets(model, config)
        tied = _ties(model, config.modules_to_save or [])
        peft_config = _peft_config(config, adapted_layers(model, config), tied)
        if config.experts:
            peft_config.target_parameters = experts.target_parameters(model)
        adapted: PeftModel = get_peft_model(model, peft_config)
    if config.init_lora_weights == "pissa":
        keep_start(adapted)
    if config.init_lora_weights == "loftq":
        start_from_what_was_lost(adapted, location)
    return _trained_in_fp32(adapted)


def adapted_layers(model: PreTrainedModel, config: LoRAConfig) -> list[str]:
    """Last names of the linear layers that get adapters: routers get none by default."""
    if config.target_modules:
        return config.target_modules
    linear = [n for n in linear_layers(model) if n not in (config.modules_to_save or ())]
    routers = {name.rsplit(".", 1)[-1] for name in experts.routers(model)}
    away = routers.union(experts.mistaken(model, linear))
    return [name for name in linear if name not in away]


def check_targets(model: PreTrainedModel, config: LoRAConfig, bits: int | None = None) -> None:
    """Refuse names of layers that `model` does not have, or that can't be trained.

    Args:
        bits: in which the linear layers of the blocks are held, or are going to be.

    Raises:
        ConfigError: with every such name.
    """
    linear, names = linear_layers(model), [name for name, _ in model.named_modules()]
    whole = config.modules_to_save or []
    asked = {"lora.target_modules": config.target_modules or [], "lora.modules_to_save": whole}
    problems = [
        Problem(field, f"no layer is called '{one}'", f"the model has {', '.join(known)}")
        for field, known in zip(asked, (linear, _trainable_whole(model)), strict=True)
        for one in asked[field]
        if not any(name == one or name.endswith(f".{one}") for name in names)
    ]
    if bits:
        what = "'{}' is held in 4 or 8 bits, which can't be trained as a whole"
        held = [one for one in whole if one in linear]
        problems += [Problem("lora.modules_to_save", what.format(one)) for one in held]
    problems += experts.unfit(model, config, bits)
    if problems:
        raise ConfigError(problems)


def _trainable_whole(model: PreTrainedModel) -> list[str]:
    """Last names of all layers with weights of their own, sorted."""
    own = {name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    return sorted({name.rsplit(".", 1)[-1] for name in own})


def whole_parameters(model: PreTrainedModel, config: LoRAConfig) -> int:
    """Number of weights trained as a whole beside the adapters."""
    whole = tuple(config.modules_to_save or ())
    modules = (module for name, module in model.named_modules() if whole and name.endswith(whole))
    # a layer within a layer, or two that share a weight, count once
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


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


def _peft_config(config: LoRAConfig, targets: list[str], tied: bool) -> Any:
    pissa = config.init_lora_weights == "pissa"
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        lora_dropout=config.lora_dropout,
        bias=config.bias,
        task_type=config.task_type,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=f"pissa_niter_{ITERATIONS}" if pissa else True,
        modules_to_save=config.modules_to_save,
        ensure_weight_tying=tied,
    )


def continue_adapters(
    model: PreTrainedModel, config: LoRAConfig, location: str, folder: str
) -> PeftModel:
    """Put the adapters of a checkpoint on the base of `location`, to be trained further."""
    if config.init_lora_weights != "pissa":
        return reload_adapters(model, folder)
    # the base must lose again what the adapters have taken from it
    adapted = add_adapters(model, config, location)
    set_peft_model_state_dict(adapted, load_peft_weights(folder, "cpu"))
    return adapted


def reload_adapters(model: PreTrainedModel, folder: str, trainable: bool = True) -> PeftModel:
    """Put saved adapters on `model`, to be trained further or to answer."""
    with adaptable(model):
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    return _trained_in_fp32(adapted)


def _trained_in_fp32(model: PeftModel) -> PeftModel:
    # PEFT does so for adapters, not for biases that are trained with them
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def causal_model(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, adapters left in place."""
    if isinstance(model, PeftModel):
        inner: PreTrainedModel = model.get_base_model()
        return inner
    assert isinstance(model, PreTrainedModel)
    return model


def decoder_blocks(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The blocks of the decoder, in their order.

    Raises:
        ModelError: the model keeps them in another way.
    """
    decoder = causal_model(model).get_decoder()
    blocks = getattr(decoder, "layers", None)
    if not isinstance(blocks, torch.nn.ModuleList):
        what = "its blocks are not in a list 'layers', so that they can't be split"
        raise ModelError([Problem(f"model {type(decoder).__name__}", what, "use --strategy ddp")])
    return blocks
