"""Towers: the modules beside a language model that make embeddings of images and sounds."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from aift_ray.errors import ModelError
from aift_ray.models.decoder import causal_model, decoder_blocks, decoder_of
from aift_ray.models.families.refusals import refusal
from aift_ray.models.transformers_compat import ignore_on_load


def towers(model: torch.nn.Module) -> list[str]:
    """Names of the modules beside the language model: what makes embeddings of images and sounds.

    Raises:
        ModelError: such a module lies within the language model.
    """
    inner = causal_model(model)
    # of some classes the kinds of configuration inside are an attribute of each object
    if inner.config.get_text_config(decoder=True) is inner.config and not inner.config.sub_configs:
        return []
    decoder = decoder_of(inner)
    kept = {id(one) for one in (decoder, inner.get_output_embeddings()) if one is not None}
    inside = {id(one) for block in decoder_blocks(inner) for one in block.modules()}
    for module in decoder.modules():
        if (
            isinstance(module, PreTrainedModel)
            and module is not decoder
            and id(module) not in inside
        ):
            what = f"{type(module).__name__} is inside its language model, and only text is trained"
            raise ModelError([refusal(inner.config.model_type, what, None)])
    return _outermost(inner, kept)


def _outermost(module: torch.nn.Module, kept: set[int], prefix: str = "") -> list[str]:
    """Names of the largest modules with weights that hold nothing of `kept`."""
    found = []
    for name, child in module.named_children():
        if id(child) in kept:
            continue
        if any(id(one) in kept for one in child.modules()):
            found += _outermost(child, kept, f"{prefix}{name}.")
        elif next(child.parameters(), None) is not None:
            found.append(prefix + name)
    return found


class Absent(nn.Module):
    """In the place of a tower: no weights, and no answer.

    Attributes:
        inside: names of the modules that the tower has, in order.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.inside = tuple(name for name, _ in tower.named_modules() if name)
        # the language model's forward may ask for a size or a setting
        self.__dict__ |= {
            name: value
            for name, value in vars(tower).items()
            if isinstance(value, int | float | str | PreTrainedConfig) and not name.startswith("_")
        }

    def forward(self, *_: object, **__: object) -> None:
        """Refuse to make anything of images or sounds."""
        raise NotImplementedError("the towers of this model were not loaded")


def leave_out(model: PreTrainedModel, names: list[str]) -> None:
    """Put stand-ins without weights in the place of the modules `names`."""
    for name in names:
        model.set_submodule(name, Absent(model.get_submodule(name)))
    held = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = model.all_tied_weights_keys
    model.all_tied_weights_keys = {a: b for a, b in tied.items() if a in held and b in held}
    # their weights in a file are no surprise
    ignore_on_load(model, _names_in_files(names))


def _names_in_files(names: list[str]) -> list[str]:
    # older files lack the name of the body
    return [rf"(^|\.){name.rpartition('.')[2]}\." for name in names]


def absent(model: nn.Module) -> dict[str, Absent]:
    """{name: stand-in} of the towers that a model was opened without."""
    return {name: one for name, one in model.named_modules() if isinstance(one, Absent)}


def names_in_whole(model: nn.Module) -> list[str]:
    """Names of all modules that a model has when it is opened with its towers."""
    found = []
    for name, module in model.named_modules():
        found.append(name)
        if isinstance(module, Absent):
            found += [f"{name}.{one}" for one in module.inside]
    return found
