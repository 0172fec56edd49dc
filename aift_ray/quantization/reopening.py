"""Can plain transformers read a family back from a folder in fewer bits, as it was written?

A tiny model of the same architecture answers it in a second or two, before the weights of the model
itself are loaded.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION

from aift_ray.errors import ModelError
from aift_ray.models import load
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.families.refusals import check_layers, has_experts, is_llama_like, refusal
from aift_ray.models.families.tiny_model import VOCABULARY, quiet, random_model, shrunk
from aift_ray.models.lora.target_modules import check_quantizable
from aift_ray.quantization import quantizer

_TOLERANCE = 1e-2
_TOKENS = 16


def check_family(model: PreTrainedModel, bits: int) -> None:
    """Refuse a family of which no folder in fewer bits can be opened.

    Raises:
        ModelError: with the reason.
    """
    check_layers(model.config)
    check_quantizable(model, "leave it in 16 bits (--bits 16 merges an adapter)")
    # reading a folder in fewer bits, transformers puts others in their place
    replaced = [type(one).__name__ for one in model.modules()]
    replaced = [name for name in replaced if name in MODULES_TO_PATCH_FOR_QUANTIZATION]
    kind = model.config.model_type
    if replaced:
        what = f"transformers can't read {replaced[0]} back from a folder in fewer bits"
        layout = "serve it with --load-in 4bit, or merge an adapter with --bits 16"
        raise ModelError([refusal(kind, what, layout, has_experts)])
    wrong = "" if is_llama_like(kind) else difference(model.config, bits)
    if wrong:
        other = difference(model.config, 12 - bits)
        layout = "--bits 16 merges an adapter" if other else f"give --bits {12 - bits}"
        what = f"transformers can't read it back from a folder in {bits} bits: {wrong}"
        raise ModelError([refusal(kind, what, layout, is_llama_like)])


def difference(config: PreTrainedConfig, bits: int) -> str:
    """What is wrong with a folder of the family in `bits` bits, in words; empty where nothing is.

    Families of which no tiny model can be made are not tried.
    """
    text = config.get_text_config(decoder=True)
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return ""
    with quiet(), tempfile.TemporaryDirectory() as name:
        own, written = Path(name, "own"), Path(name, "written")
        try:
            random_model(shrunk(text), "eager").save_pretrained(own)
            ids = torch.randint(4, VOCABULARY, (1, _TOKENS), generator=torch.manual_seed(1))
        except Exception:
            return ""
        try:
            return _reopened(own, written, ids, bits)
        except ModelError:
            # the tiny model's matrices are too small for so few bits
            return ""
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


@torch.no_grad()
def _reopened(own: Path, written: Path, ids: torch.Tensor, bits: int) -> str:
    asked = Quantization(4 if bits == 4 else 8, torch.float32)
    stored = replace(asked, repack=True, experts=False)
    stored = quantizer.fitting(str(own), stored) if bits == 4 else stored
    model = load.load_model(str(own), torch.float32, None, stored).eval()
    model.save_pretrained(written)
    wanted = model(ids).logits
    found = AutoModelForCausalLM.from_pretrained(written).eval()(ids).logits
    apart, size = float((found - wanted).abs().max()), float(wanted.abs().max())
    return "" if apart <= _TOLERANCE * max(1.0, size) else f"its logits differ by {apart:.1e}"
