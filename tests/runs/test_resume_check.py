"""A run that is gone on with keeps what it was, or says what is different."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from aift_ray.config import RunConfig
from aift_ray.engine.checkpoint import read_state
from aift_ray.engine.lr_scheduler import learning_rate
from aift_ray.engine.run_state import RunState
from aift_ray.errors import ConfigError
from aift_ray.runs import resume_check, run_dir
from aift_ray.runs.prepare import prepare
from tests.conftest import make_tiny_model
from tests.helpers.whole_runs import losses, run, run_on

Configure = Callable[..., RunConfig]
LORA = {"method": "lora", "lora__r": 4, "lora__lora_dropout": 0.0, "training__save_steps": 1}


def last_of(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))


def refused(config: RunConfig, folder: Path) -> dict[str, str]:
    """Where the problems lie, and their remedies."""
    with pytest.raises(ConfigError) as error:
        prepare(config, folder.parent / "other", 1, False, last_of(folder))
    return {problem.where: problem.remedy for problem in error.value.problems}


def test_adapters_of_another_shape_are_refused_all_at_once(
    configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(configure(**LORA), folder)
    other = LORA | {"lora__r": 16, "lora__modules_to_save": ["embed_tokens"]}
    found = refused(configure(**other), folder)
    assert set(found) == {"lora.r", "lora.modules_to_save"}
    assert "--lora.r 4" in found["lora.r"]
    assert "--resume-allow" not in found["lora.r"], "the checkpoint holds them"
    assert prepare(configure(**LORA), folder, 1, False, last_of(folder)).job.changed == []


def test_another_seed_or_split_is_refused_unless_it_is_asked_for(
    configure: Configure, tmp_path: Path
) -> None:
    folder, split = tmp_path / "run", {"data__validation_fraction": 0.25}
    run(configure(**split, training__seed=1, training__save_steps=1), folder)
    assert set(refused(configure(training__seed=2), folder)) == {
        "training.seed",
        "data.validation_fraction",
    }
    found = refused(configure(**split, training__seed=2), folder)
    assert "--resume-allow training.seed" in found["training.seed"]
    # what had no value can't be given as one
    other = {**split, "training__seed": 1, "training__warmup_ratio": 0.1}
    assert refused(configure(**other), folder)["training.warmup_ratio"].startswith("leave --")
    asked = {"resume": "latest", "resume_allow": ["training.seed"]}
    prepared = prepare(
        configure(**split, **asked, training__seed=2), folder, 1, False, last_of(folder)
    )
    assert prepared.job.changed == ["training.seed is 2, and was 1"]
    assert "training.seed is 2, and was 1" in prepared.warnings


def test_a_setting_that_the_checkpoint_holds_can_not_be_allowed(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"lora\.r can't be allowed to differ"):
        configure(resume="latest", resume_allow=["lora.r"])
    with pytest.raises(ConfigError, match="acts with resume only"):
        configure(resume_allow=["training.seed"])


def test_what_may_change_is_told_and_written_down(configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(configure(training__save_steps=1, training__max_steps=2), folder)
    more = {"training__batch_size": 4, "training__max_steps": 3, "training__logging_steps": 2}
    config = configure(**more, resume=str(last_of(folder)))
    run_on(config, folder)
    summary = run_dir.summary(folder)
    assert summary["global_batch"] == 8, "that of the run, whatever batch_size says"
    changes = [
        "from step 3: training.batch_size is 4, and was 8",
        "from step 3: training.gradient_accumulation_steps is 2, and was 1",
        "from step 3: training.max_steps is 3, and was 2",
    ]
    assert summary["changed_on_resume"] == changes
    written = yaml.safe_load((folder / run_dir.CONFIG).read_text("utf-8"))
    assert written["training"]["batch_size"] == 4
    assert written["training"]["gradient_accumulation_steps"] == 2, "the same run again"
    assert read_state(last_of(folder)).settings["training.max_steps"] == 3
    again = configure(**more | {"training__max_steps": 4}, resume=str(last_of(folder)))
    run_on(again, folder)
    *before, steps, kept = run_dir.summary(folder)["changed_on_resume"]
    assert before == changes, "what came before is kept"
    assert steps == "from step 4: training.max_steps is 4, and was 3"
    assert kept.startswith("from step 4: a step keeps its 8 examples")


def test_micro_steps_that_the_run_can_not_take_are_told(
    configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(configure(training__save_steps=1, training__max_steps=2), folder)
    more = {"training__max_steps": 3}

    def told(**values: Any) -> list[str]:
        config = configure(**more, **values)
        return prepare(config, folder, 1, False, last_of(folder)).job.changed[1:]

    asked = told(training__gradient_accumulation_steps=2)
    assert asked == [
        "a step keeps its 8 examples: training.gradient_accumulation_steps is 1, not 2"
    ]
    assert told(training__batch_size=3) == [
        "training.max_steps is 3, and was 2",
        "a step keeps its 8 examples, whatever training.batch_size says",
    ]


def test_a_full_run_is_not_gone_on_with_from_another_model(
    configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = configure(training__save_steps=1)
    run(config, folder)
    other = make_tiny_model(tmp_path / "other", num_hidden_layers=3)
    (problem,) = refused(configure(model=str(other)), folder).values()
    assert problem == f"give --model {config.model}"
    (tmp_path / "same").symlink_to(config.model)
    same = configure(model=str(tmp_path / "same"))
    told = prepare(same, folder, 1, False, last_of(folder)).job.changed
    assert told == [f"model is {tmp_path / 'same'}, and was {config.model}"]


def test_names_that_may_differ_can_be_short_and_are_corrected(configure: Configure) -> None:
    from aift_ray.commandline import parse

    for spelling in ("--resume-allow", "--resume.allow", "--resume_allow"):
        given = ["--resume", "latest", spelling, "seed", spelling, "training.weight_decay"]
        found = parse(given, RunConfig, "train", "").config
        assert found.resume_allow == ["training.seed", "training.weight_decay"]
    with pytest.raises(ConfigError, match=r"ray\.num_workers may differ anyway"):
        configure(resume="latest", resume_allow=["num-workers"])
    with pytest.raises(ConfigError, match=r"did you mean training\.seed\?"):
        configure(resume="latest", resume_allow=["training.seeed"])


def test_the_order_of_adapted_layers_is_no_difference(configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(configure(**LORA, lora__target_modules=["q_proj", "v_proj"]), folder)
    turned = configure(**LORA, lora__target_modules=["v_proj", "q_proj"])
    assert prepare(turned, folder, 1, False, last_of(folder)).job.changed == []
    with pytest.raises(ConfigError, match=r"lora\.target_modules"):
        prepare(
            configure(**LORA, lora__target_modules=["q_proj"]), folder, 1, False, last_of(folder)
        )


def finished(configure: Configure, folder: Path, **values: Any) -> RunConfig:
    """A run that is done, with its files as the command leaves them."""
    config = configure(**values)
    run_dir.start(config, folder)
    run(config, folder)
    assert run_dir.finished(folder)
    return config


def test_a_finished_run_goes_on_where_more_is_asked_for(
    configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    finished(configure, folder, training__max_steps=3)

    def done(**values: Any) -> bool:
        return resume_check.done(configure(**values, resume="latest"), folder)

    assert done(training__max_steps=3)
    assert done(training__max_steps=2)
    assert not done(training__max_steps=5)
    assert not done(training__num_epochs=2)
    with pytest.raises(ConfigError, match=r"training\.seed: 7 differs"):
        done(training__max_steps=3, training__seed=7)
    config = configure(training__max_steps=5, resume=str(last_of(folder)))
    prepared = prepare(config, folder, 1, False, last_of(folder))
    rate = learning_rate(config.training, 3, 5)
    (told,) = [line for line in prepared.warnings if "schedule" in line]
    assert "the run has 5 steps now, and had 3" in told
    assert f"step 4 has a rate of {rate:.2e}" in told
    run_on(config, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "loss" in line}
    assert rates[4] == pytest.approx(rate)
    assert [step for step, *_ in losses(folder)] == [1, 2, 3, 4, 5]
    assert run_dir.summary(folder)["steps"] == 5


def test_a_run_that_was_stopped_early_goes_on_with_more_patience(
    configure: Configure, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    values = {"training__max_steps": 5, "data__validation_fraction": 0.25}
    config = finished(configure, folder, **values, training__early_stopping_patience=1)
    run_dir.finish(folder, steps=3, stopped_early=True)
    config = configure(**values, training__early_stopping_patience=1, resume="latest")
    assert resume_check.done(config, folder)
    for patience in (0, 2):
        config = configure(**values, training__early_stopping_patience=patience, resume="latest")
        assert not resume_check.done(config, folder)


def test_epochs_count_as_steps_do(configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished(configure, folder, training__num_epochs=1)
    assert resume_check.done(configure(resume="latest"), folder)
    assert not resume_check.done(configure(resume="latest", training__num_epochs=2), folder)


@pytest.mark.parametrize(("warm_up", "warns"), [(1, False), (2, True)])
def test_a_warm_up_that_ends_with_the_last_step_reaches_its_rate(
    warm_up: int, warns: bool, configure: Configure, tmp_path: Path
) -> None:
    config = configure(training__max_steps=1, training__warmup_steps=warm_up)
    told = " ".join(prepare(config, tmp_path / "run", 1, False, None).warnings)
    assert ("never reaches" in told) == warns
    run(config, tmp_path / "run")
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert (json.loads(line)["learning_rate"] < config.training.learning_rate) == warns


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_on_other_weights_is_not_gone_on_with(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    folder, steady = tmp_path / "run", {"method": method, "training__save_steps": 1}
    run(configure(**steady), folder)
    same, other = (shutil.copytree(configure().model, tmp_path / n) for n in ("same", "other"))
    prepare(configure(**steady, model=str(same)), folder, 1, False, last_of(folder))
    weights = load_file(other / "model.safetensors")
    save_file({n: w + 1e-3 for n, w in weights.items()}, other / "model.safetensors")
    with pytest.raises(ConfigError, match=f"was trained on .*, and {other} has other weights"):
        prepare(configure(**steady, model=str(other)), folder, 1, False, last_of(folder))
    config = json.loads((same / "config.json").read_text("utf-8")) | {"rms_norm_eps": 0.5}
    (same / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ConfigError, match=r"other settings in .*: rms_norm_eps is 0.5, and was"):
        prepare(configure(**steady, model=str(same)), folder, 1, False, last_of(folder))
    assert "base" not in json.loads((folder / "model" / "aift_ray.json").read_text("utf-8")) or (
        method == "lora"
    )


def test_adapters_that_were_trained_beside_exact_experts_are_refused_on_4_bits(
    configure: Configure, tmp_path: Path
) -> None:
    before = RunState(step=1, trained_as="qlora in 4 bits")
    config = configure(method="qlora", resume="latest")
    with pytest.raises(ConfigError, match="experts in 16 bits, which are held in 4 now"):
        resume_check.check_experts(config, before, experts=8)
    resume_check.check_experts(config, before, experts=0)
    resume_check.check_experts(configure(method="lora", resume="latest"), before, experts=8)
    resume_check.check_experts(config, replace(before, settings={"model": "x"}), experts=8)
