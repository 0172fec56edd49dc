"""Rewards of completions: functions of a user, built-in ones, reward models and judges."""

from aift_ray.errors import RewardError
from aift_ray.rewards.parsing import parse
from aift_ray.rewards.pool import Rewards
from aift_ray.rewards.spec import RewardSpec, distinct_names

__all__ = ["RewardError", "RewardSpec", "Rewards", "distinct_names", "parse"]
