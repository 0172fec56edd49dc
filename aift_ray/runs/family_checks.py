"""What a model family has to compute for a setting to be possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aift_ray.config import RunConfig, context_rules
from aift_ray.errors import ConfigError, ModelError, Problem
from aift_ray.models import hub, scaled_rope
from aift_ray.models.families import family_support
from aift_ray.models.families.family_support import Support
from aift_ray.models.families.refusals import is_llama_like, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_divided(config: RunConfig, model_config: PreTrainedConfig, support: Support) -> None:
    """A ModelError where the rows of a model can't be divided over workers."""
    if config.parallel.context_parallel_size == 1:
        return
    kind, what = family_support.family_of(model_config), None
    if not support.packed:
        what = "its layers carry more from token to token than attention, so rows are padded, and "
        what += "only packed rows can be divided over workers"
    elif config.method == "full" and _balances(model_config):
        what = "the auxiliary loss of its routers is of whole rows (output_router_logits)"
    if what:
        field, layout = context_rules.FIELD, "leave it out"
        raise ModelError([refusal(kind, what, layout, is_llama_like, field)])


def check_fused(config: RunConfig, location: str, model_config: PreTrainedConfig) -> None:
    """A ModelError where no layer of a model would use the kernels that are asked for."""
    if config.training.kernels == "torch":
        return
    # needs the modelling code
    from aift_ray.models import load
    from aift_ray.models.fused_kernels import fusable

    if not fusable(load.skeleton(location)):
        what = "none of its layers computes what Liger's kernels compute"
        kind = family_support.family_of(model_config)
        raise ModelError([refusal(kind, what, "leave it out", is_llama_like, "training.kernels")])


def sequence_length(config: RunConfig, model_config: PreTrainedConfig) -> int:
    """Tokens of a row at most: as given, or the context of the model where nothing is."""
    length, limit = config.data.sequence_length, hub.context(model_config)
    alike = hub.batched_context(model_config)
    if alike != limit and alike and length > alike:
        what = f"{length} is not allowed: texts of more than {alike} tokens change the rotary "
        what += "frequencies of all others in a batch of this model"
        kind, field = family_support.family_of(model_config), "data.sequence_length"
        layout = f"give --{field} {alike} or less"
        raise ConfigError([refusal(kind, what, layout, is_llama_like, field)])
    if limit is None or length <= limit:
        return length
    if "sequence_length" not in config.data.model_fields_set:
        return limit
    what = f"{length} is not allowed: the model takes at most {limit} tokens"
    scaling = scaled_rope.needed(model_config, length)
    remedy = f"give {limit} or less"
    if scaling:
        remedy += f", or scale its rotary position embeddings: --rope-scaling {scaling}"
    raise ConfigError([Problem("data.sequence_length", what, remedy)])


def _balances(model_config: PreTrainedConfig) -> bool:
    # needs the modelling code
    from aift_ray.models.families.router_loss import balances

    return balances(model_config)
