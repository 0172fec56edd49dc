"""From hidden states to logits, by the code of the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from aift_ray.models.decoder import decoder_of
from aift_ray.parallel.dtensor_utils import without_partitioning
from aift_ray.parallel.torch_compat import bare_copy
from aift_ray.utils.forward_compat import restore_forward


class LmHead:
    """Gives logits for hidden states.

    Models scale or cap their logits, or scale the states before the output layer. Their own
    forward is called, with hidden states in place of the body that would make them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.layer: nn.Module = model.get_output_embeddings()
        self._decoder = decoder_of(model)
        names = {id(module): name for name, module in model.named_modules()}
        self._body = names[id(self._decoder)].partition(".")[0]

    def __call__(
        self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits in fp32; with `weights` in place of the model's own of those names."""
        whole = self._model.get_submodule(self._body)
        model = self._around(_Body(hidden.flatten(0, -2)[None], whole, self._decoder))
        inputs = {"inputs_embeds": hidden, "use_cache": False}
        if hasattr(model.config, "output_router_logits"):
            # their loss is added to that of the whole
            inputs["output_router_logits"] = False
        output = functional_call(model, dict(weights or {}), (), inputs)
        logits: torch.Tensor = output.logits.reshape(*hidden.shape[:-1], -1)
        return logits.float()

    def device(self, states: torch.Tensor) -> torch.device:
        """Where it computes; that of `states` where its weights are shared out or elsewhere."""
        return next((p.device for p in self.layer.parameters()), states.device)

    def trained(self) -> dict[str, torch.Tensor]:
        """The weights beside the body that are trained, by name."""
        named = self._around(nn.Identity()).named_parameters()
        return {name: p for name, p in named if p.requires_grad}

    def _around(self, body: nn.Module) -> nn.Module:
        """The model with another body, and without what was put around the whole of it."""

        def child(name: str, part: nn.Module | None) -> nn.Module | None:
            return body if name == self._body else part and without_partitioning(part)

        model = bare_copy(self._model, child)
        restore_forward(model)
        return model


class TemperedHead:
    """A head whose logits are divided by a temperature."""

    def __init__(self, head: LmHead, temperature: float) -> None:
        self._head, self._temperature = head, temperature
        self.trained = head.trained

    def __call__(
        self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        logits = self._head(hidden, weights)
        return logits if self._temperature == 1 else logits / self._temperature


class _Body(nn.Module):
    """In place of a model's body: gives hidden states, (1, positions, width)."""

    def __init__(self, states: torch.Tensor, body: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        # not as attributes: they would be registered as its own
        self._states, self._stands_for = states, (body, decoder)

    def __getattr__(self, name: str) -> Any:
        # a few ask a part of the body, or keep the scale of their logits in it
        body, decoder = self.__dict__["_stands_for"]
        found = getattr(body, name)
        is_part = isinstance(found, nn.Module) and any(m is decoder for m in found.modules())
        made: Any = _Body(self._states, found, decoder) if is_part else found
        return made

    def forward(self, *args: object, **kwargs: object) -> _States:
        """The states, whatever is asked."""
        return _States(last_hidden_state=self._states)


class _States(BaseModelOutputWithPast):
    """A body's output of which all but the hidden states is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
