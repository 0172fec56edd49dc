"""The stacked weights of a mixture of experts, and which adapters a model can have beside them.

transformers holds all experts of a block as 3-D parameters (experts, out, in) or, in some models,
(experts, in, out). PEFT adapts them through `target_parameters`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn

from aift_ray.config import LoRAConfig
from aift_ray.errors import Problem


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The stacked weights of the experts by name; those held in 4 bits while `adaptable`."""
    if not _counts_experts(model):
        return {}
    return {
        f"{name}.{own}": parameter
        for name, module in model.named_modules()
        # the kernels of a convolution are three-dimensional too
        if ".layers." in f".{name}." and not isinstance(module, nn.modules.conv._ConvNd)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and len(parameter) > 1 and parameter.is_floating_point()
    }


def _counts_experts(model: Any) -> bool:
    """Whether a model's configuration has a number of experts above one."""
    numbers = model.config.get_text_config().to_dict()
    return any("experts" in key and isinstance(n, int) and n > 1 for key, n in numbers.items())


def target_parameters(model: nn.Module) -> list[str]:
    """The same as PEFT takes them: names within a block, sorted."""
    return sorted(
        {name.split(".layers.", 1)[1].split(".", 1)[1] for name in expert_parameters(model)}
    )


def routers(model: nn.Module) -> set[str]:
    """Names of linear layers that choose the experts of a token; others use parameters."""
    numbers = {name.rsplit(".", 2)[0]: len(p) for name, p in expert_parameters(model).items()}
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for parent, experts in numbers.items()
        if name.startswith(f"{parent}.") and module.out_features == experts
    }


def mistaken(model: nn.Module, names: Collection[str]) -> list[str]:
    """Those names of linear layers that PEFT takes for its older names of a model's experts.

    It would adapt the experts in their place, and does so again when an adapter is loaded.
    """
    found = []
    for name in sorted(names):
        probe: Any = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(probe, model, None)
        except ValueError:
            # one of two that make a weight of the experts together
            probe.target_modules = set()
        if name not in probe.target_modules:
            found.append(name)
    return found


def unfit(model: nn.Module, config: LoRAConfig, bits: int | None) -> list[Problem]:
    """What of the settings does not go with a model's experts.

    Args:
        bits: of the base model, where it is quantized.
    """
    stacked = expert_parameters(model)
    if config.experts and not stacked:
        return [Problem("lora.experts", "the model has no experts", "leave it off")]
    found = []
    taken = mistaken(model, config.target_modules or ())
    if taken:
        what = f"PEFT takes {', '.join(taken)} for the experts of a {_kind(model)}"
        found.append(Problem("lora.target_modules", what, "leave them out; see lora.experts"))
    names = {part for name in stacked for part in name.split(".")[-2:]}
    whole = [one for one in config.modules_to_save or () if one in names]
    if bits == 4 and whole:
        what = f"the weights of {', '.join(whole)} are held in 4 bits, and can't be trained whole"
        found.append(Problem("lora.modules_to_save", what, "use --method lora, or lora.experts"))
    elif config.experts and whole:
        what = f"{', '.join(whole)} would be trained whole and adapted by lora.experts"
        found.append(Problem("lora.modules_to_save", what, "use one of them"))
    return found


def _kind(model: Any) -> str:
    return str(model.config.model_type)
