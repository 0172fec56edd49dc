"""Which engine makes the tokens, and what of the settings it can't do.

The command that serves asks this before anything starts, so that transformers is imported only
where vLLM may be the one.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from aift_ray.config import ServeConfig, ServingConfig
from aift_ray.errors import ConfigError, Problem

INSTALL = 'pip install "aift-ray[vllm]"'


@dataclass(frozen=True)
class Choice:
    """An engine and the reason for it, in a line."""

    engine: Literal["transformers", "vllm"]
    why: str

    def __str__(self) -> str:
        return f"{self.engine}: {self.why}"


def installed() -> bool:
    """Whether vLLM can be imported; it is not imported."""
    return find_spec("vllm") is not None


def choose(config: ServeConfig, location: str, gpu: bool) -> Choice:
    """The engine of the settings, or of `auto`.

    Args:
        location: of the base.
        gpu: whether a replica has one.
    """
    if config.engine != "auto":
        return Choice(config.engine, "as set")
    if not gpu:
        return Choice("transformers", "there is no GPU")
    if not installed():
        return Choice("transformers", f"vllm is not installed ({INSTALL})")
    refused = refusals(config, location, gpu)
    if refused:
        return Choice("transformers", f"vllm can't serve this: {refused[0].what}")
    return Choice("vllm", "there is a GPU, and vllm takes the model")


def made(config: ServeConfig, location: str, gpu: bool) -> Choice:
    """The same, held against what the engine can do.

    Raises:
        ConfigError: what is asked of it, it can't do.
    """
    chosen = choose(config, location, gpu)
    problems = refusals(config, location, gpu) if chosen.engine == "vllm" else []
    if problems:
        raise ConfigError(problems)
    return chosen


def refusals(config: ServeConfig, location: str, gpu: bool) -> list[Problem]:
    """What of the settings and the model vLLM can't do, without asking vLLM itself."""
    from aift_ray.models.bnb.bnb_layers import stored_bits
    from aift_ray.models.hub import load_config
    from aift_ray.serving.engines.vllm import vllm_families

    model = load_config(location)
    found = vllm_families.refused(model, bool(config.adapters or config.serving.adapter_folder))
    if not installed():
        found.append(Problem("engine", "vllm is not installed", INSTALL))
    other = "use --engine transformers"
    if config.load_in == "8bit":
        # only models that were quantized before are held in 8 bits
        what = "the engine vllm can't quantize to 8 bits while it loads"
        remedy = (
            "quantize it before (aift-ray quantize --bits 8), use 4bit, or --engine transformers"
        )
        found.append(Problem("load_in", what, remedy))
    elif config.load_in and not gpu:
        found.append(Problem("load_in", "the engine vllm has 4 bits on GPUs only", other))
    bits = stored_bits(model)
    if bits and not gpu:
        what = f"its weights are in {bits} bits, which the engine vllm takes on GPUs only"
        found.append(Problem(f"model {config.model}", what, other))
    if config.vllm.tensor_parallel_size > 1 and not gpu:
        what = "splits the model over GPUs, and a replica has none"
        found.append(Problem("vllm.tensor_parallel_size", what, "leave it out"))
    if config.serving.kv_cache_memory is not None:
        what = "applies to the transformers engine only"
        found.append(Problem("serving.kv_cache_memory", what, "use vllm.kv_cache_memory"))
    if config.serving.prefix_memory != ServingConfig().prefix_memory:
        what = "the vllm engine keeps its prefix cache in vllm.kv_cache_memory"
        found.append(Problem("serving.prefix_memory", what, f"leave it out, or {other}"))
    return found
