"""What a trainer is given beside its configuration: rows, and settings of other sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from aift_ray.config import DataConfig, RayConfig, TrainingConfig
from aift_ray.data import memory_rows
from aift_ray.data.memory_rows import Held
from aift_ray.errors import ArgumentError, ConfigError, Problem, check_arguments
from aift_ray.training.train_rows import Items, Rows, held_dataset, held_texts, max_length


@dataclass(frozen=True)
class TrainerOptions:
    """What the trainers take beside what is documented of them.

    Attributes:
        callbacks: told of steps, evaluations and checkpoints.
        data, ray: further settings of these sections.
        overwrite: empty an output folder that is not empty.
        rope_scaling: KIND:FACTOR of the rotary position embeddings.
    """

    callbacks: Sequence[Any] = ()
    data: DataConfig | Mapping[str, Any] | None = None
    ray: RayConfig | Mapping[str, Any] | None = None
    overwrite: bool = False
    rope_scaling: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.callbacks, Sequence) or isinstance(self.callbacks, str):
            name = type(self.callbacks).__name__
            problem = Problem("callbacks", f"is {name}, expected a list", "give callbacks=[...]")
            raise ArgumentError([problem])

    def sections(self) -> dict[str, Any]:
        """The settings that were given, by section."""
        return {
            "data": section("data", self.data),
            "ray": section("ray", self.ray),
            "overwrite": self.overwrite,
            "rope_scaling": self.rope_scaling,
        }


@dataclass(frozen=True)
class TrainerRows:
    """The rows of a run as `train` got them."""

    texts: Rows | None
    eval_texts: Rows | None
    dataset: Items | None
    eval_dataset: Items | None

    def settings(self, data: dict[str, Any], model: str) -> tuple[dict[str, Any], dict[str, Held]]:
        """The data section, and the rows that it names.

        Args:
            data: what was set of it.

        Raises:
            ConfigError: texts and a dataset or files together, or nothing.
            DataError: every item that is no row.
        """
        sets = (
            ("train", self.texts, self.dataset),
            ("eval", self.eval_texts, self.eval_dataset),
        )
        problems, found, rows = [], dict(data), {}
        for kind, texts, dataset in sets:
            names = {f"{kind}_texts": texts, f"{kind}_dataset": dataset}
            names[f"data.{kind}_files"] = data.get(f"{kind}_files") or None
            given = [name for name, value in names.items() if value is not None]
            if len(given) > 1:
                what = f"conflicts with {' and '.join(given[1:])}"
                problems.append(Problem(given[0], what, "give one of them"))
        if self.texts is None and self.dataset is None and not data.get("train_files"):
            problems.append(Problem("train_texts", "neither texts nor a dataset are given"))
        if problems:
            raise ConfigError(problems)
        for kind, texts, dataset in sets:
            argument = f"{kind}_texts" if texts is not None else f"{kind}_dataset"
            if texts is not None:
                held = held_texts(texts, argument)
            elif dataset is not None:
                held = held_dataset(dataset, argument, model)
            else:
                continue
            name = memory_rows.name_of(argument)
            rows[name], found[f"{kind}_files"] = held, [name]
        length = max_length(self.dataset)
        if length is not None:
            found.setdefault("sequence_length", length)
        return found, rows


def section(name: str, settings: BaseModel | Mapping[str, Any] | None) -> dict[str, Any]:
    """What was set of a section of the configuration, given as a section or as a mapping.

    Raises:
        ArgumentError: it is neither.
    """
    if settings is None:
        return {}
    check_arguments("trainer", **{name: (settings, (BaseModel, Mapping, type(None)))})
    if isinstance(settings, BaseModel):
        return settings.model_dump(exclude_unset=True)
    return dict(settings)


def here(config: TrainingConfig, options: TrainerOptions) -> bool:
    """Whether this process alone trains.

    Raises:
        ConfigError: settings that act on Ray workers, where none are asked for.
    """
    if config.ddp or config.local_rank >= 0:
        return False
    found = section("ray", options.ray)
    if found.get("num_workers") is not None:
        return False
    problems = [
        Problem(f"ray.{name}", "acts on Ray workers, and this process trains", "give num_workers")
        for name in found
        if name not in ("num_workers", "storage_path")
    ]
    if problems:
        raise ConfigError(problems)
    return True
