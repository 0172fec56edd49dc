"""The loss of a micro-batch: the sum over its supervised tokens, logits made only for them.

The logits of a large vocabulary are the largest tensor of a step. They are made a few hundred
positions at a time, and each piece's gradient is taken at once, so that no two pieces are ever
in memory together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from transformers.modeling_outputs import CausalLMOutputWithPast

from aift_ray.config import GRPOConfig
from aift_ray.data.collate import MicroBatch
from aift_ray.data.context_share import ContextChunk
from aift_ray.engine.chunked_loss import log_probabilities, summed_cross_entropy
from aift_ray.engine.comparison import compare
from aift_ray.engine.grpo.policy_loss import policy_loss
from aift_ray.engine.lm_head import LmHead, TemperedHead
from aift_ray.engine.objectives import Objective
from aift_ray.engine.precision import ROUNDED
from aift_ray.engine.set_losses import SetLosses
from aift_ray.models.attention.packed_documents import DividedRow, PackedDocuments, packed
from aift_ray.models.decoder import causal_model, decoder_of
from aift_ray.models.families.router_loss import router_loss
from aift_ray.models.families.sequence_classifier import last_tokens
from aift_ray.parallel.context_parallel import ContextGroup
from aift_ray.parallel.protocol import StageModel

Head = Callable[[torch.Tensor], torch.Tensor]


class LossModule(StageModel):
    """A causal language model whose forward gives a summed loss.

    Args:
        model: a transformers model, with or without PEFT's adapters.
        noise: NEFTune's alpha: noise on the embeddings in training mode; 0: none.
        objective: how answers are compared; None: they are trained.
        policy: how generated completions are trained; None: there are none.
    """

    def __init__(
        self,
        model: nn.Module,
        noise: float = 0.0,
        objective: Objective | None = None,
        policy: GRPOConfig | None = None,
    ) -> None:
        super().__init__()
        self.model, self._noise, self._objective = model, noise, objective
        self._policy = policy
        inner = causal_model(model)
        # the body alone, so that no logits are made for positions that are not trained
        self._body = [decoder_of(inner)]
        self._embeddings = [inner.get_input_embeddings()]
        scores = objective is not None and objective.scored
        self._head = [] if scores else [LmHead(inner)]
        # a wrapper of PEFT may take its place, by this name
        self._scores: list[Any] = [inner] if scores else []
        self.routers = router_loss(model)
        self._router_logits: tuple[torch.Tensor, ...] = ()

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """Cross-entropy summed over the targets of `batch`, and in training the routers' loss.

        Where answers are compared, the summed loss of the comparisons, (), or, where the batch asks
        for no more, the log-probabilities of the answers, (documents,). Of generated completions
        their part of the step's loss, (), or the log-probabilities of their tokens, (targets,).
        """
        total = self.loss(self.states(batch), batch)
        logits, self._router_logits = self._router_logits, ()
        if self.routers is None or not self.training:
            return total
        return total + self.routers(logits, batch.attention_mask, batch.weight).to(total.device)

    def states(self, batch: MicroBatch, embedded: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of `batch`, (rows, tokens, width).

        Args:
            embedded: what the blocks are given in place of embedded tokens, of the same shape.
        """
        alpha = self._noise if self.training else 0.0
        inputs = model_inputs(batch, embedded, self._body[0])
        with noisy(self._embeddings[0], alpha, batch), packed(documents(batch, self.context)):
            output = self._body[0](**inputs)
        if self.routers:
            self._router_logits = output.router_logits
        states: torch.Tensor = output.last_hidden_state
        return states

    def loss(self, states: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The loss of `batch` from its hidden states, wherever the output layer lies."""
        if self._scores:
            return self._scored(states, batch)
        device = self._head[0].device(states)
        chosen = states.flatten(0, 1).index_select(0, batch.label_positions.to(states.device))
        targets = batch.labels.to(device)
        if batch.policy is not None:
            return self._sampled(chosen.to(device), targets, batch)
        if batch.compared is not None:
            each = log_probabilities(self._head[0], chosen.to(device), targets)
            return self._compared(each, batch)
        note = SetLosses(batch) if batch.sets is not None else None
        total = summed_cross_entropy(self._head[0], chosen.to(device), targets, note)
        total = total.to(batch.input_ids.device)
        return total if self.context is None else self.context.total(total)

    def _sampled(
        self, states: torch.Tensor, targets: torch.Tensor, batch: MicroBatch
    ) -> torch.Tensor:
        """The loss of generated completions, at the temperature that they were sampled at."""
        assert batch.policy is not None
        assert self._policy is not None
        head, number = TemperedHead(self._head[0], self._policy.temperature), len(targets)
        if torch.is_autocast_enabled("cpu") and states.device.type == "cpu":
            more = -number % ROUNDED
            states, targets = pad(states, (0, 0, 0, more)), pad(targets, (0, more))
        if batch.policy.bare:
            return log_probabilities(head, states, targets)[:number]
        entropies = states.new_zeros(len(targets), dtype=torch.float32)
        each = log_probabilities(head, states, targets, entropies)[:number]
        return policy_loss(self._policy, each, batch.policy, entropies[:number])

    def _compared(self, each: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The loss of answers from the log-probability of each target."""
        told = batch.compared
        assert told is not None
        lengths = told.lengths.to(each.device)
        # summed in one order, unlike index_add on a GPU
        logps = torch.segment_reduce(each, "sum", lengths=lengths) if len(lengths) else each
        if told.bare:
            return logps
        assert self._objective is not None
        return compare(self._objective, logps, batch).to(batch.input_ids.device)

    def _scored(self, states: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """The loss of answers from the score of each, at its last token."""
        told, inner = batch.compared, self._scores[0]
        assert told is not None
        assert self._objective is not None
        places = last_tokens(batch.input_ids, told.ends, inner.config.pad_token_id)
        found = inner.score(states.flatten(0, 1).index_select(0, places))
        return compare(self._objective, found.float().squeeze(-1), batch).to(batch.input_ids.device)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) in fp32 of hidden states (..., width)."""
        return self._head[0](states)

    def generate(self, **inputs: object) -> torch.Tensor:
        """Token ids that the model generates; a strategy may have to see this call too."""
        model: Any = self.model
        output: torch.Tensor = model.generate(**inputs)
        return output

    def decode(self, **inputs: object) -> CausalLMOutputWithPast:
        """The output of the model's own forward, with its cache."""
        output: CausalLMOutputWithPast = self.model(**inputs)
        return output

    def whole_logits_loss(self, batch: MicroBatch) -> torch.Tensor:
        """The same loss from the model's own forward and all logits; slow, to compare with."""
        with packed(documents(batch)):
            logits = causal_model(self.model)(**model_inputs(batch)).logits
        chosen = logits.flatten(0, 1).index_select(0, batch.label_positions)
        return cross_entropy(chosen.float(), batch.labels, reduction="sum")


def documents(batch: MicroBatch, context: ContextGroup | None = None) -> PackedDocuments | None:
    """The documents of a packed `batch`; None where its rows are padded.

    Args:
        context: the workers that divide its row.
    """
    if batch.cu_seqlens is None:
        return None
    laid = batch.cu_seqlens, batch.max_seqlen, batch.input_ids.shape[1]
    if batch.context is not None:
        assert context is not None
        chunks = tuple(_chunk(each) for each in batch.context.chunks)
        return PackedDocuments(*laid, divided=DividedRow(context.gather, chunks))
    return PackedDocuments(*laid, batch.places, batch.own)


def _chunk(chunk: ContextChunk) -> tuple[slice, PackedDocuments]:
    keys = slice(chunk.first_key, chunk.end)
    tokens = chunk.end - chunk.start
    laid = (chunk.cu_seqlens, chunk.max_seqlen, tokens)
    return keys, PackedDocuments(
        *laid, cu_seqlens_k=chunk.cu_seqlens_k, max_seqlen_k=chunk.max_seqlen_k
    )


def model_inputs(
    batch: MicroBatch, embedded: torch.Tensor | None = None, body: nn.Module | None = None
) -> dict[str, Any]:
    """Keyword arguments of a transformers forward for `batch`, or for its `embedded` tokens.

    Args:
        body: who is called, where it may not take the borders of documents.
    """
    given = {"input_ids": batch.input_ids} if embedded is None else {"inputs_embeds": embedded}
    inputs: dict[str, Any] = given | {"use_cache": False}
    if batch.cu_seqlens is None:
        return inputs | {"attention_mask": batch.attention_mask}
    inputs["position_ids"] = batch.position_ids
    # layers know nothing of tokens that documents or workers share; attention does
    apart = batch.places is not None or batch.context is not None
    if apart or (body is not None and not _takes_more(body)):
        return inputs
    longest = batch.max_seqlen
    return inputs | {
        "cu_seq_lens_q": batch.cu_seqlens,
        "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _takes_more(body: nn.Module) -> bool:
    """Whether a forward takes keywords that it does not name, to hand them on to its layers."""
    kinds = {p.kind for p in inspect.signature(body.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


@contextmanager
def noisy(embeddings: nn.Module, alpha: float, batch: MicroBatch) -> Iterator[None]:
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

    def add(module: nn.Module, inputs: object, embedded: torch.Tensor) -> torch.Tensor:
        bound = alpha * (lengths * embedded.shape[-1]).rsqrt().unsqueeze(-1)
        noise = torch.empty_like(embedded).uniform_(-1, 1)
        return embedded + noise * bound.to(embedded.dtype)

    hook = embeddings.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
