"""Private interfaces of transformers, read from transformers 5.23.0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    # which loads much of torch that a command needs no part of
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# missing: a class attribute of public name for weights in a file that a model does not hold
IGNORED_ON_LOAD = "_keys_to_ignore_on_load_unexpected"


def ignore_on_load(model: PreTrainedModel, patterns: Sequence[str]) -> None:
    """Have further weights in files, by regular expressions of names, be no surprise."""
    setattr(model, IGNORED_ON_LOAD, {*(getattr(model, IGNORED_ON_LOAD) or ()), *patterns})


def from_config(
    model_class: type[PreTrainedModel], config: object, **options: object
) -> PreTrainedModel:
    """A model of a class with random weights.

    Missing: the Auto classes have `from_config`, the classes of models do not.
    """
    make = getattr(model_class, "from_config", None) or model_class._from_config
    model: PreTrainedModel = make(config, **options)
    return model


def takes_flash_attention(model_class: type[PreTrainedModel]) -> bool:
    """Whether models of a class can be computed with FlashAttention 2.

    Missing: transformers tells it by an error when the model is built.
    """
    others = getattr(model_class, "_compatible_flash_implementations", None)
    fits: bool = model_class._supports_flash_attn
    return fits and (not others or "flash_attention_2" in others)


def recomputed(block: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    """Call `forward` as a block that recomputes its activations calls its own.

    Missing: the function is set by `gradient_checkpointing_enable`, with its arguments.
    """
    call: Any = block._gradient_checkpointing_func
    return call(forward, *args)


def forget_initialized(module: nn.Module) -> None:
    """Have `init_weights` take a module for new.

    Missing: a way to initialize a model that was built on the meta device.
    """
    module.__dict__.pop("_is_hf_initialized", None)


def ignored_on_save(model: PreTrainedModel) -> set[str]:
    """Names of weights that `save_pretrained` leaves out.

    Missing: it writes all of a model, never a part.
    """
    return set(model._keys_to_ignore_on_save or ())


def conversions(model: nn.Module) -> Sequence[Any]:
    """How the weights of a model differ from those of its file, as it was loaded.

    Missing: `revert_weight_conversion` reverts them without telling whether there are any.
    """
    found: Sequence[Any] = getattr(model, "_weight_conversions", None) or ()
    return found


def set_conversions(model: nn.Module, used: Sequence[Any]) -> None:
    """Have `revert_weight_conversion` revert `used` on a model that was not loaded."""
    changed: Any = model
    changed._weight_conversions = list(used)


def forget_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop the copy of vocabulary and merges that a tokenizer was built from.

    Half a million merges are 150 MB as Python objects, and nothing reads them afterwards: ids,
    texts and saved files come from the Rust tokenizer. Missing: a way not to keep them.
    """
    for name in {"_vocab", "_merges"} & {*vars(tokenizer)}:
        setattr(tokenizer, name, type(getattr(tokenizer, name))())
