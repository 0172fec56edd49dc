"""A model's numbers without torch: of the catalog, or of a folder's config.json and headers."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aift_ray.errors import ModelError, Problem
from aift_ray.models.catalog import TABLES, find, nearest
from aift_ray.planning.model_shape import FAMILIES, Counted, Shape

# layouts that do not follow from a configuration, counted beforehand
COUNTED = TABLES / "counted.json"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"\.experts\.\d+\.")
# what is no part of the language model, or predicts further tokens and is not loaded
_BESIDE = re.compile(r"(^|\.)(vision|visual|audio|multi_modal|mm_|embed_vision|embed_audio)\w*\.")
_NOT_LOADED = re.compile(r"(^|\.)mtp\.|\.rotary_emb\.inv_freq$")
# linear layers by their shape alone, which are none
_NO_LINEAR = re.compile(r"(norm|router|conv1d|A_log|embed|correction)")
# numbers of experts, by the names that families have for them
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# the largest header that safetensors allows
_HEADER = 100_000_000


@dataclass(frozen=True)
class Numbers:
    """What is planned with.

    Attributes:
        config: numbers of the language model, as config.json names them.
        shape: what follows from them, or was counted.
        context: tokens of prompt and answer together at most; None: not known.
        source: where they come from, in words.
    """

    config: Mapping[str, Any]
    shape: Shape
    context: int | None
    source: str


def numbers_of(name: str) -> Numbers:
    """The numbers of a catalog name, a folder, or a Hub id of which this machine has config.json.

    Raises:
        ModelError: there is no such model here, or its files don't say enough.
    """
    entry, folder = find(name), Path(name).expanduser()
    if entry and not folder.is_dir():
        config, kind = entry.config, entry.architecture
        source = "the catalog"
        if kind.model_type in FAMILIES:
            return Numbers(config, Shape.of(config), entry.context, source)
        return Numbers(config, _counted(kind.parameters), entry.context, source)
    cached = None if folder.is_dir() else _in_cache(name)
    if not (folder.is_dir() or cached):
        raise ModelError([_missing(name)])
    return _of_folder(name, cached or folder)


def table() -> dict[str, Any]:
    """The layouts of `counted.json` by number of parameters."""
    found: dict[str, Any] = json.loads(COUNTED.read_text("utf-8"))
    return found


def written(shape: Shape) -> dict[str, Any]:
    """A counted shape as the table has it."""
    assert shape.counted
    lists = {
        name: [[*sides, number] for sides, number in Counter(getattr(shape.counted, name)).items()]
        for name in ("linear", "adapted", "experts")
    }
    names = ("hidden", "layers", "feed_forward", "vocabulary", "tied")
    counted = {name: getattr(shape.counted, name) for name in ("loose", "beside", "active")}
    return {name: getattr(shape, name) for name in names} | counted | lists


def _counted(parameters: int) -> Shape:
    row = dict(table()[str(parameters)])
    lists: dict[str, Any] = {
        name: tuple(tuple(sides) for *sides, number in row.pop(name) for _ in range(number))
        for name in ("linear", "adapted", "experts")
    }
    counted = Counted(**lists, **{name: row.pop(name) for name in ("loose", "beside", "active")})
    return Shape(heads=1, kv_heads=1, head_size=row["hidden"], **row, counted=counted)


def _missing(name: str) -> Problem:
    near = nearest(name)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    if not _HUB_ID.fullmatch(name):
        what = "missing: there is no such folder or catalog name"
        return Problem(f"model {name}", what, hint or "give a catalog name or a folder")
    what = "is not in the catalog, and its config.json is not on this machine"
    remedy = f"hf download {name} config.json" + (f"; {hint}" if hint else "")
    return Problem(f"model {name}", what, remedy)


def _in_cache(name: str) -> Path | None:
    """The snapshot of a Hub id that this machine has."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
    folder = cache / f"models--{name.replace('/', '--')}"
    head = folder / "refs" / "main"
    if not (_HUB_ID.fullmatch(name) and head.is_file()):
        return None
    found = folder / "snapshots" / head.read_text("utf-8").strip()
    return found if (found / "config.json").is_file() else None


def _of_folder(name: str, folder: Path) -> Numbers:
    where = f"model {name}"
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = (
            "the folder holds an adapter, no model" if adapter else "the folder has no config.json"
        )
        remedy = "give the base model as --model" if adapter else "give a model's folder"
        raise ModelError([Problem(where, f"the folder {what}", remedy)])
    try:
        whole = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError([Problem(where, f"its config.json can't be read: {error}")]) from None
    if not isinstance(whole, dict):
        raise ModelError([Problem(where, "its config.json is no object")])
    stored = whole.get("quantization_config")
    if stored:
        what = "its weights are quantized already, and it is planned from those that are not"
        raise ModelError([Problem(where, what, "give the model that it was made of")])
    config = next((whole[n] for n in ("text_config", "llm_config") if n in whole), whole)
    context = config.get("max_position_embeddings")
    try:
        if whole.get("model_type") in FAMILIES:
            return Numbers(config, Shape.of(config), context, "its config.json")
        return Numbers(config, _from_headers(where, folder, config), context, "its files' headers")
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        what = f"its config.json does not say enough: {error!r}"
        raise ModelError([Problem(where, what, "copy the model's own config.json")]) from None


def _from_headers(where: str, folder: Path, config: Mapping[str, Any]) -> Shape:
    """Count the tensors of a folder of a family whose configuration does not say their sizes."""
    sizes = dict(_tensors(where, folder))
    if not sizes:
        kind = config.get("model_type")
        what = f"the sizes of a {kind} do not follow from config.json, and there are no weights"
        raise ModelError([Problem(where, what, "download the model, or take one of the catalog")])
    sizes = {name: size for name, size in sizes.items() if not _NOT_LOADED.search(name)}
    beside = sum(math.prod(size) for name, size in sizes.items() if _BESIDE.search(name))
    own = {name: size for name, size in sizes.items() if not _BESIDE.search(name)}
    linear, stacks, last, tables = [], Counter[tuple[str, int, int]](), 0, []
    routed = next((config[n] for n in _EXPERTS if config.get(n)), None)
    for name, size in own.items():
        found = _BLOCK.search(name)
        if not found:
            tables += [size] if len(size) == 2 else []
            continue
        last = max(last, int(found[1]))
        if len(size) == 3 and size[0] > 1 and min(size[1:]) > 1 and "conv" not in name:
            stacks[name, size[2], size[1]] += size[0]
        elif len(size) == 2 and _EXPERT.search(name):
            stacks[_EXPERT.sub(".experts.", name), size[1], size[0]] += 1
        elif size[:1] == (routed,) and name.endswith("gate.weight"):
            # chooses experts
            continue
        elif len(size) == 2 and name.endswith(".weight") and not _NO_LINEAR.search(found[2]):
            linear.append((size[1], size[0]))
    experts = tuple((number, a, b) for (_, a, b), number in stacks.items())
    inside = sum(a * b for a, b in linear) + sum(map(math.prod, experts))
    vocabulary, hidden = max(tables, key=math.prod)
    return Shape(
        hidden=hidden,
        layers=last + 1,
        heads=1,
        kv_heads=1,
        head_size=hidden,
        feed_forward=max((b for _, b in linear), default=hidden),
        vocabulary=vocabulary,
        tied=sum(size == (vocabulary, hidden) for size in tables) < 2,
        counted=Counted(
            linear=tuple(linear),
            adapted=tuple(linear),
            loose=sum(map(math.prod, own.values())) - inside,
            beside=beside,
            experts=experts,
            active=config.get("num_experts_per_tok") or config.get("top_k_experts") or 1,
        ),
    )


def _tensors(where: str, folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a folder's safetensors files, from their headers."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                if length > _HEADER:
                    raise ValueError("its header is too long")
                header = json.loads(opened.read(length))
            found = {name: one["shape"] for name, one in header.items() if "shape" in one}
        except (OSError, ValueError, struct.error, AttributeError, TypeError) as error:
            what = f"{file.name} is damaged: {error}"
            raise ModelError([Problem(where, what, "copy it again")]) from None
        yield from ((name, tuple(shape)) for name, shape in found.items())
