"""LoRA adapters on the served model: checked, loaded and unloaded by name."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.errors import ModelError, Problem
from aift_ray.models import load as loading
from aift_ray.models.families.family_support import family_of
from aift_ray.models.families.refusals import is_llama_like, refusal
from aift_ray.models.hub import load_tokenizer
from aift_ray.models.linear_layers import features
from aift_ray.models.lora.adapter_config import CONFIG, adapter_config
from aift_ray.models.lora.adapter_folder import check_adapter, check_prompts
from aift_ray.models.scaled_rope import scaled, scaling_of
from aift_ray.serving.engines.transformers.multi_lora import Mixed, Pair

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

log = logging.getLogger(__name__)

_LORA = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
# after which base and adapter are what they are without it
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
PLAIN = "save it as ordinary LoRA (PEFT: path_initial_model_for_weight_conversion)"
MERGE = "merge it into its base (aift-ray quantize --adapter) and serve the merged folder"


class Adapters:
    """The adapters on one base model, by the names under which they were loaded."""

    def __init__(self, base: PreTrainedModel) -> None:
        self._base = base
        self._mixed = Mixed(base)
        self._contents: dict[str, str] = {}

    def load(self, name: str, folder: str) -> None:
        """Make the adapter of a checked folder usable.

        Raises:
            ModelError: it doesn't fit the model.
        """
        # before PEFT sees it: what it has put on the model halfway would stay there
        problem = misfit(name, self._base, Path(folder))
        if problem:
            raise ModelError([problem])
        from peft import LoraConfig, PeftModel
        from peft.tuners.lora import LoraLayer

        # PEFT reads its own files; what it has put around the layers is taken off again
        config = LoraConfig.from_pretrained(folder)
        # some starts of training, and copies of layers, would change the base for everybody
        config.init_lora_weights, config.layer_replication = True, None
        try:
            peft = PeftModel.from_pretrained(self._base, folder, config=config)
        except Exception:
            _unwrap(self._base)
            raise
        pairs = {
            layer: _pair(module)
            for layer, module in peft.base_model.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        peft.unload()
        largest = max(float(pair.up.abs().max()) for pair in pairs.values())
        if not math.isfinite(largest):
            what = f"the weights of {folder} are infinite with their scale, lora_alpha / r"
            raise ModelError([Problem(f"adapter {name}", what, "correct lora_alpha")])
        self._mixed.put(name, pairs)
        self._contents[name] = _digest(pairs)

    def unload(self, name: str) -> None:
        """Forget an adapter; KeyError where there is none."""
        self._mixed.drop(name)
        del self._contents[name]

    def content(self, name: str) -> str:
        """A digest of what an adapter adds; equal adapters have equal ones; "" for the base."""
        return self._contents.get(name, "")

    def choose(self, rows: Sequence[str]) -> None:
        """Name the adapter of each row of the next forward pass; BASE: none."""
        self._mixed.choose(rows)


def _unwrap(base: PreTrainedModel) -> None:
    """Take off what PEFT has put around the layers before it failed."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(base.named_modules()):
        if isinstance(module, LoraLayer):
            base.set_submodule(name, module.get_base_layer())


def _pair(layer: LoraLayer) -> Pair:
    """The only adapter of one of PEFT's layers, in fp32."""
    [(name, down)], up = layer.lora_A.items(), layer.lora_B
    scaled = up[name].weight * layer.scaling[name]
    return Pair(down.weight.detach().float(), scaled.detach().float())


def _digest(pairs: Mapping[str, Pair]) -> str:
    found = hashlib.sha256()
    for layer, pair in pairs.items():
        found.update(layer.encode())
        for matrix in (pair.down, pair.up):
            found.update(matrix.contiguous().cpu().view(torch.uint8).numpy().data)
    return found.hexdigest()


def misfit(name: str, base: PreTrainedModel, folder: Path) -> Problem | None:
    """What of an adapter's weights does not fit the model (or its skeleton); None where all do."""
    where, other = f"adapter {name}", "give the model that it was trained on as --model"
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    for key, shape in shapes.items():
        found = _LORA.fullmatch(key)
        if found is None:
            return Problem(where, f"it holds {key}, which is not of a LoRA adapter", MERGE)
        try:
            layer: Any = base.get_submodule(found["layer"])
        except AttributeError:
            what = f"it adapts {found['layer']}, which the model does not have"
            return Problem(where, what, other)
        sizes = features(layer)
        if sizes is None:
            return Problem(where, f"it adapts {found['layer']}, which is no linear layer", MERGE)
        size = sizes[0 if found["side"] == "A" else 1]
        given = shape[1] if found["side"] == "A" else shape[0]
        if given != size:
            what = f"it was trained on {given} features of {found['layer']}, the model has {size}"
            return Problem(where, what, other)
    return None


def skeleton(location: str) -> PreTrainedModel:
    """The model of a location without weights."""
    return _skeleton(location, scaling_of(location))


@cache
def _skeleton(location: str, scaling: str | None) -> PreTrainedModel:
    # locations are equal whatever their scaling is
    return loading.skeleton(scaled(location, scaling))


def check(name: str, folder: str, base: str, encoder: PromptEncoder) -> list[Problem]:
    """What keeps an adapter folder from being served on the base at a location."""
    try:
        return _check(f"adapter {name}", Path(folder).expanduser(), base, encoder)
    except Exception as error:
        # an adapter is a user's files: whatever they make fail is told, and nothing else fails
        log.error("the adapter %s can't be used", name, exc_info=error)
        return [Problem(f"adapter {name}", f"{folder} can't be used: {error}")]


def _check(where: str, path: Path, base: str, encoder: PromptEncoder) -> list[Problem]:
    found: list[Problem] = []
    try:
        check_adapter(path, base, base, skeleton(base), where.removeprefix("adapter "))
    except ModelError as error:
        found = error.problems
    try:
        config = adapter_config(path, where)
    except ModelError:
        # it was told above
        return found
    if config.get("trainable_token_indices"):
        # its tokenizer may have tokens that the model does not have
        what = "trains rows of the embeddings (trainable_token_indices), which can't be mixed in a "
        what += "batch"
        remedy = f"aift-ray export --model {base} --adapter {path} --format hf --output FOLDER, "
        return [*found, Problem(where, what, f"{remedy}and serve FOLDER")]
    if not check_prompts(path, where, skeleton(base).config):
        found += _check_prompts(where, path, encoder)
    return found + _unmixable(where, path / CONFIG, config, family_of(skeleton(base).config))


def _unmixable(where: str, file: Path, config: Mapping[str, Any], family: str) -> list[Problem]:
    """What an adapter does that requests for the base and for others would feel too."""
    found = []
    if config.get("bias", "none") != "none":
        # PEFT writes such biases into the base itself, for every other adapter too
        what = f"trains biases of the base (bias {config['bias']}), says {file}"
        found.append(Problem(where, what, MERGE))
    if config.get("target_parameters"):
        what = f"adapters of experts (target_parameters in {file}) can't be mixed in a batch"
        found.append(refusal(family, what, MERGE, is_llama_like, where))
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        what = f"its training began with {config['init_lora_weights']!r}, says {file}, which has "
        what += "changed the weights of the base too"
        found.append(Problem(where, what, f"{PLAIN}, or {MERGE}"))
    if config.get("use_dora"):
        what = f"uses use_dora, says {file}, which can't be mixed in a batch"
        found.append(Problem(where, what, MERGE))
    return found


def _check_prompts(where: str, folder: Path, encoder: PromptEncoder) -> list[Problem]:
    """Whether an adapter's own tokenizer and template, where it has them, make other prompts."""
    if not (folder / "tokenizer.json").is_file():
        return []
    try:
        own = PromptEncoder(load_tokenizer(str(folder)))
    except ModelError as error:
        reasons = "; ".join(problem.what for problem in error.problems)
        return [Problem(where, f"the tokenizer of {folder} can't be used: {reasons}")]
    found = []
    if own.tokenizer.chat_template != encoder.tokenizer.chat_template:
        what = f"{folder} has another chat template than the model: {_difference(own, encoder)}"
        remedy = "serve it with the template that it was trained with, or merge it into its base"
        found.append(Problem(where, what, remedy))
    elif own.digest() != encoder.digest():
        what = f"{folder} has another tokenizer than the model"
        found.append(Problem(where, what, "give the model that it was trained on as --model"))
    return found


def _difference(one: PromptEncoder, other: PromptEncoder) -> str:
    """The first lines in which two templates differ."""
    pairs = zip_longest(
        str(one.tokenizer.chat_template).splitlines(),
        str(other.tokenizer.chat_template).splitlines(),
        fillvalue="(nothing)",
    )
    number, (mine, theirs) = next(
        (number, pair) for number, pair in enumerate(pairs, 1) if pair[0] != pair[1]
    )
    return f"line {number} is {mine[:80]!r}, the model's {theirs[:80]!r}"
