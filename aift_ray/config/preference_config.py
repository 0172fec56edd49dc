"""What is trained beside answers themselves: which of two answers is better, or whether one is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field

from aift_ray.config.section import Section, setting
from aift_ray.errors import Problem

Objective = Literal[
    "sft", "dpo", "ipo", "hinge", "robust", "orpo", "simpo", "cpo", "kto", "reward", "grpo"
]
# objectives that compare answers
PREFERENCE_OBJECTIVES = tuple(name for name in get_args(Objective) if name not in ("sft", "grpo"))
# what a row of a data file holds: one answer, a better and a worse one, one with a label, or a
# prompt alone
Answers = Literal["one", "pair", "label", "prompt"]

# objectives that hold the model against a reference
REFERENCED = ("dpo", "ipo", "hinge", "robust", "kto")
# the settings of some objectives, and which
_OWNERS = {
    "beta": ("dpo", "ipo", "hinge", "robust", "orpo", "simpo", "cpo", "kto"),
    "label_smoothing": ("dpo", "robust", "simpo", "cpo"),
    "length_normalized": ("dpo",),
    "rpo_alpha": ("dpo", "ipo", "hinge", "robust"),
    "cpo_alpha": ("cpo", "simpo"),
    "simpo_gamma": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "center_rewards_coefficient": ("reward",),
    "reference": REFERENCED,
}
_BETA, _BETA_SIMPO = 0.1, 2.0
# strategies that divide the model itself: its blocks, or its matrices
_DIVIDED = ("pipeline", "tensor", "model_parallel")


def answers_of(objective: Objective) -> Answers:
    """What the rows of an objective hold."""
    held: dict[str, Answers] = {"sft": "one", "kto": "label", "grpo": "prompt"}
    return held.get(objective, "pair")


def answers_a_comparison(objective: Objective) -> int:
    """Answers that the gradient of one comparison is computed from; of `sft` rows."""
    return 2 if answers_of(objective) == "pair" else 1


def further_forwards(objective: Objective) -> int:
    """Forward passes over a row beside those of its training step.

    The reference takes one. KTO's estimate of the KL takes two more, of the model and of its
    reference, over as many mismatched answers.
    """
    return 3 if objective == "kto" else int(objective in REFERENCED)


def divided_scorer(objective: Objective, strategy: str) -> str:
    """Why a strategy can't train the reward model; "": it can, or none is trained."""
    if objective != "reward" or strategy not in _DIVIDED:
        return ""
    return f"{strategy} divides language models, and objective reward trains a model with a score"


class PreferenceConfig(Section):
    """How answers are held against each other; the names are TRL's."""

    beta: Annotated[float, Field(ge=1e-6, le=100)] | None = setting(
        None, "temperature of the preference loss; default: 0.1, simpo: 2"
    )
    label_smoothing: float = setting(
        0.0, "assumed share of pairs with flipped labels", ge=0, lt=0.5
    )
    length_normalized: bool = setting(
        False, "dpo: average log-probabilities per token (TRL's loss_type sigmoid_norm)"
    )
    rpo_alpha: float = setting(
        0.0, "weight of the per-token NLL loss of the chosen answer", ge=0, le=100
    )
    cpo_alpha: Annotated[float, Field(ge=0, le=100)] | None = setting(
        None, "the same weight for cpo and simpo; default: cpo 1, simpo 0"
    )
    simpo_gamma: float = setting(0.5, "simpo: target reward margin", ge=0, le=100)
    desirable_weight: float = setting(1.0, "kto: weight of rows with label true", ge=0, le=100)
    undesirable_weight: float = setting(1.0, "kto: weight of rows with label false", ge=0, le=100)
    center_rewards_coefficient: float = setting(
        0.0,
        "reward: weight of the squared sum of both rewards, which centers them at 0",
        ge=0,
        le=100,
    )
    reference: str | None = setting(
        None,
        "catalog name, Hub id or folder of the reference model; default: the initial model of "
        "the run",
    )

    def beta_of(self, objective: Objective) -> float:
        """`beta`, or the default of an objective."""
        if self.beta is not None:
            return self.beta
        return _BETA_SIMPO if objective == "simpo" else _BETA

    def nll_weight(self, objective: Objective) -> float:
        """Weight of the chosen answer's own loss beside the objective."""
        if objective == "orpo":
            return 1.0
        if objective not in _OWNERS["cpo_alpha"]:
            return self.rpo_alpha
        return float(objective == "cpo") if self.cpo_alpha is None else self.cpo_alpha

    def contradictions(self, objective: Objective, strategy: str) -> Iterator[Problem]:
        """Settings that do nothing with an objective, or can't be had with it."""
        for name, owners in _OWNERS.items():
            default = type(self).model_fields[name].default
            if objective not in owners and getattr(self, name) != default:
                what = f"acts with objective {', '.join(owners)}, not {objective}"
                yield Problem(f"preference.{name}", what, "leave it out")
        if objective == "robust" and not self.label_smoothing:
            what = "is 0, and objective robust is dpo without it"
            remedy = "give --preference.label_smoothing 0.1, or --objective dpo"
            yield Problem("preference.label_smoothing", what, remedy)
        if objective == "kto" and not (self.desirable_weight or self.undesirable_weight):
            what = "is 0, and so is preference.undesirable_weight: no row would be trained"
            yield Problem("preference.desirable_weight", what, "give one of them more than 0")
        divided = divided_scorer(objective, strategy)
        if divided:
            yield Problem("parallel.strategy", divided, "use --strategy ddp or fsdp")
        if self.reference and strategy in _DIVIDED:
            what = f"is laid out as another model than the one that {strategy} cuts"
            yield Problem("preference.reference", what, "use --strategy ddp or fsdp")
