"""From settings to a running Service: everything checked first, then loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from aift_ray.config import ServeConfig
from aift_ray.config.section import memory_bytes
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.errors import ModelError, Problem
from aift_ray.models import folder_check, hub, load, provenance
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.families import family_support
from aift_ray.models.lora.adapter_folder import check_adapter
from aift_ray.models.lora.attach import merged
from aift_ray.models.vocab_check import check_vocabulary
from aift_ray.serving import served_models
from aift_ray.serving.adapter_record import AdapterRecord
from aift_ray.serving.answer import Limits
from aift_ray.serving.engines import engine_select
from aift_ray.serving.engines.engine_select import Choice
from aift_ray.serving.engines.interface import Engine
from aift_ray.serving.engines.transformers import lora_manager, packed_weights
from aift_ray.serving.engines.transformers.batched_families import check_batched
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from aift_ray.serving.service import Service

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
    checked = check_base(config, gpu)
    problems: list[Problem] = []
    shelf = config.serving.adapter_folder
    if shelf and not Path(shelf).is_dir():
        problems.append(Problem("serving.adapter_folder", f"{shelf} is no folder"))
    for name, folder in config.adapter_folders().items():
        problems += lora_manager.check(name, folder, checked.location, checked.encoder)
    if problems:
        raise ModelError(problems)
    return checked


def check_base(config: ServeConfig, gpu: bool) -> Checked:
    """The same without adapters and their folder, which a replica starts without if it has to.

    Raises:
        UserError: what keeps the base from being served.
    """
    named = [*config.adapter_folders().values(), *([config.merged] if config.merged else [])]
    folders = [Path(each).expanduser() for each in named]
    location = provenance.opened_as_trained(hub.resolve(config.model), *folders)
    problems = provenance.changed_prompts(f"model {config.model}", Path(location))
    if problems:
        raise ModelError(problems)
    if config.merged:
        check_adapter(config.merged, config.model, location, lora_manager.skeleton(location))
        own = folder_check.has_tokenizer(Path(config.merged))
        encoder = encoder_of(config.merged if own else location)
    else:
        encoder = encoder_of(location)
        check_vocabulary(config.model, encoder.tokenizer, hub.load_config(location))
    # the first of those that are reserved: a replica sees no others
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    name = config.dtype if config.dtype != "auto" else ("bf16" if gpu else "fp32")
    served_models.check_dtype(config, gpu)
    engine = engine_select.made(config, location, gpu)
    if engine.engine == "transformers":
        check_batched(config.model, hub.load_config(location))
    if config.serving.adapter_folder or config.adapters:
        # made now: while requests are answered it would change torch's default dtype for them
        lora_manager.skeleton(location)
    return Checked(config, location, encoder, _DTYPES[name], device, engine)


def encoder_of(location: str) -> PromptEncoder:
    """The prompts of a model's or an adapter's folder."""
    tokenizer = hub.load_tokenizer(location)
    return PromptEncoder(tokenizer, extra_stop_ids=hub.stop_ids(location))


async def start(checked: Checked, given: Mapping[str, AdapterRecord], replica: str = "") -> Service:
    """Load the weights and the adapters, start the engine.

    Args:
        given: the adapters to load; one that can't be loaded is left out.
        replica: what tells it from other replicas of the same server.
    """
    config, serving = checked.config, checked.config.serving
    if checked.engine.engine == "vllm":
        folders_ = {name: each.folder for name, each in given.items()}
        engine: Engine = await _vllm(checked, folders_)
    else:
        engine = _transformers(checked)
    limits = Limits(serving.request_timeout_s, serving.idle_timeout_s)
    service = Service(engine, checked.encoder, checked.location, config.name(), limits, replica)
    await service.load_recorded(given)
    return service


def _transformers(checked: Checked) -> Engine:
    config, serving, quantization = checked.config, checked.config.serving, None
    if config.load_in:
        bits = 4 if config.load_in == "4bit" else 8
        # threshold 0: without the search for outliers 8 bits are about twice as fast
        quantization = Quantization(bits, checked.dtype, threshold=0.0)  # type: ignore[arg-type]
    attention = family_support.attention_of(hub.load_config(checked.location))
    # else transformers puts quantized weights on the first GPU it sees, reserved or not
    place = {"": checked.device}
    model = load.load_model(checked.location, checked.dtype, attention, quantization, place)
    if config.merged:
        model = merged(model, config.merged)
    # before what is left of the memory is counted
    packed_weights.pack(model)
    memory, given = memory_bytes(serving.prefix_memory), serving.kv_cache_memory
    held = None if given is None else memory_bytes(given)
    return TransformersEngine(model.eval(), serving.slots, serving.max_queue, memory, held)


async def _vllm(checked: Checked, given: Mapping[str, str]) -> Engine:
    from aift_ray.serving.engines.vllm import vllm_engine, vllm_options

    options = vllm_options.options(
        checked.config, checked.location, checked.dtype, checked.device, given
    )
    serving = checked.config.serving
    return await vllm_engine.start(checked.location, serving.slots, serving.max_queue, options)
