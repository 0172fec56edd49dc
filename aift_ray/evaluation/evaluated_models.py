"""The models that are compared: base models, adapters on them, or models behind a URL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aift_ray.config import EvaluateConfig
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.engine.precision import DTYPES
from aift_ray.errors import ConfigError, ModelError, Problem, UserError
from aift_ray.models import folder_check, hub, load, provenance
from aift_ray.models.base_and_adapter import Place, find_place
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.models.lora.attach import reload_adapters
from aift_ray.runs.unknown_families import measure_batched
from aift_ray.serving.engines.vllm import vllm_families
from aift_ray.utils.gpu_utils import half_precision

_LIKELIHOODS = "leave out the tasks that write answers and those of lm_eval"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate.

    Attributes:
        name: in tables.
        place: where its parts are; None: the model `name` behind a URL.
    """

    name: str
    place: Place | None


def find_candidates(config: EvaluateConfig, in_batches: bool = True) -> list[EvaluatedModel]:
    """The models of the settings, in order; the first is the one the others are compared with.

    Args:
        in_batches: some task has prompts of uneven length answered in one batch.

    Raises:
        ModelError: everything that is wrong with their folders, or with their families.
    """
    # one that is named twice is told with the settings
    models = list(dict.fromkeys(config.candidates()))
    if config.base_url:
        return [EvaluatedModel(name, None) for name in models]
    found: list[EvaluatedModel] = []
    problems: list[Problem] = []
    for model, name in zip(models, _names(models), strict=True):
        try:
            found.append(EvaluatedModel(name, find_place(model)))
            if in_batches:
                _check_family(name, found[-1])
        except UserError as error:
            problems += error.problems
    if found and config.adapters:
        base = found[0].place
        assert base
        for name, folder in config.adapter_folders().items():
            try:
                found.append(EvaluatedModel(name, _with_adapter(base, models[0], folder)))
            except UserError as error:
                problems += error.problems
    if len({each.name for each in found}) < len(found):
        remedy = "name adapters: --adapter NAME=FOLDER"
        problems.append(Problem("adapters", "an adapter has the name of the model", remedy))
    if problems:
        raise ModelError(list(dict.fromkeys(problems)))
    return found


def _check_family(name: str, candidate: EvaluatedModel) -> None:
    """Refuse a family whose answers in a batch are not those that transformers gives alone."""
    assert candidate.place
    config = hub.load_config(candidate.place.base)
    layout = _LIKELIHOODS
    if vllm_families.serves(config):
        layout = f"serve it with --engine vllm and give --base-url, or {layout}"
    measure_batched(name, config, layout)


def _names(models: list[str]) -> list[str]:
    """The last part of each name, or as many parts as tell them apart."""
    parts = [Path(model).parts for model in models]
    for number in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-number:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return models


def _with_adapter(base: Place, model: str, folder: str) -> Place:
    if base.adapter:
        what = f"{model} is an adapter itself"
        raise ConfigError([Problem("adapters", what, "give its base as --model")])
    location = provenance.opened_as_trained(base.base, Path(folder).expanduser())
    adapter = check_adapter(folder, model, location, load.skeleton(location))
    tokenizer = str(adapter) if folder_check.has_tokenizer(adapter) else base.tokenizer
    return Place(location, tokenizer, adapter)


@dataclass
class Opened:
    """A loaded model.

    Attributes:
        context: tokens that it takes; None: any number.
    """

    model: Any
    prompts: PromptEncoder
    context: int | None


def open_candidate(place: Place, name: str, dtype: str, device: torch.device) -> Opened:
    """Load a model onto `device`.

    Raises:
        UserError: it can't be loaded.
    """
    tokenizer = place.load_tokenizer(name)
    prompts = PromptEncoder(tokenizer, extra_stop_ids=hub.stop_ids(place.tokenizer))
    kind = half_precision(device) if device.type == "cuda" else torch.float32
    if dtype != "auto":
        kind = DTYPES[dtype]
    attention = load.answering_attention(place.base, False)
    model: Any = load.load_model(place.base, kind, attention, None, {"": device})
    if place.adapter:
        model = reload_adapters(model, str(place.adapter), trainable=False)
    return Opened(model.eval(), prompts, hub.context(model.config))
