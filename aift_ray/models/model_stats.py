"""The numbers by which a run is planned: from a model's configuration, or counted in its outline.

A configuration says how large the matrices of a Llama are, and the command that starts a run needs
none of the modelling code to read it. Models of other layouts are built without weights and
counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aift_ray.config import RunConfig
from aift_ray.errors import ConfigError
from aift_ray.models.added_tokens import AddedTokens
from aift_ray.models.hub import load_config
from aift_ray.planning.model_shape import FAMILIES, Counted, Shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Measured:
    """A model as a run trains it.

    Attributes:
        shape: its numbers.
        whole: weights trained beside the adapters' pairs of matrices.
        notes: what the user should know of what is not trained.
    """

    shape: Shape
    whole: int = 0
    notes: list[str] = field(default_factory=list)


def measured(location: str, config: RunConfig, added: AddedTokens | None = None) -> Measured:
    """The numbers of the model of a resolved location.

    Args:
        added: tokens that it gets.

    Raises:
        ModelError: a model that can't be trained by the method asked for.
        ConfigError: layers that it does not have.
    """
    found = _as_published(location, config)
    if added is None:
        return found
    shape = found.shape
    tables = 1 if shape.tied else 2
    rows, trained = added.rows - shape.vocabulary, len(added.ids) if added.alone else added.rows
    changes: dict[str, Any] = {"vocabulary": added.rows}
    if shape.counted:
        loose = shape.counted.loose + rows * shape.hidden * tables
        changes["counted"] = replace(shape.counted, loose=loose)
    whole = (
        found.whole if config.method == "full" else found.whole + trained * shape.hidden * tables
    )
    return replace(found, shape=replace(shape, **changes), whole=whole)


def _as_published(location: str, config: RunConfig) -> Measured:
    """The same without new tokens."""
    own = load_config(location, config.objective == "reward")
    lora = config.lora
    asked = lora.target_modules or lora.modules_to_save or lora.bias != "none" or lora.experts
    if is_plain(own) and (config.method == "full" or not asked):
        shape = Shape.of(own.to_dict())
        adapted = shape.linear_shapes * shape.layers
        return Measured(shape, _sizes(adapted) if lora.use_dora else 0)
    # needs the modelling code
    from aift_ray.models.families import router_loss
    from aift_ray.models.load import skeleton
    from aift_ray.models.lora.target_modules import (
        adapted_layers,
        check_quantizable,
        check_targets,
        not_adapted,
        whole_parameters,
    )
    from aift_ray.models.wrappers import is_wrapper

    model = skeleton(location)
    said = _said(own, location, config) if is_wrapper(own) else []
    if config.method == "full":
        problems = router_loss.refused(model, config)
        if problems:
            raise ConfigError(problems)
        return Measured(counted(model, {}), notes=said)
    check_targets(model, lora, config.base_bits)
    if config.base_bits is not None:
        check_quantizable(model)
    layers = adapted_layers(model, lora)
    shape = counted(model, layers, lora.experts)
    assert shape.counted is not None
    whole = whole_parameters(model, lora)
    whole += _sizes(list(shape.counted.adapted)) if lora.use_dora else 0
    notes = not_adapted(model, lora) + router_loss.note(model) + said
    if config.base_bits == 8 and shape.expert_parameters:
        notes.append(
            f"bitsandbytes has no 8 bits for experts: their {shape.expert_parameters:,} weights "
            "are held as without quantization; 4 bits (--lora.qlora_4bit true) hold them too"
        )
    return Measured(shape, whole, notes)


def _said(own: PreTrainedConfig, location: str, config: RunConfig) -> list[str]:
    """What becomes of the towers of a wrapper.

    Raises:
        ModelError: full training could not be saved in the whole.
    """
    from aift_ray.models.fingerprint import on_disk
    from aift_ray.models.full_model_folder import WholeFolder
    from aift_ray.models.wrappers import named_for_users

    alone = f"of a {own.model_type} the language model alone is"
    if config.method != "full":
        return [f"{alone} loaded and adapted: plain PEFT loads it on {named_for_users(own)}"]
    if on_disk(location):
        WholeFolder(location)
    return [
        f"{alone} loaded and trained; the final folder holds the whole, all else as in the source, "
        "in the dtypes of the source"
    ]


def is_plain(config: PreTrainedConfig) -> bool:
    """Whether the numbers of a model follow from its configuration."""
    return config.model_type in FAMILIES


def _sizes(adapted: list[tuple[int, int]]) -> int:
    """Numbers of DoRA: one for each output of an adapted layer."""
    return sum(outputs for _, outputs in adapted)


def counted(
    model: PreTrainedModel, adapted: dict[str, torch.nn.Module], experts: bool = False
) -> Shape:
    """The numbers of a model with or without its weights.

    Args:
        adapted: the layers that get adapters.
        experts: the stacked weights of experts get some too.
    """
    import torch

    from aift_ray.models.decoder import decoder_blocks
    from aift_ray.models.families.experts import stacks
    from aift_ray.models.linear_layers import features
    from aift_ray.models.lora.target_modules import linear_maps, untrained

    def sides(layer: torch.nn.Module) -> tuple[int, int]:
        if isinstance(layer, torch.nn.Embedding):
            return layer.num_embeddings, layer.embedding_dim
        found = features(layer)
        assert found is not None
        return found

    linear = {name: sides(layer) for name, layer in linear_maps(model).items()}
    never = untrained(model)
    # before weights are loaded, two that are going to be one are two
    tied = model.all_tied_weights_keys
    sizes = {n: p.numel() for n, p in model.named_parameters() if n not in tied}
    aside = sum(size for name, size in sizes.items() if name in never)
    stacked = stacks(model)
    pairs = [sides(layer) for layer in adapted.values()]
    # each expert has adapters of its own
    pairs += [(a, b) for stack in stacked if experts for a, b in [stack[1:]] * stack[0]]
    inside = sum(a * b for a, b in linear.values()) + sum(map(math.prod, stacked))
    head = model.get_output_embeddings()
    vocabulary, hidden = head.get_parameter("weight").shape
    name_of_head = next(name for name, module in model.named_modules() if module is head)
    return Shape(
        hidden=hidden,
        layers=len(decoder_blocks(model)),
        heads=1,
        kv_heads=1,
        head_size=hidden,
        feed_forward=max((b for _, b in linear.values()), default=hidden),
        vocabulary=vocabulary,
        tied=f"{name_of_head}.weight" in tied,
        counted=Counted(
            linear=tuple(linear.values()),
            adapted=tuple(pairs),
            loose=sum(sizes.values()) - aside - inside,
            beside=aside,
            experts=tuple(stacked),
            active=getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1,
            adapts_experts=experts,
        ),
    )
