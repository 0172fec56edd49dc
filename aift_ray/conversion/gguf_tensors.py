"""From the weights of a model folder to the tensors of a GGUF file."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gguf import get_tensor_name_map
from safetensors import safe_open

from aift_ray.conversion import gguf_linear
from aift_ray.conversion.gguf_families import Family, head_size
from aift_ray.errors import ModelError
from aift_ray.models import fingerprint
from aift_ray.models.families.refusals import refusal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(\w+)\.weight")
_FUSED = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(gate_up_proj|down_proj)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
# where wrappers keep the language model
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_LANGUAGE = ("model.embed_tokens", "model.layers.", "model.norm", "lm_head.")
_NOT_WRITTEN = (".rotary_emb.inv_freq",)

Make = Callable[[Sequence[torch.Tensor]], torch.Tensor]


class NoPlace(Exception):
    """A weight that a GGUF file has no name for."""


@dataclass(frozen=True)
class Source:
    """A tensor of a safetensors file."""

    file: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        """Its values."""
        with safe_open(self.file, "pt") as opened:
            found: torch.Tensor = opened.get_tensor(self.name)
        return found


@dataclass(frozen=True)
class Target:
    """A tensor of a GGUF file.

    Attributes:
        make: what becomes of the sources.
    """

    name: str
    sources: tuple[Source, ...]
    make: Make

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, which is found without reading anything."""
        blank = [torch.empty(source.shape, device="meta") for source in self.sources]
        return tuple(self.make(blank).shape)

    def read(self) -> torch.Tensor:
        """Its values."""
        return self.make([source.read() for source in self.sources])


def targets(folder: Path, config: PreTrainedConfig, family: Family) -> list[Target]:
    """The tensors of a file, in the order in which they are written.

    Args:
        folder: of the model's safetensors files.
        config: of the language model.

    Raises:
        NoPlace: a weight has no name in GGUF.
        ModelError: one is missing.
    """
    sources = _sources(folder)
    if config.tie_word_embeddings:
        sources.pop("lm_head.weight", None)
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    found, unknown = [], []
    for name, parts, make in _units(sources):
        known = gguf_linear.renamed(name) if family.linear else name
        mapped = names.get_name(known, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            unknown.append(name)
        else:
            found.append(Target(mapped, parts, _with_family(make, name, config, family)))
    if unknown:
        what = f"{unknown[0]} has no place in a GGUF file"
        what += f", nor have {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise NoPlace(what)
    layers = {match[1] for name in sources if (match := _LAYER.match(name))}
    if len(layers) != config.num_hidden_layers:
        what = (
            f"its files hold {len(layers)} layers, and its configuration {config.num_hidden_layers}"
        )
        layout = "write the number of layers of its weights into config.json"
        raise ModelError([refusal(config.model_type, what, layout)])
    return sorted(found, key=lambda target: _order(target.name)) + _frequencies(config)


def _sources(folder: Path) -> dict[str, Source]:
    """The weights of the language model, under the names of one that stands alone."""
    found = {}
    for file in fingerprint.weight_files(folder):
        for stored, entry in fingerprint.header(file)[1].items():
            name = plain(stored)
            if name.startswith(_LANGUAGE) and not name.endswith(_NOT_WRITTEN):
                found[name] = Source(file, stored, tuple(entry["shape"]))
    return found


def plain(name: str) -> str:
    """The name of a weight in a language model that stands alone."""
    for prefix, own in _PREFIXES:
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name


def _units(sources: Mapping[str, Source]) -> list[tuple[str, tuple[Source, ...], Make]]:
    """What becomes one tensor each: a weight, the experts of a layer, half of a fused one."""
    found: list[tuple[str, tuple[Source, ...], Make]] = []
    experts: dict[str, dict[int, Source]] = {}
    for name, source in sources.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(f"{match[1]}.{match[3]}.weight", {})[int(match[2])] = source
        elif match := _FUSED.fullmatch(name):
            if match[2] == "down_proj":
                found.append((f"{name}.weight", (source,), _same))
                continue
            for half, part in (("gate_proj", 0), ("up_proj", 1)):
                found.append((f"{match[1]}.{half}.weight", (source,), _half(part)))
        else:
            found.append((name, (source,), _same))
    for name, each in experts.items():
        found.append((name, tuple(each[at] for at in sorted(each)), torch.stack))  # type: ignore[arg-type]
    return found


def _same(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    (only,) = parts
    return only


def _half(part: int) -> Make:
    return lambda parts: parts[0].chunk(2, dim=-2)[part]


def _with_family(make: Make, name: str, config: PreTrainedConfig, family: Family) -> Make:
    layer = name.rpartition(".")[0]
    if family.permuted and layer.endswith(("q_proj", "k_proj")):
        queries = layer.endswith("q_proj")
        heads = config.num_attention_heads if queries else config.num_key_value_heads
        return lambda parts: paired(make(parts), heads)
    if family.linear and (change := gguf_linear.change(name, config)):
        return lambda parts: change(make(parts))
    if family.norm_offset and layer.endswith("norm") and not layer.endswith("linear_attn.norm"):
        return lambda parts: make(parts).float() + family.norm_offset
    return make


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head as llama.cpp rotates them: first halves and second halves in turn."""
    rows = weight.shape[0] // heads
    halves = weight.reshape(heads, 2, rows // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _order(name: str) -> tuple[int, str]:
    found = re.match(r"blk\.(\d+)\.", name)
    return (int(found[1]), name) if found else (-1, name)


def _frequencies(config: PreTrainedConfig) -> list[Target]:
    """Divisors of the rotations' frequencies, of Llama 3.1 and later."""
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") != "llama3":
        return []
    wavelength = (
        2
        * math.pi
        * rotary["rope_theta"]
        ** (torch.arange(0, head_size(config), 2, dtype=torch.float64) / head_size(config))
    )
    low, high, factor = (rotary[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    length = rotary["original_max_position_embeddings"]
    # 0 where a frequency is divided by the factor, 1 where it stays
    smooth = ((length / wavelength - low) / (high - low)).clamp(0, 1)
    factors = (1 / ((1 - smooth) / factor + smooth)).float()
    return [Target("rope_freqs.weight", (), lambda parts: factors)]
