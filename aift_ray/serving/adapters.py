"""LoRA adapters on the served model: checked, loaded and unloaded by name."""

from __future__ import annotations

import json
import re
import warnings
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel

from aift_ray.data.prompts import PromptEncoder
from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import CATALOG
from aift_ray.models.folders import load_tokenizer
from aift_ray.serving.requests import BASE

_LORA = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
MERGE = "merge it into its base (aift-ray quantize --adapter) and serve the merged folder"


class Adapters:
    """The adapters on one base model.

    Attributes:
        model: what is run: the base itself until the first adapter comes.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.model: Any = base
        self._base = base
        self._names: dict[str, str] = {BASE: BASE}
        # a name never comes back, so that nothing of an earlier adapter can be taken for a later
        self._numbers = count()

    def internal(self, name: str) -> str:
        """PEFT's name of a loaded adapter; BASE for the base. KeyError where there is none."""
        return self._names[name]

    def load(self, name: str, folder: str) -> None:
        """Put the adapter of a checked folder on the model.

        Raises:
            ModelError: it doesn't fit the model.
        """
        # before PEFT sees it: what it has put on the model halfway would stay there
        misfit = _misfit(self._base, Path(folder))
        if misfit:
            remedy = "give the model that it was trained on as --model"
            raise ModelError([Problem(f"adapter {name}", misfit, remedy)])
        internal = f"a{next(self._numbers)}"
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(folder, internal)
        else:
            self.model = PeftModel.from_pretrained(self._base, folder, internal)
        self.model.eval()
        self._names[name] = internal

    def unload(self, name: str) -> None:
        """Forget an adapter."""
        internal = self._names.pop(name)
        if len(self._names) == 1:
            self.model = self.model.unload()
            return
        with warnings.catch_warnings():
            # PEFT tells which adapter it now takes for the active one; rows name theirs
            warnings.simplefilter("ignore")
            self.model.delete_adapter(internal)


def _misfit(base: PreTrainedModel, folder: Path) -> str | None:
    """What of an adapter's weights does not fit the model; None where all do."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    for key, shape in shapes.items():
        found = _LORA.fullmatch(key)
        if found is None:
            return f"it holds {key}, which is not of a LoRA adapter"
        try:
            layer: Any = base.get_submodule(found["layer"])
        except AttributeError:
            return f"it adapts {found['layer']}, which the model does not have"
        size = layer.in_features if found["side"] == "A" else layer.out_features
        given = shape[1] if found["side"] == "A" else shape[0]
        if given != size:
            return f"it was trained on {given} features of {found['layer']}, the model has {size}"
    return None


def check(name: str, folder: str, base: str, encoder: PromptEncoder) -> list[Problem]:
    """What keeps an adapter folder from being served on the base at a location."""
    where, path = f"adapter {name}", Path(folder)
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except OSError:
        what = f"{folder} holds no adapter_config.json"
        return [Problem(where, what, "give the folder of an adapter, such as RUN/model")]
    except ValueError as error:
        return [Problem(where, f"adapter_config.json is no JSON: {error}")]
    if not (path / "adapter_model.safetensors").is_file():
        return [Problem(where, f"{folder} holds no adapter_model.safetensors")]
    found = []
    if config.get("peft_type") != "LORA":
        found.append(Problem(where, f"is a {config.get('peft_type')}, only LoRA is served", MERGE))
    if config.get("bias", "none") != "none":
        # PEFT writes such biases into the base itself, for every other adapter too
        found.append(Problem(where, f"trains biases of the base (bias {config['bias']})", MERGE))
    for variant in ("use_dora", "alora_invocation_tokens", "trainable_token_indices"):
        if config.get(variant):
            found.append(Problem(where, f"uses {variant}, which can't be mixed in a batch", MERGE))
    trained_on = config.get("base_model_name_or_path") or ""
    if trained_on and not _same_base(trained_on, base):
        what = f"was trained on {trained_on}, and {base} is served"
        found.append(Problem(where, what, "give the model that it was trained on as --model"))
    return found + _check_prompts(where, path, encoder)


def _same_base(trained_on: str, served: str) -> bool:
    """By name: a folder may have been moved, and a catalog name stands for a folder."""
    if trained_on in CATALOG:
        trained_on = CATALOG[trained_on].location
    return Path(trained_on).name == Path(served).name


def _check_prompts(where: str, folder: Path, encoder: PromptEncoder) -> list[Problem]:
    """Whether an adapter's own tokenizer and template, where it has them, make other prompts."""
    if not (folder / "tokenizer.json").is_file():
        return []
    own = PromptEncoder(load_tokenizer(str(folder)))
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
