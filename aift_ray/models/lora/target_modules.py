"""Which layers of a model adapters go on and which are trained as a whole, by PEFT's names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import takewhile
from typing import Any

import torch
from transformers import PreTrainedModel

from aift_ray.config import LoRAConfig
from aift_ray.errors import ConfigError, ModelError, Problem
from aift_ray.models.decoder import causal_model, decoder_blocks
from aift_ray.models.families import experts
from aift_ray.models.families.refusals import is_llama_like, refusal
from aift_ray.models.families.towers import absent, names_in_whole, towers
from aift_ray.models.linear_layers import can_be_held_in_fewer_bits, features

# layers whose weights are used without a call, past an adapter and past the scales of fewer bits,
# by an attribute of the module that holds them: state space mixers, AltUp of Gemma 3n, a router
_BYPASSED = {
    "ssm_state_size": ("dt_proj", "out_proj", "x_proj"),
    "correction_coefs": ("correction_coefs", "prediction_coefs"),
    "e_score_correction_bias": ("classifier",),
}
# what has a part in no loss of a text alone: the choice of positions, attention to what an encoder
# gives, and the balance of experts, which transformers does not train
_WITHOUT_GRADIENT = re.compile(
    r"\.(indexer|encoder_attn\w*|cross_attn\w*)(\.|$)|\.(expert_bias|e_score_correction_bias)$"
)


def linear_maps(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """{name: layer} of the linear maps of the decoder blocks that adapters can go on, in order."""
    inner = causal_model(model)
    inside = {id(one) for block in decoder_blocks(inner) for one in block.modules()}
    usable = inside - _bypassed(inner)
    named = {n: m for n, m in inner.named_modules() if not _WITHOUT_GRADIENT.search(n)}
    return {name: one for name, one in named.items() if id(one) in usable and features(one)}


def _bypassed(model: PreTrainedModel) -> set[int]:
    """Identities of the layers whose weights are used without a call."""
    return {
        id(getattr(owner, name, None))
        for owner in model.modules()
        for mark, names in _BYPASSED.items()
        if hasattr(owner, mark)
        for name in names
    }


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Last names of all linear maps of the decoder blocks, sorted."""
    return sorted({_last(name) for name in linear_maps(model)})


def untrained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The weights that no text trains, by name: those of towers, and what has no gradient."""
    inner = causal_model(model)
    beside = tuple(f"{name}." for name in towers(inner))
    named = inner.named_parameters()
    return {n: p for n, p in named if n.startswith(beside) or _WITHOUT_GRADIENT.search(n)}


def freeze(model: torch.nn.Module) -> None:
    """Have no weight wait for a gradient that never comes."""
    for weight in untrained(model).values():
        weight.requires_grad_(False)


def adapted_layers(model: PreTrainedModel, config: LoRAConfig) -> dict[str, torch.nn.Module]:
    """{name: layer} of the layers that get adapters."""
    whole = tuple(config.modules_to_save or ())
    if config.target_modules is None:
        maps = linear_maps(model)
        away = _taken_for_experts(model, {_last(name) for name in maps})
        # frozen: it was trained to send as many tokens to each expert
        routers = experts.routers(model)
        found = {n: m for n, m in maps.items() if _last(n) not in away and n not in routers}
    else:
        named = _language_modules(model)
        found = {n: m for n, m in named.items() if _is_called(n, config.target_modules)}
    # PEFT puts none on a layer that is trained as a whole, or on one inside it
    left = [re.compile(rf"(^|.*\.){name}($|\..*)") for name in whole]
    return {n: m for n, m in found.items() if not any(one.match(n) for one in left)}


def _taken_for_experts(model: PreTrainedModel, names: Collection[str]) -> set[str]:
    """Those last names that PEFT takes for its older names of a model's experts."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    found = set()
    for name in names:
        probe: Any = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(probe, model, None)
        except ValueError:
            # one of two that made a weight of the experts together
            probe.target_modules = set()
        if name not in probe.target_modules:
            found.add(name)
    return found


def named_for_peft(model: PreTrainedModel, config: LoRAConfig) -> tuple[list[str] | str, list[str]]:
    """PEFT's `target_modules` and `modules_to_save` for the layers that a configuration means.

    Last names where they mean nothing else, which keeps the file short and is read by all. Where
    layers of a vision tower bear them too, an expression for full names: unlike
    `exclude_modules`, it is older than any PEFT in use, and vLLM goes by the weights' names.
    """
    chosen = list(adapted_layers(model, config))
    names = names_in_whole(model)
    wanted = config.target_modules or sorted({_last(name) for name in chosen})
    targets: list[str] | str = wanted
    if {name for name in names if _is_called(name, wanted)} - _held_whole(names, config) != set(
        chosen
    ):
        targets = _expression(chosen, names)
    whole = config.modules_to_save or []
    named = _language_modules(model)
    if len(named) < len(names) and whole:
        whole = [name for name in named if name.endswith(tuple(whole))]
    return targets, whole


def check_targets(model: PreTrainedModel, config: LoRAConfig, bits: int | None = None) -> None:
    """Refuse names of layers that `model` does not have, or that can't be trained.

    Args:
        bits: in which the linear layers of the blocks are held, or are going to be.

    Raises:
        ConfigError: with every such name.
        ModelError: there is nothing to put adapters on.
    """
    linear, named = linear_layers(model), _language_modules(model)
    whole = config.modules_to_save or []
    asked = {"lora.target_modules": config.target_modules or [], "lora.modules_to_save": whole}
    problems = [
        Problem(field, f"no layer is called '{one}'", f"the model has {', '.join(known)}")
        for field, known in zip(asked, (linear, _trainable_whole(named)), strict=True)
        for one in asked[field]
        if not any(_is_called(name, [one]) for name in named)
    ]
    problems += _not_adaptable(model, config) + experts.unfit(model, config, bits)
    if bits:
        what = "'{}' is held in 4 or 8 bits, which can't be trained as a whole"
        held = [one for one in whole if one in linear]
        problems += [Problem("lora.modules_to_save", what.format(one)) for one in held]
    if problems:
        raise ConfigError(problems)
    if not adapted_layers(model, config):
        what = "it has no linear layer in its blocks that LoRA could adapt"
        kind = causal_model(model).config.model_type
        raise ModelError([refusal(kind, what, "train it with --method full")])


def _not_adaptable(model: PreTrainedModel, config: LoRAConfig) -> list[Problem]:
    """Of the layers named for adapters those that the family computes past them."""
    kind, field = causal_model(model).config.model_type, "lora.target_modules"
    layout, found = f"the model has {', '.join(linear_layers(model))}", []
    bypassed = _bypassed(model)
    for name, module in adapted_layers(model, config).items():
        what = ""
        if id(module) in bypassed:
            what = f"the weights of {name} are used without a call, past any adapter"
        elif not features(module) and not isinstance(module, torch.nn.Embedding):
            what = f"{name} is a {type(module).__name__}, which LoRA can't adapt"
        if what:
            found.append(refusal(kind, what, layout, is_llama_like, field))
    taken = _taken_for_experts(model, config.target_modules or ())
    if taken and experts.expert_parameters(model):
        what = f"PEFT takes {', '.join(sorted(taken))} for the experts"
        layout = "leave them out; --lora.experts true adapts the experts"
        found.append(refusal(kind, what, layout, is_llama_like, field))
    return found


def check_quantizable(model: PreTrainedModel, layout: str = "train it with --method lora") -> None:
    """Refuse a model whose linear layers transformers would not quantize, with a ModelError.

    Args:
        layout: what works instead.
    """
    left = [m for m in linear_maps(model).values() if not can_be_held_in_fewer_bits(m)]
    if left:
        kind, layer = causal_model(model).config.model_type, type(left[0]).__name__
        what = f"its linear layers are of class {layer}, which can't be held in 4 or 8 bits"
        raise ModelError([refusal(kind, what, layout, is_llama_like)])


def left_in_full(model: PreTrainedModel) -> list[str]:
    """Names of what holds linear layers outside the decoder blocks: not held in fewer bits."""
    held, beside = linear_maps(model), towers(model)
    named = _language_modules(model).items()
    return beside + [n for n, one in named if n not in held and can_be_held_in_fewer_bits(one)]


def whole_parameters(model: PreTrainedModel, config: LoRAConfig) -> int:
    """Number of weights trained beside the adapters: layers as a whole, and biases."""
    whole = tuple(config.modules_to_save or ())
    named = _language_modules(model)
    layers = [module for name, module in named.items() if whole and name.endswith(whole)]
    # a layer within a layer, or two that share a weight, count once
    found = {id(p): p.numel() for layer in layers for p in layer.parameters()}
    if config.bias == "all":
        inside = (p for layer in named.values() for p in layer.named_parameters(recurse=False))
        found |= {id(p): p.numel() for name, p in inside if "bias" in name}
    if config.bias == "lora_only":
        own = (getattr(m, "bias", None) for m in adapted_layers(model, config).values())
        found |= {id(p): p.numel() for p in own if isinstance(p, torch.Tensor)}
    return sum(found.values())


def not_adapted(model: PreTrainedModel, config: LoRAConfig) -> list[str]:
    """What of the blocks' matrices gets no adapters though the user named none, in words."""
    if config.target_modules is not None:
        return []
    adapted = adapted_layers(model, config)
    inside = {id(p) for block in decoder_blocks(model) for p in block.parameters()}
    whole = _held_whole([name for name, _ in model.named_modules()], config)
    if config.experts:
        whole |= {name.rpartition(".")[0] for name in experts.expert_parameters(model)}
    left: dict[str, int] = {}
    for name, weight in causal_model(model).named_parameters():
        layer = name.rpartition(".")[0]
        if id(weight) in inside and weight.ndim > 1 and layer not in adapted and layer not in whole:
            kind = re.sub(r"^.*\.\d+\.", "", name).removesuffix(".weight")
            left[kind] = left.get(kind, 0) + weight.numel()
    if not left:
        return []
    number, total = sum(left.values()), sum(p.numel() for p in model.parameters())
    names = ", ".join(sorted(left))
    share = f"{number:,} of the model's {total:,} weights"
    more = ", and experts by --lora.experts true" if "experts." in names else ""
    return [f"no adapters on {names} ({share}): PEFT adapts layers that are linear maps{more}"]


def _language_modules(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """All modules by name, but for those beside the language model and what is in them."""
    beside = (*towers(model), *absent(model))
    inner = causal_model(model)
    return {n: m for n, m in inner.named_modules() if not _is_within(n, beside)}


def _is_within(name: str, modules: Iterable[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in modules)


def _held_whole(names: Iterable[str], config: LoRAConfig) -> set[str]:
    whole = config.modules_to_save or []
    return {n for n in names if any(re.match(rf"(^|.*\.){one}($|\..*)", n) for one in whole)}


def _is_called(name: str, targets: Collection[str]) -> bool:
    """Whether a list of PEFT's means the module of a name."""
    return any(name == one or name.endswith(f".{one}") for one in targets)


def _expression(chosen: Collection[str], names: Iterable[str]) -> str:
    """A regular expression that matches the names `chosen` and no other of `names`."""
    forms = sorted({re.sub(r"\b\d+\b", r"\\d+", re.escape(name)) for name in chosen})
    parts = [form.split(r"\.") for form in forms]
    alike = takewhile(
        lambda level: len(set(level)) == 1, zip(*(p[:-1] for p in parts), strict=False)
    )
    prefix = "".join(rf"{level[0]}\." for level in alike)
    short = f"{prefix}(?:{'|'.join(form.removeprefix(prefix) for form in forms)})"
    if {name for name in names if re.fullmatch(short, name)} == set(chosen):
        return short
    return f"(?:{'|'.join(re.escape(name) for name in chosen)})"


def _trainable_whole(named: dict[str, torch.nn.Module]) -> list[str]:
    """Last names of all layers with weights of their own, sorted."""
    own = (n for n, m in named.items() if next(m.parameters(recurse=False), None) is not None)
    return sorted({_last(name) for name in own})


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
