"""The loss of generated completions by their advantages, from log-probabilities of their tokens.

Shao et al. 2024, arXiv:2402.03300, equation 3; GSPO: Zheng et al. 2025, arXiv:2507.18071, equation
5; the correction between engine and trainer: Yao et al. 2025, "Your efficient RL framework secretly
brings you off-policy RL training".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from aift_ray.config import GRPOConfig
from aift_ray.data.policy_targets import PolicyTargets

# tokens, KL, tokens clipped below and above, |trainer - engine|, ratios, their squares, entropies
MEASURES = 8


@dataclass(frozen=True)
class _Ratios:
    """Probability ratios of tokens, (targets,).

    Attributes:
        policy: of the model to the one that the completions are of.
        clipped: the same within the bounds.
        engine: of the trainer to the engine, both as the completions were generated.
    """

    policy: torch.Tensor
    clipped: torch.Tensor
    engine: torch.Tensor


def policy_loss(
    how: GRPOConfig, logps: torch.Tensor, told: PolicyTargets, entropies: torch.Tensor
) -> torch.Tensor:
    """The loss of a micro-batch, (): its part of the step's.

    Args:
        logps: (targets,), of the model, with its gradient.
        entropies: (targets,), of the model; they are measured.
    """
    old = logps.detach() if told.old is None else told.old
    advantages, ratios = told.advantages, _ratios(how, logps, old, told)
    policy = ratios.policy
    ratio = policy
    if how.delta is not None:
        policy = policy.clamp(max=how.delta)
    each = -torch.min(policy * advantages, ratios.clipped * advantages)
    if how.importance_sampling_correction:
        each = each * _corrected(how, ratios.engine, old, told)
    kl = torch.zeros_like(logps)
    if how.penalizes_rewards and told.reference is not None:
        kl = old - told.reference
    elif how.beta and told.reference is not None:
        # Schulman 2020, "Approximating KL divergence", k3
        apart = told.reference - logps
        kl = apart.exp() - apart - 1
        if how.use_bias_correction_kl:
            # DeepSeek-V3.2, arXiv:2512.02556: its gradient is that of the reverse KL, unbiased
            kl = kl * ratio
        each = each + how.beta * kl
    if told.sums is not None:
        told.sums.add_(_measured(how, ratios, kl, old, told, entropies).to(told.sums.device))
    return (each * told.weights).sum()


def _ratios(
    how: GRPOConfig, logps: torch.Tensor, old: torch.Tensor, told: PolicyTargets
) -> _Ratios:
    apart = logps - old
    if how.loss_type in ("gspo", "rloo"):
        apart = _by_completion(apart, told, mean=how.loss_type == "gspo")
    ratio = apart.exp()
    clipped = ratio.clamp(1 - how.epsilon, 1 + how.clip_high)
    return _Ratios(ratio, clipped, (old - told.engine).exp())


def _corrected(
    how: GRPOConfig, ratio: torch.Tensor, old: torch.Tensor, told: PolicyTargets
) -> torch.Tensor:
    """What each token is weighed by, since the engine computes other probabilities."""
    unit, _, act = how.importance_sampling_mode.partition("_")
    if unit == "sequence":
        ratio = _by_completion(old - told.engine, told, mean=False).exp()
    most = how.importance_sampling_clip_max
    if act == "truncate":
        return ratio.clamp(max=most)
    return ratio.masked_fill(ratio > most, 0.0)


def _by_completion(values: torch.Tensor, told: PolicyTargets, mean: bool) -> torch.Tensor:
    """Sums or means over the tokens of each completion, for each of them, (targets,)."""
    lengths = told.lengths
    if not len(lengths):
        return values
    # summed in one order, unlike index_add on a GPU
    found = torch.segment_reduce(values, "sum", lengths=lengths)
    found = found / lengths if mean else found
    return found.repeat_interleave(lengths)


@torch.no_grad()
def _measured(
    how: GRPOConfig,
    ratios: _Ratios,
    kl: torch.Tensor,
    old: torch.Tensor,
    told: PolicyTargets,
    entropies: torch.Tensor,
) -> torch.Tensor:
    trained = (told.weights > 0).double()
    low = (ratios.policy < 1 - how.epsilon) & (told.advantages < 0)
    high = (ratios.policy > 1 + how.clip_high) & (told.advantages > 0)
    engine = ratios.engine.double()
    each = (
        torch.ones_like(engine),
        kl.double(),
        low.double(),
        high.double(),
        (old - told.engine).abs().double(),
        engine,
        engine.square(),
        entropies.double(),
    )
    return torch.stack([(values * trained).sum() for values in each])


def measures(how: GRPOConfig, sums: Sequence[float]) -> dict[str, float | None]:
    """What was measured in a step, by TRL's names: means over the trained tokens of all workers."""
    tokens, kl, low, high, apart, ratios, squares, entropy = sums

    def mean(total: float) -> float | None:
        return total / tokens if tokens else None

    found = {
        "entropy": mean(entropy),
        "clip_ratio/low_mean": mean(low),
        "clip_ratio/high_mean": mean(high),
        "clip_ratio/region_mean": mean(low + high),
        "sampling/sampling_logp_difference/mean": mean(apart),
        "sampling/importance_sampling_ratio/mean": mean(ratios),
        # the share of the tokens that as many equally weighed ones would be worth
        "sampling/effective_sample_size": ratios**2 / (tokens * squares) if squares else None,
    }
    return found | ({"kl": mean(kl)} if how.beta else {})
