"""Log-probabilities of a large vocabulary, with a few hundred positions in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch.autograd.function import FunctionCtx
from torch.nn.functional import cross_entropy

Note = Callable[[slice, torch.Tensor, torch.Tensor], None]

# positions whose logits are in memory at once: 256 x 262,144 x 4 bytes are 256 MiB
CHUNK = 256


class OutputLayer(Protocol):
    """From hidden states (n, width) to logits (n, vocabulary) in fp32."""

    def __call__(
        self, hidden: torch.Tensor, weights: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits; with `weights` in place of its own of those names."""

    def trained(self) -> dict[str, torch.Tensor]:
        """Its weights that are trained, by name."""


class _LossContext(FunctionCtx):
    """What a forward pass keeps for the backward pass."""

    saved_tensors: tuple[torch.Tensor, ...]
    head: OutputLayer
    hidden: torch.Tensor
    targets: torch.Tensor
    narrow: dict[str, torch.Tensor]
    autocast: tuple[str, torch.dtype, bool]
    last: tuple[torch.Tensor, torch.Tensor] | None


def summed_cross_entropy(
    head: OutputLayer,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    note: Note | None = None,
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


def log_probabilities(
    head: OutputLayer,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    entropies: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probability of each target by `head(hidden)`, in fp32, (targets,).

    The gradient of any function of them can be taken, with the logits of one piece in memory at a
    time. With a frozen output layer each piece's gradient is taken in the forward pass and scaled
    in the backward pass. The gradient of a trained output layer needs the scale first: the logits
    of all pieces but the last are made again in the backward pass.

    Args:
        head, hidden, targets: as of `summed_cross_entropy`.
        entropies: (targets,), takes the entropy of the distribution at each target, in nats;
            untouched without gradients.
    """
    if not torch.is_grad_enabled():
        found = [
            -cross_entropy(head(states), ids, reduction="none")
            for states, ids in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        ]
        return torch.cat(found) if found else hidden.new_zeros(0, dtype=torch.float32)
    trained = head.trained()
    apply: Any = _LogProbabilities.apply if trained else _FrozenLogProbabilities.apply
    each: torch.Tensor = apply(head, hidden, targets, entropies, *trained.values())
    return each


def _computed(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`weight` in the dtype that autocast multiplies in; itself where there is none."""
    if not torch.is_autocast_enabled(device.type):
        return weight.detach()
    return weight.detach().to(torch.get_autocast_dtype(device.type))


def _losses_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, entropies: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy of each target, and the gradient of their sum by the logits.

    Beside the logits (n, vocabulary) one tensor of their size is held, with entropies two; autograd
    holds three.
    """
    logps = torch.log_softmax(logits.detach(), -1)
    places = targets.unsqueeze(-1)
    losses = -logps.gather(-1, places).squeeze(-1)
    if entropies is None:
        gradient = logps.exp_()
    else:
        gradient = logps.exp()
        entropies.copy_(_entropies(logps, gradient))
    gradient.scatter_add_(-1, places, gradient.new_full(places.shape, -1.0))
    return losses, gradient


def _entropies(logps: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Of distributions, (n,); `logps` (n, vocabulary) are used up."""
    # a token that can't be sampled counts 0, and not 0 x -inf
    return logps.clamp_(min=torch.finfo(logps.dtype).min).mul_(probabilities).sum(-1).neg_()


@torch.no_grad()
def _note_entropies(entropies: torch.Tensor | None, piece: slice, logits: torch.Tensor) -> None:
    if entropies is not None:
        logps = logits.detach().log_softmax(-1)
        entropies[piece] = _entropies(logps, logps.exp())


class _ChunkedLoss(torch.autograd.Function):
    """Takes the gradient of each piece in the forward pass and keeps only that."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        head: OutputLayer,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        note: Note | None,
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
            losses, grad_logits = _losses_and_gradient(logits, targets[piece])
            total += losses.sum()
            if note is not None:
                note(piece, logits.detach(), targets)
            grad_states, *grad_weights = torch.autograd.grad(
                logits, [states, *narrow.values()], grad_logits, materialize_grads=True
            )
            del logits, grad_logits
            grad_hidden[piece] = grad_states
            for grad, part in zip(grads, grad_weights, strict=True):
                grad += part
        ctx.save_for_backward(grad_hidden, *grads)
        return total

    @staticmethod
    def backward(ctx: _LossContext, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = outputs
        grad_hidden, *grads = ctx.saved_tensors
        # in place: the tensors belong to this function alone
        return None, grad_hidden.mul_(scale), None, None, *[grad.mul_(scale) for grad in grads]


class _FrozenLogProbabilities(torch.autograd.Function):
    """Takes the gradient of each log-probability by its own hidden state in the forward pass.

    No other hidden state acts on a log-probability, so whatever is computed from them only scales
    these gradients.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        head: Callable[[torch.Tensor], torch.Tensor],
        hidden: torch.Tensor,
        targets: torch.Tensor,
        entropies: torch.Tensor | None,
    ) -> torch.Tensor:
        each = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        for start in range(0, len(targets), CHUNK):
            piece = slice(start, start + CHUNK)
            with torch.enable_grad():
                states = hidden[piece].detach().requires_grad_()
                logits = head(states)
            noted = None if entropies is None else entropies[piece]
            losses, grad_logits = _losses_and_gradient(logits, targets[piece], noted)
            each[piece] = -losses
            (grad_hidden[piece],) = torch.autograd.grad(logits, states, grad_logits.neg_())
            del logits, grad_logits
        ctx.save_for_backward(grad_hidden)
        return each

    @staticmethod
    def backward(ctx: _LossContext, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = outputs
        (grad_hidden,) = ctx.saved_tensors
        # in place: the tensor belongs to this function alone
        return None, grad_hidden.mul_(scale.unsqueeze(-1)), None, None


class _LogProbabilities(torch.autograd.Function):
    """Keeps the logits of the last piece for the backward pass, and hidden states of the others."""

    @staticmethod
    def forward(
        ctx: _LossContext,
        head: OutputLayer,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        entropies: torch.Tensor | None,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        kind = hidden.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.head, ctx.hidden, ctx.targets = head, hidden.detach(), targets
        width = partial(_computed, device=hidden.device)
        ctx.narrow = {n: width(w).requires_grad_() for n, w in head.trained().items()}
        each = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        last = max(len(targets) - 1, 0) // CHUNK * CHUNK
        for start in range(0, last, CHUNK):
            piece = slice(start, start + CHUNK)
            logits = head(ctx.hidden[piece])
            each[piece] = -cross_entropy(logits, targets[piece], reduction="none")
            _note_entropies(entropies, piece, logits)
            del logits
        ctx.last = _piece(ctx, slice(last, None), entropies) if len(targets) else None
        if ctx.last is not None:
            each[last:] = ctx.last[1].detach()
        return each

    @staticmethod
    def backward(ctx: _LossContext, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (scale,) = outputs
        kind, dtype, enabled = ctx.autocast
        grad_hidden = torch.zeros_like(ctx.hidden)
        grads = [torch.zeros_like(w, dtype=torch.float32) for w in ctx.narrow.values()]
        # the last piece first: its logits are there, and go before others are made
        for start in range(max(len(scale) - 1, 0) // CHUNK * CHUNK, -1, -CHUNK):
            piece = slice(start, start + CHUNK)
            held, ctx.last = ctx.last, None
            if held is None and len(scale):
                with torch.autocast(kind, dtype, enabled):
                    held = _piece(ctx, piece)
            if held is None:
                break
            states, found = held
            inputs = [states, *ctx.narrow.values()]
            grad_states, *parts = torch.autograd.grad(
                found, inputs, scale[piece], materialize_grads=True
            )
            del held, states, found
            grad_hidden[piece] = grad_states
            for grad, part in zip(grads, parts, strict=True):
                grad += part
        del ctx.narrow, ctx.hidden
        return None, grad_hidden, None, None, *grads


def _piece(
    ctx: _LossContext, piece: slice, entropies: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states of a piece, and its log-probabilities, of which gradients can be taken."""
    with torch.enable_grad():
        states = ctx.hidden[piece].detach().requires_grad_()
        logits = ctx.head(states, ctx.narrow)
        _note_entropies(entropies, piece, logits)
        return states, -cross_entropy(logits, ctx.targets[piece], reduction="none")
