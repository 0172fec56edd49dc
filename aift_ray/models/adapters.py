"""LoRA adapters on a model, and what of a model is trained."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from aift_ray.config import LoRAConfig
from aift_ray.errors import ConfigError, ModelError, Problem


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Last names of all linear layers of the decoder blocks, sorted."""
    head = model.get_output_embeddings()
    names = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return sorted(names)


def add_adapters(model: PreTrainedModel, config: LoRAConfig) -> PeftModel:
    """Put fresh adapters on `model`; its own weights are frozen.

    Raises:
        ConfigError: a target module that the model does not have.
    """
    check_targets(model, config)
    targets = config.target_modules or linear_layers(model)
    return _trained_in_fp32(get_peft_model(model, _peft_config(config, targets)))


def check_targets(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Refuse target modules that `model` does not have, with a ConfigError."""
    names = [name for name, _ in model.named_modules()]
    missing = [
        target
        for target in config.target_modules or []
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]
    if missing:
        has = f"the model has {', '.join(linear_layers(model))}"
        raise ConfigError(
            [Problem("lora.target_modules", f"no layer is called '{m}'", has) for m in missing]
        )


def _peft_config(config: LoRAConfig, targets: list[str]) -> Any:
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        lora_dropout=config.lora_dropout,
        bias=config.bias,
        task_type=config.task_type,
    )


def reload_adapters(model: PreTrainedModel, folder: str, trainable: bool = True) -> PeftModel:
    """Put saved adapters on `model`, to be trained further or to answer."""
    return _trained_in_fp32(PeftModel.from_pretrained(model, folder, is_trainable=trainable))


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
