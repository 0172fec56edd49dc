"""From settings to a running Service: everything checked first, then loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from aift_ray.config import ServeConfig
from aift_ray.config.section import memory_bytes
from aift_ray.data.prompts import PromptEncoder
from aift_ray.errors import ConfigError, ModelError, Problem
from aift_ray.models import families, folders, loading, provenance
from aift_ray.models.quantized import Quantization
from aift_ray.models.vocabulary import check_vocabulary
from aift_ray.serving import adapters, choice
from aift_ray.serving.choice import Choice
from aift_ray.serving.engine import TransformersEngine
from aift_ray.serving.requests import Engine
from aift_ray.serving.service import Limits, Service

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Checked:
    """What can be known before weights are loaded.

    Attributes:
        location: of the base.
        dtype: of the computation.
        engine: that of the settings, or of `auto`.
    """

    config: ServeConfig
    location: str
    encoder: PromptEncoder
    dtype: torch.dtype
    device: torch.device
    engine: Choice


def check(config: ServeConfig, gpu: bool) -> Checked:
    """Look at every folder that the settings name.

    Raises:
        UserError: what keeps them from being served, all at once.
    """
    location = folders.resolve(config.model)
    problems = provenance.changed_prompts(f"model {config.model}", Path(location))
    if problems:
        raise ModelError(problems)
    encoder = encoder_of(location)
    check_vocabulary(config.model, encoder.tokenizer, folders.load_config(location))
    device = torch.device("cuda" if gpu else "cpu")
    name = config.dtype if config.dtype != "auto" else ("bf16" if gpu else "fp32")
    if name == "fp16" and not gpu:
        raise ConfigError([Problem("dtype", "fp16 needs a GPU", "use bf16, fp32 or auto")])
    engine = choice.made(config, location, gpu)
    shelf = config.serving.adapter_folder
    if shelf and not Path(shelf).is_dir():
        problems.append(Problem("serving.adapter_folder", f"{shelf} is no folder"))
    if shelf or config.adapters:
        # made now: while requests are answered it would change torch's default dtype for them
        adapters.skeleton(location)
    for adapter, folder in config.adapter_folders().items():
        problems += adapters.check(adapter, folder, location, encoder)
    if problems:
        raise ModelError(problems)
    return Checked(config, location, encoder, _DTYPES[name], device, engine)


def encoder_of(location: str) -> PromptEncoder:
    """The prompts of a model's or an adapter's folder."""
    tokenizer = folders.load_tokenizer(location)
    return PromptEncoder(tokenizer, extra_stop_ids=folders.stop_ids(location))


async def start(
    checked: Checked, given: Mapping[str, str] | None = None, replica: str = ""
) -> Service:
    """Load the weights and the adapters, start the engine.

    Args:
        given: folders of the adapters to load; None: those of the settings.
        replica: what tells it from other replicas of the same server.

    Raises:
        ModelError: an adapter doesn't fit.
    """
    config, serving = checked.config, checked.config.serving
    given = config.adapter_folders() if given is None else given
    if checked.engine.engine == "vllm":
        engine: Engine = await _vllm(checked, given)
    else:
        engine = _transformers(checked)
    limits = Limits(serving.request_timeout_s, serving.idle_timeout_s)
    service = Service(engine, checked.encoder, checked.location, config.name(), limits, replica)
    for name, folder in given.items():
        problems = await service.load_adapter(name, folder)
        if problems:
            raise ModelError(problems)
    return service


def _transformers(checked: Checked) -> Engine:
    config, serving, quantization = checked.config, checked.config.serving, None
    if config.load_in:
        bits = 4 if config.load_in == "4bit" else 8
        # threshold 0: without the search for outliers 8 bits are about twice as fast
        quantization = Quantization(bits, checked.dtype, threshold=0.0)  # type: ignore[arg-type]
    attention = families.attention_of(folders.load_config(checked.location))
    model = loading.load_model(checked.location, checked.dtype, attention, quantization)
    model = model.eval().to(checked.device) if quantization is None else model.eval()
    memory = memory_bytes(serving.prefix_memory)
    return TransformersEngine(model, serving.slots, serving.max_queue, memory)


async def _vllm(checked: Checked, given: Mapping[str, str]) -> Engine:
    from aift_ray.serving import vllm_engine, vllm_options

    options = vllm_options.options(
        checked.config, checked.location, checked.dtype, checked.device, given
    )
    serving = checked.config.serving
    return await vllm_engine.start(checked.location, serving.slots, serving.max_queue, options)
