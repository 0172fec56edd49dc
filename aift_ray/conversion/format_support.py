"""Which formats a model can be written in, and what is told of one that it can't."""

from __future__ import annotations

from pathlib import Path

from aift_ray.config import ExportConfig
from aift_ray.config.export_config import FITTED
from aift_ray.conversion import compressed_layers, gguf_families, gguf_tensors
from aift_ray.errors import Problem
from aift_ray.models import fingerprint, hub
from aift_ray.models.families.refusals import Fits, refusal

# what is tried in place of a format, in this order
_INSTEAD = {
    "gguf": ("hf", "fp8"),
    "awq": ("gptq", "fp8", "hf", "gguf"),
    "gptq": ("fp8", "hf", "gguf"),
    "fp8": ("hf", "gguf"),
}
# catalogued types whose models are language models alone, with mappings of AWQ
PLAIN = ("gemma2", "llama", "mistral", "qwen2", "qwen3")


def refused(config: ExportConfig, location: str, what: str) -> Problem:
    """The problem of a model that its format can't hold, with what another one can.

    Args:
        what: why it can't.
    """
    kind = hub.load_config(location).model_type
    fits: Fits = gguf_families.FAMILIES.__contains__
    if config.format == "gguf":
        kind = hub.load_config(location).get_text_config(decoder=True).model_type
    else:
        fits = PLAIN.__contains__
    return refusal(kind, what, _instead(config, location), fits)


def _instead(config: ExportConfig, location: str) -> str:
    for name in _INSTEAD[config.format]:
        if name == "hf":
            taken = bool(config.adapter) and config.merge_adapter
        else:
            taken = not unwritable(name, location)
        if taken:
            fitted = config.calibration_files and name not in FITTED
            return f"--format {name}" + ", without --calibration-file" * bool(fitted)
    return "transformers loads its folder as it is"


def unwritable(name: str, location: str) -> str:
    """Why a model can't be written in a format other than hf; "": it can."""
    if name in compressed_layers.FORMATS:
        if not compressed_layers.installed():
            return "llm-compressor is not installed"
        return compressed_layers.unwritable(name, location)
    text = hub.load_config(location).get_text_config(decoder=True)
    family = gguf_families.family(text)
    if isinstance(family, str):
        return family
    folder = fingerprint.on_disk(location)
    try:
        gguf_tensors.targets(folder or Path(location), text, family)
    except gguf_tensors.NoPlace as error:
        return str(error)
    return ""
