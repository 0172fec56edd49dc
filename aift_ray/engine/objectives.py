"""What is minimized where answers are compared: every objective, with its source.

Log-probabilities are sums over an answer's tokens. `log pi` is the model's, `log ref` that of the
reference, `h` the difference of `log pi - log ref` between the chosen and the rejected answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from aift_ray.config import PreferenceConfig, RunConfig
from aift_ray.config.preference_config import REFERENCED


@dataclass(frozen=True)
class Judged:
    """Some answers, as the model and its reference see them.

    Attributes:
        logps: (pairs, 2), chosen and rejected; of rows with a label (rows,).
        reference: the same of the reference model; zeros without one.
        lengths: tokens of each answer, of the same shape.
        scores: labels of rows (rows,), or margins (pairs, 2), NaN where there is none.
        kl: (), of rows with a label.
    """

    logps: torch.Tensor
    reference: torch.Tensor
    lengths: torch.Tensor
    scores: torch.Tensor
    kl: torch.Tensor

    @property
    def gained(self) -> torch.Tensor:
        """log pi - log ref of each answer."""
        return self.logps - self.reference

    @property
    def mean_logps(self) -> torch.Tensor:
        """log pi by the token."""
        return self.logps / self.lengths


def _apart(values: torch.Tensor) -> torch.Tensor:
    """Chosen less rejected, (pairs,)."""
    return values[:, 0] - values[:, 1]


def _sigmoid(margin: torch.Tensor, smoothing: float) -> torch.Tensor:
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


def dpo(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """-log sigmoid(beta h). Rafailov et al. 2023, arXiv:2305.18290, equation 7.

    With label smoothing: Mitchell 2023, "A note on DPO with noisy preferences & relationship to
    IPO".
    """
    gained = judged.gained / judged.lengths if how.length_normalized else judged.gained
    return _sigmoid(beta * _apart(gained), how.label_smoothing)


def robust(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """DPO without the bias of wrong labels. Chowdhury et al. 2024, arXiv:2403.00409."""
    margin, wrong = beta * _apart(judged.gained), how.label_smoothing
    return (-(1 - wrong) * logsigmoid(margin) + wrong * logsigmoid(-margin)) / (1 - 2 * wrong)


def ipo(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """(h - 1 / (2 beta))^2, h by the token. Azar et al. 2023, arXiv:2310.12036, equation 17."""
    return (_apart(judged.gained / judged.lengths) - 1 / (2 * beta)).square()


def hinge(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """max(0, 1 - beta h). Zhao et al. 2023, SLiC-HF, arXiv:2305.10425, with beta and reference."""
    return torch.relu(1 - beta * _apart(judged.gained))


def orpo(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """-beta log sigmoid(log odds ratio). Hong et al. 2024, arXiv:2403.07691, equations 4, 6, 7.

    Beside it comes the chosen answer's own loss, as in equation 6.
    """
    # a probability by the token is below 1, and its float may not be
    means = judged.mean_logps.clamp(max=-1e-7)
    odds = means - torch.log(-torch.expm1(means))
    return -beta * logsigmoid(_apart(odds))


def simpo(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """-log sigmoid(beta (difference by the token) - gamma). Meng et al. 2024, arXiv:2405.14734,
    equation 6."""
    return _sigmoid(beta * _apart(judged.mean_logps) - how.simpo_gamma, how.label_smoothing)


def cpo(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """-log sigmoid(beta (log pi chosen - log pi rejected)). Xu et al. 2024, arXiv:2401.08417,
    equation 3; beside it comes the chosen answer's own loss."""
    return _sigmoid(beta * _apart(judged.logps), how.label_smoothing)


def kto(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """weight (1 - sigmoid(+-beta (log pi - log ref - KL))). Ethayarajh et al. 2024,
    arXiv:2402.01306, equation 7."""
    good = judged.scores > 0
    sign = torch.where(good, 1.0, -1.0).to(judged.logps)
    weights = torch.where(good, how.desirable_weight, how.undesirable_weight).to(judged.logps)
    return weights * (1 - torch.sigmoid(sign * beta * (judged.gained - judged.kl)))


def reward(judged: Judged, how: PreferenceConfig, beta: float) -> torch.Tensor:
    """-log sigmoid(chosen - rejected - margin), of rewards in place of log-probabilities.

    Bradley and Terry 1952, as in Ouyang et al. 2022, arXiv:2203.02155, equation 1; with a margin
    Touvron et al. 2023, arXiv:2307.09288, equation 2; centred around 0 Eisenstein et al. 2023,
    arXiv:2312.09244, equation 2.
    """
    margin = judged.scores[:, 0].nan_to_num()
    centred = how.center_rewards_coefficient * judged.logps.sum(1).square()
    return -logsigmoid(_apart(judged.logps) - margin) + centred


_LOSSES: Mapping[str, Callable[[Judged, PreferenceConfig, float], torch.Tensor]] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "robust": robust,
    "orpo": orpo,
    "simpo": simpo,
    "cpo": cpo,
    "kto": kto,
    "reward": reward,
}
# objectives that see log-probabilities by the token
_BY_TOKEN = ("orpo", "simpo")


@dataclass(frozen=True)
class Objective:
    """An objective with its settings.

    Attributes:
        name: as the configuration names it.
    """

    name: str
    how: PreferenceConfig
    beta: float
    nll_weight: float

    @classmethod
    def of(cls, config: RunConfig) -> Objective | None:
        """That of a run; None: answers are trained or generated, not compared."""
        name, how = config.objective, config.preference
        return (
            None
            if name in ("sft", "grpo")
            else cls(name, how, how.beta_of(name), how.nll_weight(name))
        )

    @property
    def labelled(self) -> bool:
        """Whether rows hold one answer with a label."""
        return self.name == "kto"

    @property
    def scored(self) -> bool:
        """Whether a model is trained that scores answers."""
        return self.name == "reward"

    @property
    def referenced(self) -> bool:
        """Whether the model is held against a reference."""
        return self.name in REFERENCED

    def losses(self, judged: Judged) -> torch.Tensor:
        """The loss of each pair, or row with a label."""
        found = _LOSSES[self.name](judged, self.how, self.beta)
        if self.nll_weight:
            found = found - self.nll_weight * judged.mean_logps[:, 0]
        return found

    def rewards(self, judged: Judged) -> torch.Tensor:
        """What the model's log-probabilities stand for, of the shape of `logps`."""
        if self.scored:
            return judged.logps
        return self.beta * (judged.mean_logps if self.name in _BY_TOKEN else judged.gained)
