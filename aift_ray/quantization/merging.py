"""An adapter made part of the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from aift_ray.models import loading, provenance
from aift_ray.models.quantized import Quantization
from aift_ray.quantization.folder import copy_companions
from aift_ray.quantization.quantizer import check_finite, copy_tokenizer


def load(
    location: str,
    adapter: Path | None,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
) -> torch.nn.Module:
    """A model with an adapter on top of its weights, or without one, ready to evaluate."""
    model = loading.load_model(location, dtype, None, quantization, {"": device})
    found = PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    found.eval()
    return found


def merge(
    location: str, adapter: Path, dtype: torch.dtype, device: torch.device, folder: Path
) -> torch.nn.Module:
    """Write the model with the adapter merged into its weights; the model.

    Tokenizer, chat template and generation settings are the adapter's where it has them: they are
    what it was trained with.

    Raises:
        ModelError: the merged model computes infinite or NaN logits.
    """
    # safe_merge refuses weights that are not finite
    model = load(location, adapter, dtype, device).merge_and_unload(safe_merge=True)  # type: ignore[operator]
    model.save_pretrained(folder)
    copy_tokenizer(location, folder)
    copy_companions(adapter, folder)
    provenance.record(folder)
    check_finite(model, str(folder))
    merged: torch.nn.Module = model.eval()
    return merged
