"""The quantizer of transformers that holds linear layers and the experts of a mixture in 4 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

from aift_ray.models.bnb import shards_4bit
from aift_ray.models.bnb.experts_4bit import METHOD, STATE, WHOLE, quantized
from aift_ray.models.bnb.shards_4bit import Loading
from aift_ray.models.families.experts import expert_parameters

if TYPE_CHECKING:
    from bitsandbytes.nn.modules import Params4bit


class _Quantize(Bnb4bitQuantize):
    """Quantizes each stack of experts as soon as it is read."""

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], model: PreTrainedModel | None = None, **more: Any
    ) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        how = shards_4bit.present()
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            weight = weight.to(how.device) if how else weight
            if name in self.hf_quantizer.experts(model):
                found[name] = self._of_experts(weight, how)
                continue
            found |= super().convert({name: weight}, model=model, **more)
            if how:
                assert model is not None
                owner, own = name.rsplit(".", 1)
                _keep_shard(model.get_submodule(owner), own, cast("Params4bit", found[name]), how)
        return found

    def _of_experts(self, weight: torch.Tensor, how: Loading | None) -> nn.Parameter:
        config = self.hf_quantizer.quantization_config
        kind, double = config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant
        data, state = quantized(weight, kind, double)
        rows = len(data)
        if how:
            data = how.shard(data)
            state.to("cpu")
        parameter = nn.Parameter(data, requires_grad=False)
        setattr(parameter, STATE, state)
        setattr(parameter, WHOLE, rows)
        return parameter


def _keep_shard(layer: nn.Module, name: str, weight: Params4bit, how: Loading) -> None:
    """Leave of a freshly quantized weight of a linear layer the shard of this worker."""
    rows = len(weight)
    weight.data = how.shard(weight.data)
    # the layer's own is the same
    assert weight.quant_state is not None
    weight.quant_state.to("cpu")
    if len(weight) != rows:
        shards_4bit.note(layer, name, rows)


@register_quantizer(METHOD)
class _Quantizer(Bnb4BitHfQuantizer):
    def experts(self, model: PreTrainedModel) -> set[str]:
        """Names of the weights of experts, as they were before the first was quantized."""
        if not hasattr(self, "_experts"):
            self._experts = set(expert_parameters(model))
        return self._experts

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **more: Any
    ) -> bool:
        experts = param_name in self.experts(model)
        return experts or super().param_needs_quantization(model, param_name, **more)

    def get_quantize_ops(self) -> _Quantize:
        return _Quantize(self)  # type: ignore[no-untyped-call]
