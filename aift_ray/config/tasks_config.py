"""Tasks that a training run is scored on."""

from __future__ import annotations

from typing import Literal

from aift_ray.config.section import NotNegative, Positive, Section, setting
from aift_ray.errors import Problem

# scores of which less is better
LOWER_IS_BETTER = frozenset({"bits_per_character", "perplexity"})


class EvaluationConfig(Section):
    """Tasks scored before, during and after training; see docs/evaluation.md."""

    tasks: list[str] = setting(
        [], "names of built-in tasks, YAML files of tasks, or data files of rows"
    )
    steps: NotNegative = setting(
        0, "steps between two evaluations of the tasks; 0: before and after training only"
    )
    data_dir: str | None = setting(
        None, "folder of the built-in tasks' data files; default: the variable AIFT_TASKS"
    )
    limit: NotNegative = setting(0, "rows of each task, the first ones; 0: all")
    num_few_shot: NotNegative | None = setting(
        None, "answered examples before each prompt; default: each task's own"
    )
    chat: bool | None = setting(
        None, "write prompts in the model's chat template; default: each task's own"
    )
    batch_size: Positive = setting(8, "rows that a worker computes or answers at once")

    def contradictions(self) -> list[Problem]:
        """Settings that act on tasks only, where there are none."""
        given = self.model_fields_set - {"tasks"}
        if self.tasks or not given:
            return []
        defaults = type(self)()
        changed = [name for name in sorted(given) if getattr(self, name) != getattr(defaults, name)]
        what = "acts with evaluation.tasks only"
        return [Problem(f"evaluation.{name}", what, "leave it out") for name in changed]


def better_by(score: str) -> Literal["min", "max"]:
    """Which value of a score is the better one."""
    return "min" if score in LOWER_IS_BETTER else "max"
