"""The loss through output layers of several parts."""

from __future__ import annotations

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from aift_ray.data.collate import MicroBatch
from aift_ray.engine.chunked_loss import log_probabilities, summed_cross_entropy
from aift_ray.engine.loss import LossModule


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_an_output_layer_that_are_one_or_not_used(tied: bool) -> None:
    config = CONFIG_MAPPING["bert"](
        is_decoder=True,
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    ids = torch.randint(0, 60, (2, 7))
    model(input_ids=ids, labels=ids).loss.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    assert any(grad is None for grad in expected.values()) is not tied, "untied, a bias is idle"
    model.zero_grad()
    sources = torch.cat([torch.arange(6), torch.arange(7, 13)])
    positions = torch.arange(7).expand(2, 7)
    batch = MicroBatch(ids, positions, torch.ones_like(ids), None, sources, ids[:, 1:].flatten())
    (LossModule(model)(batch) / 12).backward()
    for name, weight in model.named_parameters():
        wanted = expected[name]
        found = torch.zeros_like(weight) if weight.grad is None else weight.grad
        wanted = torch.zeros_like(weight) if wanted is None else wanted
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("each", [False, True])
def test_of_logits_and_their_gradient_two_tensors_are_held_at_once(each: bool) -> None:
    vocabulary, positions, width = 50_000, 64, 8
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, width)

    class Head:
        def __call__(self, hidden: torch.Tensor, weights: object = None) -> torch.Tensor:
            return hidden @ weight.T

        def trained(self) -> dict[str, torch.Tensor]:
            return {}

    hidden = torch.randn(positions, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (positions,))
    called = log_probabilities if each else summed_cross_entropy
    with MemTracker() as tracker:
        total = called(Head(), hidden, targets).sum()
        total.backward()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert peak < 2.2 * positions * vocabulary * 4
    again = hidden.detach().requires_grad_()
    loss = torch.nn.functional.cross_entropy(again @ weight.T, targets, reduction="sum")
    (-loss if each else loss).backward()
    torch.testing.assert_close(hidden.grad, again.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, -loss if each else loss, rtol=1e-6, atol=1e-4)
