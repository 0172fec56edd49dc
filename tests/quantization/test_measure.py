"""The numbers of a report are what they say they are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.quantization import quantizer
from aift_ray.quantization.measure import Sample, benchmark, memory_bytes
from tests.conftest import SHIPPED


def sample(tokens: int, first: int = 0) -> Sample:
    torch.manual_seed(tokens)
    targets = torch.arange(tokens) >= first
    return Sample(torch.randint(4, 5000, (1, tokens)), targets[None])


def test_a_model_does_not_differ_from_itself(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    report = benchmark(model, model, [sample(9), sample(4)], 2)
    assert report["logit_difference"] == {"max": 0.0, "mean": 0.0}
    assert report["ratio"]["perplexity"] == report["ratio"]["memory_mb"] == 1.0


def test_perplexity_is_that_of_the_models_own_loss_over_the_targets(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    samples = [sample(9, 5), sample(6, 2)]
    total = count = 0.0
    for each in samples:
        labels = torch.where(each.targets, each.ids, -100)
        counted = int(each.targets[:, 1:].sum())
        total += model(each.ids, labels=labels).loss.item() * counted
        count += counted
    found = benchmark(model, model, samples, 1)["original"]["perplexity"]
    assert found == pytest.approx(math.exp(total / count), rel=1e-6)


def test_without_a_target_there_is_no_perplexity(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    report = benchmark(model, model, [sample(1)], 1)
    assert report["original"]["perplexity"] is report["ratio"]["perplexity"] is None


@pytest.mark.parametrize(
    "quantization",
    [
        Quantization(8, torch.bfloat16),
        Quantization(4, torch.bfloat16),
        Quantization(4, torch.bfloat16, double=False),
    ],
)
def test_memory_is_that_of_the_stored_tensors(quantization: Quantization, tmp_path: Path) -> None:
    model = quantizer.quantize(str(SHIPPED), quantization, torch.device("cpu"), tmp_path)
    stored = load_file(tmp_path / "model.safetensors").values()
    # the file also holds a description of each layer; the model a table of angles
    assert memory_bytes(model) == pytest.approx(sum(t.nbytes for t in stored), rel=0.003)


def test_models_are_left_in_the_mode_in_which_they_came(tiny_model: Path) -> None:
    one, other = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
    one.train()
    one.lm_head.eval()
    benchmark(one, other, [sample(3)], 1)
    assert one.training
    assert not one.lm_head.training
    assert not other.training
