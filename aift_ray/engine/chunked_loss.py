"""Cross-entropy of a large vocabulary, of which a few hundred positions are in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy

# positions whose logits are in memory at once: 256 x 262,144 x 4 bytes are 256 MiB
CHUNK = 256


def summed_cross_entropy(
    head: Any,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    note: Callable[[slice, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Cross-entropy of `head(hidden)`, summed.

    Args:
        head: hidden states (n, width) to logits (n, vocabulary).
        hidden: (targets, width).
        targets: (targets,), token ids.
        note: called with each piece, its logits and all targets.
    """
    if not torch.is_grad_enabled():
        total = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(targets), CHUNK):
            piece = slice(start, start + CHUNK)
            logits = head(hidden[piece])
            total = total + cross_entropy(logits, targets[piece], reduction="sum")
            if note is not None:
                note(piece, logits, targets)
        return total
    apply: Any = _ChunkedLoss.apply
    loss: torch.Tensor = apply(head, hidden, targets, note, *head.trained().values())
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
        ctx: Any,
        head: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        note: Any,
        *weights: torch.Tensor,
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
            if note is not None:
                note(piece, logits, targets)
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
        return None, grad_hidden.mul_(scale), None, None, *[grad.mul_(scale) for grad in grads]
