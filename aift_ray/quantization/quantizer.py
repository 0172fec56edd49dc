"""A model folder in, the same model in fewer bits out: a folder that `from_pretrained` loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from aift_ray.errors import ModelError, Problem
from aift_ray.models import hub, load, provenance
from aift_ray.models.bnb.bnb_layers import Quantization, unfit_layers
from aift_ray.quantization.measure import evaluating, logits
from aift_ray.quantization.output_folder import copy_companions

_PROBE = "日本の首都は東京です。"


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def source(name: str, adapter: str | None = None) -> str:
    """The location of a model that can be quantized.

    Args:
        adapter: folder of an adapter that is merged into it first.

    Raises:
        ModelError: there is none of that name, its folder is not whole, it already is
            quantized, or its tokenizer or template are not those that it was trained with.
    """
    location = hub.resolve(name)
    stored = getattr(hub.load_config(location), "quantization_config", None)
    if stored is not None:
        given = stored if isinstance(stored, dict) else stored.to_dict()
        bits = next((b for b in (4, 8) if given.get(f"load_in_{b}bit")), None)
        how = f"{given.get('quant_method')}" + (f", {bits} bits" if bits else "")
        remedy = "give the model that it was made from"
        raise ModelError([Problem(f"model {name}", f"is already quantized ({how})", remedy)])
    hub.check_reach(location, "weights", "tokenizer")
    changed = provenance.changed_prompts(f"model {name}", Path(location))
    if changed:
        raise ModelError(changed)
    if adapter is None:
        return location
    return provenance.opened_as_trained(location, Path(adapter).expanduser())


def stored_dtype(location: str) -> torch.dtype:
    """Dtype of a model's own weights, as its configuration says."""
    found = getattr(hub.load_config(location), "dtype", None)
    return found if isinstance(found, torch.dtype) else torch.float32


def quantize(
    location: str, quantization: Quantization, device: torch.device, folder: Path
) -> PreTrainedModel:
    """Load a model in fewer bits and save it; the model as `from_pretrained(folder)` gives it.

    All weights that stay as they are get `quantization.compute_dtype`.

    Raises:
        ModelError: it has no layer to quantize, or computes infinite or NaN logits.
    """
    if quantization.bits == 4:
        quantization = fitting(location, quantization)
    placement: Any = "auto" if quantization.cpu_offload else {"": device}
    dtype = quantization.compute_dtype
    # plain `from_pretrained` reads experts in the dtype of the rest only
    stored = replace(quantization, repack=True, experts=False)
    model = load.load_model(location, dtype, None, stored, placement, whole=True)
    model.save_pretrained(folder)
    copy_tokenizer(location, folder)
    provenance.record(folder, quantized_from=location)
    check_finite(model, location)
    model.eval()
    return model


def copy_tokenizer(location: str, folder: Path) -> None:
    """Put tokenizer, chat template and generation settings of a model into `folder`."""
    if Path(location).is_dir():
        copy_companions(Path(location), folder)
    else:
        hub.load_tokenizer(location).save_pretrained(str(folder))


def check_finite(model: PreTrainedModel, location: str) -> None:
    """Refuse a model that overflows its dtype, as some do in fp16, with a ModelError."""
    ids = hub.load_tokenizer(location)(_PROBE, return_tensors="pt").input_ids
    with evaluating(model):
        finite = bool(torch.isfinite(logits(model, ids)).all())
    if not finite:
        what = f"computed in {model.dtype} its logits are infinite or NaN"
        remedy = "give compute_dtype torch.bfloat16 or float32 (--compute-dtype bf16 or fp32)"
        raise ModelError([Problem(f"model {location}", what, remedy)])


def fitting(location: str, quantization: Quantization) -> Quantization:
    """The same, but for layers that plain `from_pretrained` could not evaluate on every CPU."""
    outlines = load.outlines_of(location, whole=True)
    unfit = {name for one in outlines for name in unfit_layers(one)}
    usual = {name for one in outlines for name in get_keys_to_not_convert(one)}
    if not unfit - usual:
        return quantization
    return replace(quantization, skipped=tuple(sorted(usual | unfit)))
