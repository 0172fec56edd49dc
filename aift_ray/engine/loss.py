"""The loss of a micro-batch: the sum over its supervised tokens, logits made only for them.

The logits of a large vocabulary are the largest tensor of a step. They are made a few hundred
positions at a time, and each piece's gradient is taken at once, so that no two pieces are ever
in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from aift_ray.data.batches import Batch
from aift_ray.models.decoder import causal_model, decoder_of

# positions whose logits are in memory at once: 256 x 262,144 x 4 bytes are 256 MiB
CHUNK = 256

Head = Callable[[torch.Tensor], torch.Tensor]


class LossModule(nn.Module):
    """A causal language model whose forward gives a summed loss.

    Args:
        model: a transformers model, with or without PEFT's adapters.
        noise: NEFTune's alpha: noise on the embeddings in training mode; 0: none.
    """

    def __init__(self, model: nn.Module, noise: float = 0.0) -> None:
        super().__init__()
        self.model, self._noise = model, noise
        inner = causal_model(model)
        softcap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
        # the body alone, so that no logits are made for positions that are not trained
        self._body = [decoder_of(inner)]
        self._embeddings = [inner.get_input_embeddings()]
        self._head = [_Head(inner.get_output_embeddings(), softcap)]

    def forward(self, batch: Batch) -> torch.Tensor:
        """Cross-entropy summed over the targets of `batch`; a scalar in fp32."""
        return self.loss(self.states(batch), batch)

    def states(self, batch: Batch, embedded: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of `batch`, (rows, tokens, width).

        Args:
            embedded: what the blocks are given in place of embedded tokens, of the same shape.
        """
        alpha = self._noise if self.training else 0.0
        with noisy(self._embeddings[0], alpha, batch):
            output = self._body[0](**model_inputs(batch, embedded))
        states: torch.Tensor = output.last_hidden_state
        return states

    def loss(self, states: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss of `batch` from its hidden states, wherever the output layer lies."""
        device = self._head[0].device(states)
        chosen = states.flatten(0, 1).index_select(0, batch.sources.to(states.device))
        total = summed_cross_entropy(self._head[0], chosen.to(device), batch.targets.to(device))
        return total.to(batch.ids.device)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) in fp32 of hidden states (..., width)."""
        return self._head[0](states)

    def generate(self, **inputs: Any) -> torch.Tensor:
        """Token ids that the model generates; a strategy may have to see this call too."""
        model: Any = self.model
        output: torch.Tensor = model.generate(**inputs)
        return output

    def whole_logits_loss(self, batch: Batch) -> torch.Tensor:
        """The same loss from the model's own forward and all logits; slow, to compare with."""
        logits = causal_model(self.model)(**model_inputs(batch)).logits
        chosen = logits.flatten(0, 1).index_select(0, batch.sources)
        return cross_entropy(chosen.float(), batch.targets, reduction="sum")


def model_inputs(batch: Batch, embedded: torch.Tensor | None = None) -> dict[str, Any]:
    """Keyword arguments of a transformers forward for `batch`, or for its `embedded` tokens."""
    given = {"input_ids": batch.ids} if embedded is None else {"inputs_embeds": embedded}
    inputs: dict[str, Any] = given | {"use_cache": False}
    if batch.borders is None:
        return inputs | {"attention_mask": batch.mask}
    longest = batch.longest
    return inputs | {
        "position_ids": batch.positions,
        "cu_seq_lens_q": batch.borders,
        "cu_seq_lens_k": batch.borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


@contextmanager
def noisy(embeddings: nn.Module, alpha: float, batch: Batch) -> Iterator[None]:
    """NEFTune: add uniform noise of at most alpha / sqrt(length x width) to embedded tokens.

    The length is that of a token's own document, however documents are laid out. The numbers
    come from torch's generator, which the loop seeds at each micro-step.
    Source: Jain et al. 2023, arXiv:2310.05914.
    """
    if not alpha:
        yield
        return
    # (rows, longest), or (1, tokens): tokens of the document that each belongs to
    lengths = batch.document_lengths()

    def add(module: nn.Module, inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        bound = alpha * (lengths * embedded.shape[-1]).rsqrt().unsqueeze(-1)
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * bound.to(embedded.dtype)

    hook = embeddings.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


class _Head:
    """The output layer with what models do to its logits."""

    def __init__(self, layer: nn.Module, softcap: float | None) -> None:
        self.layer, self.softcap = layer, softcap

    def __call__(
        self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits in fp32; with `weights` in place of the layer's own of those names."""
        logits: torch.Tensor = functional_call(self.layer, dict(weights or {}), (hidden,)).float()
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def device(self, states: torch.Tensor) -> torch.device:
        """Where it computes; that of `states` where its weights are shared out or elsewhere."""
        return next((p.device for p in self.layer.parameters()), states.device)

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self.layer.named_parameters() if p.requires_grad}


def summed_cross_entropy(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `head(hidden)`, summed.

    Args:
        head: hidden states (n, width) to logits (n, vocabulary).
        hidden: (targets, width).
        targets: (targets,), token ids.
    """
    if not torch.is_grad_enabled():
        pieces = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        total = hidden.new_zeros((), dtype=torch.float32)
        for states, ids in pieces:
            total = total + cross_entropy(head(states), ids, reduction="sum")
        return total
    apply: Any = _ChunkedLoss.apply
    loss: torch.Tensor = apply(head, hidden, targets, *head.trained().values())
    return loss


def _computed(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`weight` in the dtype that autocast multiplies in; itself where there is none."""
    if not torch.is_autocast_enabled(device.type):
        return weight.detach()
    return weight.detach().to(torch.get_autocast_dtype(device.type))


class _ChunkedLoss(torch.autograd.Function):
    """Takes the gradient of each piece in the forward pass and keeps only that."""

    @staticmethod
    def forward(
        ctx: Any, head: Any, hidden: torch.Tensor, targets: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        # brought to the width of the computation once for all pieces; summed in fp32
        width = partial(_computed, device=hidden.device)
        narrow = {n: width(w).requires_grad_() for n, w in head.trained().items()}
        grads = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        for start in range(0, len(targets), CHUNK):
            piece = slice(start, start + CHUNK)
            with torch.enable_grad():
                states = hidden[piece].detach().requires_grad_()
                logits = head(states, narrow)
                loss = cross_entropy(logits, targets[piece], reduction="sum")
            grad_states, *grad_weights = torch.autograd.grad(loss, [states, *narrow.values()])
            total += loss.detach()
            del logits, loss
            grad_hidden[piece] = grad_states
            for grad, part in zip(grads, grad_weights, strict=True):
                grad += part
        ctx.save_for_backward(grad_hidden, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (scale,) = outputs
        grad_hidden, *grads = ctx.saved_tensors
        # in place: the tensors belong to this function alone
        return None, grad_hidden.mul_(scale), None, *[grad.mul_(scale) for grad in grads]
