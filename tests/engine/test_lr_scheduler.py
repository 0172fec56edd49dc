"""The learning rates are those of transformers and torch, and small runs get what suits them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler
from transformers.optimization import get_inverse_sqrt_schedule, get_wsd_schedule

from aift_ray.config import RunConfig, TrainingConfig
from aift_ray.engine.lr_scheduler import learning_rate, settle
from aift_ray.errors import ConfigError
from aift_ray.runs import resume_check
from aift_ray.runs.prepare import prepare
from tests.runs.test_resume_check import finished, last_of

Configure = Callable[..., RunConfig]
Make = Callable[[torch.optim.Optimizer], Any]
PEAK, TOTAL = 3e-4, 40
# schedules of transformers by their own names, with their own settings
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 12, "min_lr_ratio": 0.1},
}


def rates(make: Make, steps: int = TOTAL + 1) -> list[float]:
    """The rate of each step of a scheduler of torch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], PEAK)
    schedule, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def ours(**values: Any) -> list[float]:
    training = TrainingConfig(learning_rate=PEAK, **values)
    settle(training, TOTAL, adapters=False)
    return [learning_rate(training, step, TOTAL) for step in range(TOTAL)]


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("name", list(HUGGING_FACE))
def test_a_schedule_is_that_of_transformers(name: str, warmup: int) -> None:
    own = HUGGING_FACE[name]
    theirs = rates(
        lambda optimizer: get_scheduler(
            name, optimizer, warmup, TOTAL, scheduler_specific_kwargs=own
        )
    )
    more: dict[str, Any] = {"min_lr_ratio": 0.1} if len(own) else {}
    more |= {"decay_ratio": 0.3} if "num_decay_steps" in own else {}
    found = ours(lr_scheduler=name, warmup_steps=warmup, **more)
    assert found[warmup:] == pytest.approx(theirs[warmup:TOTAL])
    # its first step would have a rate of 0
    assert found[:warmup] == pytest.approx(theirs[1 : warmup + 1])
    assert max(found) == pytest.approx(PEAK)


# of each step of transformers' Trainer (5.23) with the DeepSpeed (0.19.8) schedule of a file that
# leaves all to "auto", with these names and warm-up steps; 20 steps, peak 3e-4
OF_DEEPSPEED = {
    ("WarmupLR", 0): [0, 0, 3e-4, 3e-4, 3e-4, 3e-4],
    ("WarmupLR", 5): [0, 0, 1.29203e-4, 2.04782e-4, 2.58406e-4, 3e-4, 3e-4],
    ("WarmupDecayLR", 0): [0, 0, 3e-4, 3e-4, 2.83333e-4, 2.66667e-4],
    ("WarmupDecayLR", 5): [0, 0, 1.29203e-4, 2.04782e-4, 2.58406e-4, 3e-4, 3e-4, 2.8e-4, 2.6e-4],
}
AT_THE_END = {"WarmupLR": 3e-4, ("WarmupDecayLR", 0): 3.33333e-5, ("WarmupDecayLR", 5): 4e-5}


@pytest.mark.parametrize(("name", "warmup"), list(OF_DEEPSPEED))
def test_a_schedule_of_deepspeed_is_that_of_its_engine(name: str, warmup: int) -> None:
    training = TrainingConfig(learning_rate=PEAK, lr_scheduler=name, warmup_steps=warmup)
    settle(training, 20, adapters=False)
    found = [learning_rate(training, step, 20) for step in range(20)]
    wanted = OF_DEEPSPEED[name, warmup]
    assert found[: len(wanted)] == pytest.approx(wanted, rel=1e-5)
    assert found[-1] == pytest.approx(AT_THE_END.get(name, AT_THE_END.get((name, warmup))), 1e-5)


def test_names_and_settings_of_their_own_say_the_same() -> None:
    wsd = {"decay_ratio": 0.3, "min_lr_ratio": 0.2, "warmup_steps": 4}
    assert ours(lr_scheduler="wsd", **wsd) == ours(lr_scheduler="warmup_stable_decay", **wsd)
    theirs = rates(lambda optimizer: get_wsd_schedule(optimizer, 4, 12, TOTAL, min_lr_ratio=0.2))
    assert ours(lr_scheduler="wsd", **wsd)[4:] == pytest.approx(theirs[4:TOTAL])
    assert ours(lr_scheduler="constant", warmup_steps=3) == ours(
        lr_scheduler="constant_with_warmup", warmup_steps=3
    )
    assert ours(lr_scheduler="cosine", min_lr_ratio=0.1, warmup_steps=3) == ours(
        lr_scheduler="cosine_with_min_lr", min_lr_ratio=0.1, warmup_steps=3
    )
    far = rates(lambda optimizer: get_inverse_sqrt_schedule(optimizer, 0), 200)
    training = TrainingConfig(PEAK, lr_scheduler="inverse_sqrt", warmup_steps=0)
    assert learning_rate(training, 199, 200) == pytest.approx(far[199])


def test_a_lowest_rate_is_that_of_torch() -> None:
    line = rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.25, total_iters=TOTAL))
    assert ours(lr_scheduler="linear", min_lr_ratio=0.25, warmup_steps=0) == pytest.approx(
        line[:TOTAL]
    )
    wave = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, TOTAL, PEAK / 4))
    assert ours(lr_scheduler="cosine", min_lr_ratio=0.25, warmup_steps=0) == pytest.approx(
        wave[:TOTAL]
    )


@pytest.mark.parametrize(
    ("total", "values", "warmup"),
    [
        (9, {}, 0),
        (95, {}, 9),
        (5000, {}, 100),
        (20, {"warmup_steps": 100}, 100),
        (95, {"warmup_ratio": 0.03}, 3),
        (95, {"warmup_ratio": 0.5, "warmup_steps": 7}, 48),
    ],
)
def test_a_warm_up_suits_the_run_unless_it_is_asked_for(
    total: int, values: dict[str, Any], warmup: int
) -> None:
    training = TrainingConfig(**values)
    settle(training, total, adapters=False)
    assert training.warmup_steps == warmup
    assert training.learning_rate == 2e-5


def test_the_documented_defaults_stay_and_the_plan_says_what_is_taken(
    configure: Configure, tmp_path: Path, rows_file: Path, tiny_model: Path
) -> None:
    assert (TrainingConfig().learning_rate, TrainingConfig().warmup_steps) == (2e-5, 100)

    def planned(method: str, **training: Any) -> tuple[str, TrainingConfig]:
        data = {"train_files": [str(rows_file)], "sequence_length": 128}
        config = RunConfig(model=str(tiny_model), method=method, data=data, training=training)
        run = prepare(config, tmp_path / "run", 1, False, None)
        return run.rate, run.job.config.training

    text, training = planned("lora", max_steps=50)
    assert text == "0.0002 (the default of adapters), cosine after 5 warm-up steps (a tenth of all)"
    assert (training.learning_rate, training.warmup_steps) == (2e-4, 5)
    text, training = planned("full", max_steps=5, lr_scheduler="wsd", decay_ratio=0.5)
    assert text == "2e-05, wsd without warm-up (a tenth of all), falling in the last 3 steps"
    text, training = planned("lora", learning_rate=2e-5, warmup_steps=3, min_lr_ratio=0.5)
    assert text == "2e-05, cosine after 3 warm-up steps, down to 1e-05"


def test_settings_that_do_not_act_on_a_schedule_are_refused_at_once(configure: Configure) -> None:
    with pytest.raises(ConfigError) as error:
        configure(
            training__lr_scheduler="inverse_sqrt",
            training__min_lr_ratio=0.1,
            training__decay_ratio=0.1,
        )
    assert {problem.where for problem in error.value.problems} == {
        "training.min_lr_ratio",
        "training.decay_ratio",
    }
    with pytest.raises(ConfigError, match=r"give --training\.min_lr_ratio"):
        configure(training__lr_scheduler="cosine_with_min_lr")


def test_a_resumed_run_keeps_what_was_derived(configure: Configure, tmp_path: Path) -> None:
    folder, wsd = tmp_path / "run", {"training__lr_scheduler": "wsd"}
    finished(configure, folder, **wsd, training__max_steps=4, training__warmup_ratio=0.5)
    same = {**wsd, "training__warmup_ratio": 0.5, "resume": "latest"}
    assert resume_check.done(configure(**same, training__max_steps=4), folder)
    config = configure(**same, training__max_steps=8)
    prepared = prepare(config, folder, 1, False, last_of(folder))
    assert prepared.job.config.training.warmup_steps == 4, "half of the steps there are now"
    assert any("schedule" in line for line in prepared.warnings)
    left_out = configure(**wsd, training__max_steps=4, resume="latest")
    left_out.training.model_fields_set.discard("warmup_steps")
    with pytest.raises(ConfigError, match=r"warmup_ratio: none differs from the 0\.5"):
        prepare(left_out, folder, 1, False, last_of(folder))
