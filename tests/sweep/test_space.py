"""Search spaces: what they draw, how they depend on one another, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aift_ray.commandline import given
from aift_ray.config import SweepConfig, TuneConfig
from aift_ray.config.section import leaves
from aift_ray.errors import ConfigError
from aift_ray.sweep.metric import check_comparable
from aift_ray.sweep.search import search
from aift_ray.sweep.space import Choices, Space, separate, trial_config

DATA = "data: {train_files: [a.jsonl], eval_files: [b.jsonl]}\n"
CONDITIONAL = """
training:
  learning_rate: {loguniform: [1e-4, 1e-2]}
  warmup_steps: {randint: [0, 3]}
  lr_scheduler: {choice: [linear, cosine]}
choice:
  - {method: full, training: {learning_rate: {loguniform: [1e-6, 1e-5]}}}
  - method: lora
    lora: {r: {choice: [4, 8]}, lora_dropout: {choice: [0, {uniform: [0.1, 0.3]}]}}
"""


def read(text: str) -> Any:
    return separate(yaml.safe_load(DATA + text), [])


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value)


def drawn(space: Space, **tune: Any) -> list[Choices]:
    """The choices of a whole sweep whose trials end as they please."""
    searching = search(space, TuneConfig(**tune))
    found = []
    for number in range(searching.total):
        found.append(searching.ask(number))
        searching.tell(number, [None, 1.0 / (number + 1), 2.0][number % 3], [None, 5][number % 2])
    return found


def test_only_what_is_a_space_or_depends_on_one_differs_between_trials() -> None:
    _, space = read(CONDITIONAL)
    assert set(space.names) == {
        *("method", "training.learning_rate", "training.warmup_steps"),
        *("training.lr_scheduler", "lora.r", "lora.lora_dropout"),
    }


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_what_is_drawn_lies_in_the_space_of_its_branch(kind: str) -> None:
    _, space = read(CONDITIONAL)
    branches = set()
    for choices in drawn(space, search=kind, num_samples=30):
        config = trial_config(space, choices, {})
        rate, dropout = config.training.learning_rate, config.lora.lora_dropout
        branches.add((config.method, config.method == "full" or dropout > 0))
        if config.method == "full":
            assert 1e-6 <= rate <= 1e-5
            assert config.lora.r == 16, "the other branch is left at its defaults"
        else:
            assert 1e-4 <= rate <= 1e-2
            assert config.lora.r in (4, 8)
            assert dropout == 0 or 0.1 <= dropout <= 0.3
        assert config.training.warmup_steps in range(4)
    assert len(branches) == 3, "every branch is gone into"


@pytest.mark.parametrize("kind", ["random", "optuna", "grid"])
def test_a_sweep_repeats_itself_with_its_seed_and_goes_on_where_it_was(kind: str) -> None:
    text = "training: {seed: {choice: [1, 2, 3]}}\nlora: {r: {grid: [4, 8]}}\n"
    _, space = read(text)
    assert drawn(space, search=kind) == drawn(space, search=kind)
    whole = search(space, TuneConfig(search=kind, num_samples=4))
    first = [whole.ask(number) for number in range(2)]
    again = search(space, TuneConfig(search=kind, num_samples=4))
    assert [again.ask(number, kept) for number, kept in enumerate(first)] == first


def test_random_trials_of_a_small_space_are_all_of_it_before_one_comes_twice() -> None:
    _, space = read("training: {seed: {choice: [1, 2]}}\nlora: {r: {choice: [4, 8, 16]}}\n")
    found = drawn(space, num_samples=6)
    assert len({tuple(sorted(choices.items())) for choices in found}) == 6


def test_a_grid_is_every_combination_and_num_samples_cuts_it() -> None:
    text = "training: {seed: {grid: [1, 2]}}\n"
    text += "choice: [{method: full}, {method: lora, lora: {r: {grid: [4, 8, 16]}}}]\n"
    _, space = read(text)
    configs = [trial_config(space, choices, {}) for choices in drawn(space, search="grid")]
    combinations = {(c.method, c.training.seed, c.lora.r) for c in configs}
    assert len(configs) == len(combinations) == 2 + 6
    assert len(drawn(space, search="grid", num_samples=3)) == 3


def test_optuna_learns_from_the_trials_before() -> None:
    _, space = read("training: {learning_rate: {loguniform: [1e-6, 1]}}\n")
    searching = search(space, TuneConfig(search="optuna", num_samples=40))
    rates = []
    for number in range(40):
        (rate,) = searching.ask(number).values()
        rates.append(rate)
        searching.tell(number, abs(rate - 1e-3) / (rate + 1e-3))
    near = [1e-4 < rate < 1e-2 for rate in rates]
    assert sum(near[20:]) > sum(near[:13])
    assert sum(near[20:]) > 10


def test_every_mistake_in_the_spaces_is_told_at_once() -> None:
    message = complaint(
        """
training:
  learning_rate: {loguniform: [0, 1e-2]}
  batch_size: {choise: [4]}
  warmup_steps: {randint: [0, 2.5]}
  weight_decay: {uniform: [0.5, 0.1]}
  eval_steps: {choice: []}
  seed: {uniform: [0, 1], choice: [1]}
lora: {r: 4, choice: [8, 16]}
"""
    )
    for part in (
        *("learning_rate: loguniform needs bounds above 0", "did you mean 'choice'?"),
        *("warmup_steps: randint needs two whole numbers", "eval_steps: choice needs a list"),
        *("weight_decay: uniform needs the lesser bound first", "training.seed: holds uniform"),
        "lora: choice is used with other settings",
    ):
        assert part in message


def test_the_ends_of_a_space_are_held_against_the_settings_before_anything_starts() -> None:
    message = complaint(
        """
training: {learning_rate: {uniform: [0.0, 100]}, batch_size: {choice: [2, many]}, sead: 3}
choice: [{method: full}, {method: lora, lora: {r: {randint: [0, 8]}}}]
tune: {scheduler: hyperband}
"""
    )
    for part in (
        *("learning_rate: 0.0 is not allowed", "learning_rate: 100.0 is not allowed"),
        *("'many' is not allowed", "did you mean 'training.seed'?", "lora.r: 0 is not allowed"),
        "tune.scheduler: 'hyperband' is not allowed",
    ):
        assert part in message


def test_contradictions_of_a_sweep_are_found() -> None:
    with pytest.raises(ConfigError, match="needs evaluation data"):
        separate({"data": {"train_files": ["a.jsonl"]}}, [])
    message = complaint("tune: {metric: exact_match}\nresume: step-3\ntraining: {local_rank: 0}")
    for part in ("exact_match_rows", "exact_match_during", "resume", "local_rank"):
        assert part in message
    assert "learning_rate" in complaint(
        "training: {learning_rate: {uniform: [1e-4, 1]}}\ntune: {search: grid}"
    )


def test_a_flag_is_a_fixed_value_and_wins_over_a_space(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(DATA + CONDITIONAL + "tune: {num_samples: 3}\n", "utf-8")
    flags = ("--training.warmup_steps", "2", "--num-samples", "5", "--max-concurrent", "1")
    argv = ("--config", str(file), *flags, "--resume")
    found = given(argv, SweepConfig, "tune", "")
    config, space = separate(found.values, found.problems)
    assert "training.warmup_steps" not in space.names
    assert trial_config(space, {}, {}).training.warmup_steps == 2
    assert (config.tune.num_samples, config.tune.max_concurrent) == (5, 1)
    assert config.resume == "latest", "a bare --resume goes on with the sweep"


def test_a_space_without_a_space_is_one_setting() -> None:
    _, space = read("tune: {search: grid}\n")
    assert (space.names, len(list(space.combinations())), len(space.corners())) == ([], 1, 1)


def test_every_setting_of_the_sweep_has_an_effect() -> None:
    _, space = read(CONDITIONAL)
    plain = leaves(TuneConfig(num_samples=4))
    assert {name for name, _ in plain} == {
        *("num_samples", "max_concurrent", "metric", "mode", "scheduler", "grace_steps"),
        *("search", "seed", "tolerance"),
    }
    assert len(drawn(space, num_samples=7)) == 7
    assert drawn(space, seed=1) != drawn(space)
    assert drawn(space, search="optuna") != drawn(space)
    assert TuneConfig().better == "min"
    assert TuneConfig(metric="exact_match").better == "max"
    assert TuneConfig(mode="max").better == "max"


@pytest.mark.parametrize(
    ("varied", "field"),
    [
        ({"preference": {"beta": {"grid": [0.1, 0.5]}}, "objective": "dpo"}, "preference.beta"),
        ({"objective": {"grid": ["dpo", "ipo"]}}, "objective"),
        ({"training": {"learning_rate": {"grid": [1e-4, 1e-3]}}, "objective": "dpo"}, ""),
    ],
)
def test_losses_of_other_scales_are_not_compared(varied: dict[str, Any], field: str) -> None:
    config, space = separate({**yaml.safe_load(DATA), **varied}, [])
    if not field:
        check_comparable(config, space)
        return
    with pytest.raises(ConfigError, match=f"trials that differ in {field}"):
        check_comparable(config, space)
