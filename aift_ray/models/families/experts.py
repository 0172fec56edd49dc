"""The stacked weights of a mixture of experts, and which adapters a model can have beside them.

transformers holds all experts of a block as 3-D parameters (experts, out, in) or, in some models,
(experts, in, out). PEFT adapts them through `target_parameters`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from aift_ray.config import LoRAConfig
from aift_ray.errors import Problem
from aift_ray.models.decoder import causal_model, decoder_blocks
from aift_ray.models.families.refusals import has_experts, is_llama_like, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The stacked weights of the experts by name; those held in 4 bits while `adaptable`."""
    return {name: parameter for name, (_, parameter) in _stacks(model).items()}


def _stacks(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Parameter]]:
    """{name: (module, weight)} of the stacked weights of the experts."""
    inner = causal_model(model)
    if not _counts_experts(inner):
        return {}
    inside = {id(module) for block in decoder_blocks(inner) for module in block.modules()}
    return {
        f"{name}.{own}": (module, parameter)
        for name, module in inner.named_modules()
        # the kernels of a convolution are three-dimensional too
        if id(module) in inside and not isinstance(module, _CONVOLUTIONS)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and len(parameter) > 1 and parameter.is_floating_point()
    }


def _counts_experts(model: PreTrainedModel) -> bool:
    """Whether a model's configuration has a number of experts above one."""
    numbers = model.config.get_text_config().to_dict()
    return any("experts" in key and isinstance(n, int) and n > 1 for key, n in numbers.items())


def stacks(model: nn.Module) -> list[tuple[int, int, int]]:
    """(experts, in, out) of the stacked weights of all blocks."""
    found = []
    for module, weight in _stacks(model).values():
        number, one, two = weight.shape
        transposed = getattr(module, "is_transposed", False)
        found.append((number, one, two) if transposed else (number, two, one))
    return found


def target_parameters(model: nn.Module) -> list[str]:
    """The stacked weights as PEFT takes them: names within a block, sorted."""
    blocks = {id(block) for block in decoder_blocks(model)}
    prefixes = tuple(f"{n}." for n, m in causal_model(model).named_modules() if id(m) in blocks)
    names = expert_parameters(model)
    return sorted({n.removeprefix(p) for n in names for p in prefixes if n.startswith(p)})


def routers(model: nn.Module) -> set[str]:
    """Names of linear layers that choose the experts of a token; others use parameters."""
    numbers = {name.rsplit(".", 2)[0]: len(p) for name, p in expert_parameters(model).items()}
    return {
        name
        for name, module in causal_model(model).named_modules()
        if isinstance(module, nn.Linear)
        for parent, experts in numbers.items()
        if name.startswith(f"{parent}.") and module.out_features == experts
    }


def unfit(model: nn.Module, config: LoRAConfig, bits: int | None) -> list[Problem]:
    """What of the settings does not go with a model's experts.

    Args:
        bits: of the base model, where it is quantized.
    """
    stacked = expert_parameters(model)
    kind = causal_model(model).config.model_type
    if config.experts and not stacked:
        what = "the model has no experts"
        return [refusal(kind, what, "leave lora.experts off", has_experts, "lora.experts")]
    found = []
    names = {part for name in stacked for part in name.split(".")[-2:]}
    whole = [one for one in config.modules_to_save or () if one in names]
    if bits == 4 and whole:
        what = f"the weights of {', '.join(whole)} are held in 4 bits, and can't be trained whole"
        layout = "use --method lora, or --lora.experts true"
        found.append(refusal(kind, what, layout, is_llama_like, "lora.modules_to_save"))
    elif config.experts and whole:
        what = f"{', '.join(whole)} would be trained whole and adapted by lora.experts"
        found.append(Problem("lora.modules_to_save", what, "use one of them"))
    return found
