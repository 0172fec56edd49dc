"""What a run that compares answers needs beside its own model, settled before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aift_ray.config import RunConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.models import hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def settled(
    config: RunConfig, model_config: Any, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What the workers are told of it: `reference` and `pad_id` of a Job.

    Raises:
        ConfigError: no model of the family can be trained by the objective, or the reference has
            another vocabulary.
        ModelError: the reference is not there, or damaged.
    """
    if config.objective == "reward":
        # needs the modelling code
        from aift_ray.models.families import sequence_classifier

        problems = sequence_classifier.unfit(model_config)
        if problems:
            raise ConfigError(problems)
    padding = tokenizer.pad_token_id
    return {
        "reference": _reference(config, tokenizer),
        # what a model that scores texts is saved with
        "pad_id": int(tokenizer.eos_token_id if padding is None else padding),
    }


def _reference(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Where the reference model lies; None: it is the model itself."""
    name = config.preference.reference
    if name is None:
        return None
    location = hub.resolve(name)
    other = hub.load_tokenizer(location)
    if other.get_vocab() != tokenizer.get_vocab():
        what = f"{name} has another vocabulary than {config.model}: its log-probabilities are of "
        what += "other tokens"
        remedy = "name a model of the same tokenizer, such as the one that was fine-tuned"
        raise ConfigError([Problem("preference.reference", what, remedy)])
    return location
