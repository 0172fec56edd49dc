"""Objectives against their formulas by hand, and the chunked gradient against whole logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax

from aift_ray.commandline import validated
from aift_ray.config import PreferenceConfig, RunConfig, SweepConfig
from aift_ray.engine import chunked_loss
from aift_ray.engine.objectives import Judged, Objective
from aift_ray.errors import ConfigError


def objective(name: str, **settings: Any) -> Objective:
    found = Objective.of(RunConfig(objective=name, preference=settings))
    assert found is not None
    return found


def judged(logps: list[Any], reference: list[Any], lengths: list[Any], **more: Any) -> Judged:
    tensors = [torch.tensor(values, dtype=torch.float64) for values in (logps, reference, lengths)]
    scores = torch.tensor(more.get("scores", [[math.nan] * 2]), dtype=torch.float64)
    return Judged(*tensors, scores, torch.tensor(more.get("kl", 0.0), dtype=torch.float64))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# chosen gained 2, rejected lost 1: h is 3, by the token 2/4 + 1/2
PAIR = ([[-8.0, -6.0]], [[-10.0, -5.0]], [[4.0, 2.0]])
BY_HAND = {
    ("dpo", ()): -math.log(sigmoid(0.3)),
    ("dpo", (("beta", 0.5),)): -math.log(sigmoid(1.5)),
    ("dpo", (("label_smoothing", 0.1),)): -0.9 * math.log(sigmoid(0.3))
    - 0.1 * math.log(sigmoid(-0.3)),
    ("dpo", (("length_normalized", True),)): -math.log(sigmoid(0.1)),
    # beside it a half of the chosen answer's own loss by the token
    ("dpo", (("rpo_alpha", 0.5),)): -math.log(sigmoid(0.3)) + 0.5 * 2.0,
    ("robust", (("label_smoothing", 0.1),)): (
        -0.9 * math.log(sigmoid(0.3)) + 0.1 * math.log(sigmoid(-0.3))
    )
    / 0.8,
    ("ipo", ()): (1.0 - 5.0) ** 2,
    ("hinge", ()): 1 - 0.3,
    ("hinge", (("beta", 1.0),)): 0.0,
    ("simpo", ()): -math.log(sigmoid(2 * (-2.0 + 3.0) - 0.5)),
    ("cpo", ()): -math.log(sigmoid(0.1 * -2.0)) + 2.0,
    ("orpo", ()): 2.0
    - 0.1
    * math.log(
        sigmoid((-2.0 - math.log(1 - math.exp(-2.0))) - (-3.0 - math.log(1 - math.exp(-3.0))))
    ),
}


@pytest.mark.parametrize("case", BY_HAND, ids=str)
def test_a_pair_has_the_loss_of_the_paper(case: Any) -> None:
    name, settings = case
    found = objective(name, **dict(settings)).losses(judged(*PAIR))
    assert found.tolist() == pytest.approx([BY_HAND[case]], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "value"), [("dpo", math.log(2)), ("ipo", 25.0), ("hinge", 1.0), ("cpo", None)]
)
def test_a_model_that_is_its_reference_has_the_loss_of_no_preference(
    name: str, value: float | None
) -> None:
    same = judged(PAIR[0], PAIR[0], PAIR[2])
    found = objective(name)
    assert found.referenced == (value is not None)
    if value is not None:
        assert found.losses(same).item() == pytest.approx(value, rel=1e-12)


def test_labels_weigh_and_turn_the_loss_of_an_answer() -> None:
    rows = judged([-8.0, -6.0], [-10.0, -5.0], [4.0, 2.0], scores=[1.0, 0.0], kl=0.5)
    found = objective("kto", desirable_weight=2.0).losses(rows)
    assert found.tolist() == pytest.approx(
        [2 * (1 - sigmoid(0.1 * 1.5)), 1 - sigmoid(-0.1 * -1.5)], rel=1e-12
    )


def test_a_reward_is_asked_for_a_margin_and_kept_around_nothing() -> None:
    scores = judged([[1.0, 0.5]], [[0.0, 0.0]], [[1, 1]], scores=[[0.2, math.nan]])
    found = objective("reward", center_rewards_coefficient=0.01).losses(scores)
    assert found.item() == pytest.approx(-math.log(sigmoid(0.3)) + 0.01 * 1.5**2, rel=1e-12)


class Output(nn.Module):
    """An output layer as the chunked loss sees it."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(50, 8), trained)

    def forward(self, states: torch.Tensor, weights: Any = None) -> torch.Tensor:
        return states @ (weights or {"weight": self.weight})["weight"].T

    def trained(self) -> dict[str, torch.Tensor]:
        return {n: p for n, p in self.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("number", [0, 3, 8, 21])
def test_any_function_of_log_probabilities_has_its_gradient(
    number: int, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_loss, "CHUNK", 8)
    head, targets = Output(trained), torch.arange(number) % 50
    states = torch.randn(number, 8)

    def gradients(whole: bool) -> list[torch.Tensor]:
        hidden = states.clone().requires_grad_()
        if whole:
            each = log_softmax(head(hidden), -1)[torch.arange(number), targets]
        else:
            each = chunked_loss.log_probabilities(head, hidden, targets)
        loss = torch.tanh(each[: number // 2].sum()) - each.square().sum()
        wanted = [hidden, *head.trained().values()]
        return [loss.detach(), *torch.autograd.grad(loss, wanted)]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "beta of nothing": ({"preference": {"beta": 0.1}}, "preference.beta"),
    "beta out of range": ({"objective": "dpo", "preference": {"beta": 0}}, "preference.beta"),
    "labels all wrong": (
        {"objective": "dpo", "preference": {"label_smoothing": 0.5}},
        "preference.label_smoothing",
    ),
    "ends of turns in the prompt": (
        {"objective": "dpo", "data": {"train_end": "all"}},
        "data.train_end",
    ),
    "no weight": (
        {"objective": "kto", "preference": {"desirable_weight": 0, "undesirable_weight": 0}},
        "preference.desirable_weight",
    ),
    "an endless weight": (
        {"objective": "dpo", "preference": {"rpo_alpha": "inf"}},
        "preference.rpo_alpha",
    ),
    "robust against nothing": ({"objective": "robust"}, "preference.label_smoothing"),
    "a margin of dpo": (
        {"objective": "dpo", "preference": {"simpo_gamma": 1.0}},
        "preference.simpo_gamma",
    ),
    "a reference of orpo": (
        {"objective": "orpo", "preference": {"reference": "hina-4m"}},
        "preference.reference",
    ),
    "a reward model that answers": (
        {"objective": "reward", "training": {"exact_match_rows": 4}},
        "training.exact_match_rows",
    ),
    "tasks of a reward model": (
        {"objective": "reward", "evaluation": {"tasks": ["jcommonsenseqa"]}},
        "evaluation.tasks",
    ),
    "a reward model cut": (
        {"objective": "reward", "parallel": {"strategy": "tensor"}},
        "parallel.strategy",
    ),
    "another reference of a pipeline": (
        {
            "objective": "dpo",
            "preference": {"reference": "hina-4m"},
            "parallel": {"strategy": "pipeline"},
        },
        "preference.reference",
    ),
    "no such objective": ({"objective": "ppo"}, "objective"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_objective_can_not_have_is_refused_by_name(case: str) -> None:
    settings, field = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        validated(settings)
    assert field in [problem.where for problem in caught.value.problems]


def test_a_sweep_compares_by_accuracy_where_answers_are_compared() -> None:
    rows = {"data": {"train_files": ["a.jsonl"], "eval_files": ["b.jsonl"]}}
    found = SweepConfig(objective="dpo", tune={"metric": "eval_accuracy"}, **rows)
    assert (found.tune.better, found.contradictions()) == ("max", [])
    found = SweepConfig(tune={"metric": "eval_accuracy"}, **rows)
    assert [each.where for each in found.contradictions()] == ["tune.metric"]


ACTS = {
    "beta": ("dpo", 0.7),
    "label_smoothing": ("dpo", 0.2),
    "length_normalized": ("dpo", True),
    "rpo_alpha": ("ipo", 0.5),
    "cpo_alpha": ("cpo", 0.5),
    "simpo_gamma": ("simpo", 1.5),
    "desirable_weight": ("kto", 2.0),
    "undesirable_weight": ("kto", 2.0),
    "center_rewards_coefficient": ("reward", 0.1),
}


def test_every_setting_of_an_objective_acts() -> None:
    # the reference itself is tested with a run
    assert {*ACTS, "reference"} == set(PreferenceConfig.model_fields)
    for name, (kind, value) in ACTS.items():
        if kind == "kto":
            rows = judged([-8.0, -6.0], [-10.0, -5.0], [4.0, 2.0], scores=[1.0, 0.0])
        else:
            rows = judged(*PAIR)
        plain, changed = objective(kind), objective(kind, **{name: value})
        assert plain.losses(rows).tolist() != changed.losses(rows).tolist(), name
