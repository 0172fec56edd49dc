"""Is a family of models computed here as transformers' eager forward computes each text alone?

A tiny model of the same architecture answers it, in seconds on a CPU: loss and gradients of texts
packed in one row, or padded, and greedy answers, are held against `eager` on one text at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from aift_ray import __version__
from aift_ray.engine.tiny_comparison import EagerResults, Method, Unfit, draws, line_of_error
from aift_ray.errors import ModelError
from aift_ray.models.families.family_support import (
    Attention,
    Refusal,
    Support,
    attends,
    family_of,
    known,
    layer_kinds,
)
from aift_ray.models.families.refusals import refusal
from aift_ray.models.families.tiny_model import quiet, random_model, shrunk


def supported(config: PreTrainedConfig, method: Method, cache: Path) -> Support:
    """How the family of `config` is computed: as the table says, or else as is measured now.

    Args:
        cache: folder that keeps what was measured, by configuration and library versions.

    Raises:
        ModelError: no way equals transformers' eager forward; with the difference.
    """
    family = family_of(config)
    found = known(config) or _cached(config, method, cache)
    if method == "qlora" and isinstance(found, Support) and not found.qlora:
        found = Refusal("with 4 bits it differs", layout="train it with --method lora")
    if isinstance(found, Refusal):
        what = f"it can't be computed as transformers' eager forward computes it: {found.why}"
        layout = found.layout or _instead(config, method, cache)
        raise ModelError([refusal(family, what, layout)])
    return found


def _instead(config: PreTrainedConfig, method: Method, cache: Path) -> str | None:
    """A method by which a family that is refused with 4 bits is computed."""
    if method == "qlora" and isinstance(_cached(config, "lora", cache), Support):
        return "train it with --method lora"
    return None


def _cached(config: PreTrainedConfig, method: Method, cache: Path) -> Support | Refusal:
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    versions["aift-ray"] = __version__
    try:
        tiny = shrunk(config).to_dict()
    except Exception:
        # it says why
        return measure(config, method)
    facts = json.dumps([tiny, method, versions], sort_keys=True, default=str)
    file = cache / "families" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Refusal(**kept) if "why" in kept else Support(**kept)
    found = measure(config, method)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(asdict(found)), encoding="utf-8")
    scratch.replace(file)
    return found


def measure(config: PreTrainedConfig, method: Method) -> Support | Refusal:
    """Try the ways of computing a family, the fastest first; the first that is right."""
    with quiet():
        try:
            tiny = shrunk(config)
            wanted = EagerResults.of(tiny, method)
        except Unfit as error:
            return Refusal(str(error), computed=False, layout=error.layout)
        except ModelError as error:
            return Refusal(error.problems[0].what, computed=False)
        except Exception as error:
            why = (
                _without_attention(config)
                or f"no tiny model of it can be computed ({line_of_error(error)})"
            )
            return Refusal(why, computed=False)
        why = ""
        for kind, packed in _ways(tiny):
            try:
                why = wanted.difference(tiny, method, kind, packed)
                if not why:
                    return Support(kind, packed, not wanted.batch_difference(tiny, method, kind))
            except Exception as error:
                why = line_of_error(error)
        # the last way that was tried
        why = f"rows padded, attention {kind}: {why}"
        if draws(tiny):
            why += "; in training its layers draw random numbers, and are not the same without"
    return Refusal(why)


def _ways(tiny: PreTrainedConfig) -> list[tuple[Attention, bool]]:
    """Attention and whether rows are packed."""
    with torch.device("meta"):
        places = {type(module).__module__ for module in random_model(tiny, "eager").modules()}
    # other layers choose among classes of their own
    asks = any(hasattr(sys.modules[place], "ALL_ATTENTION_FUNCTIONS") for place in places)
    ours: list[tuple[Attention, bool]] = [("documents", True), ("documents", False)]
    return [*(ours if asks else ()), ("eager", False)]


def _without_attention(config: PreTrainedConfig) -> str:
    """The reason for which transformers fails on a model of hybrid layers; empty: another one."""
    kinds = layer_kinds(config)
    if not kinds or attends(kinds):
        return ""
    what = f"its layers are all {' or '.join(sorted(kinds))}, and transformers' generate fails"
    return f"{what} for a model without any attention layer"
