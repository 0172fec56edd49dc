"""Every setting of `aift-ray merge`, declared once."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from aift_ray.config.section import NotNegative, Settings, setting
from aift_ray.errors import Problem

Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"]
# methods that add up differences from a base
OF_BASE = ("task_arithmetic", "ties", "dare_linear", "dare_ties")
_SPARSE = ("ties", "dare_linear", "dare_ties")


class MergeConfig(Settings):
    """One model made of several of the same architecture, weight by weight."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {
        "models": "model",
        "prompts_from": "prompts-from",
        "output_dir": "output-dir",
    }

    method: Method = setting("linear", "how the weights are combined")
    models: list[str] = setting([], "catalog names, Hub ids or folders of the models, two or more")
    weights: list[float] = setting(
        [], "weight of each model; default: 1 each; slerp: 0.5 0.5, of which the second is t"
    )
    base: str | None = setting(
        None, "model that is subtracted from each model; needed by all methods but linear and slerp"
    )
    normalize: bool | None = setting(
        None, "divide by the sum of the weights; default: true for linear and ties"
    )
    density: Annotated[float, Field(gt=0, le=1)] = setting(
        0.5, "ties, dare: share of the differences to keep"
    )
    seed: NotNegative = setting(0, "dare: seed by which differences are dropped")
    prompts_from: str | None = setting(
        None,
        "model whose tokenizer files, chat template and generation settings are taken; default: "
        "the first with a chat template",
    )
    output_dir: str | None = setting(
        None, "folder of the result; default: ./outputs/DATE-TIME-merge"
    )
    overwrite: bool = setting(False, "replace an output folder of this command")

    @property
    def normalizes(self) -> bool:
        """Whether weights are divided by their sum."""
        if self.normalize is None:
            return self.method in ("linear", "ties", "dare_ties")
        return self.normalize

    def contradictions(self) -> list[Problem]:
        """Conflicting settings."""
        found = []
        least = 1 if self.method in OF_BASE else 2
        if len(self.models) < least:
            what = f"{self.method} needs {least} or more, and {len(self.models)} are given"
            found.append(Problem("models", what, "name each with --model"))
        repeated = {name for name in self.models if self.models.count(name) > 1}
        found += [
            Problem("models", f"{name} is given twice", "give it once") for name in sorted(repeated)
        ]
        if self.weights and len(self.weights) != len(self.models):
            what = f"{len(self.weights)} are given for {len(self.models)} models"
            found.append(Problem("weights", what, "give one --weights for each --model"))
        if self.method == "slerp":
            found += self._of_slerp()
        if self.method in OF_BASE and not self.base:
            what = f"{self.method} adds differences from a base, and none is given"
            found.append(Problem("base", what, "give --base"))
        if self.method not in OF_BASE and self.base:
            found.append(Problem("base", f"does not act with {self.method}", "leave it out"))
        for name, methods in (("density", _SPARSE), ("seed", _SPARSE[1:])):
            if name in self.model_fields_set and self.method not in methods:
                what = f"does not act with {self.method}"
                found.append(Problem(name, what, "leave it out"))
        given = self.weights or [1.0]
        if self.normalizes and self.method != "slerp" and sum(given) == 0:
            found.append(Problem("weights", "add up to 0, which can't be divided by"))
        return found

    def _of_slerp(self) -> list[Problem]:
        found = []
        if len(self.models) > 2:
            what = f"slerp takes two, and {len(self.models)} are given"
            found.append(Problem("models", what, "merge them two by two, or use linear"))
        if self.weights and abs(sum(self.weights) - 1) > 1e-6:
            what = f"add up to {sum(self.weights):g}, and those of slerp are 1-t and t"
            found.append(Problem("weights", what, "give for example --weights 0.7 --weights 0.3"))
        if self.normalize is not None:
            found.append(Problem("normalize", "does not act with slerp", "leave it out"))
        return found
