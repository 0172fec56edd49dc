"""A run from start to end in this process: what it leaves, and going on after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aift_ray.data.collate import collate
from aift_ray.engine import checkpoint, loop, metrics
from aift_ray.engine.checkpoint.mirror import newest
from aift_ray.engine.loss import model_inputs
from aift_ray.engine.metrics import STOP
from aift_ray.errors import ConfigError, TrainingError
from aift_ray.planning.measured_rates import Rates, keep
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare
from tests.conftest import write_rows
from tests.helpers.runs import started, stepped
from tests.helpers.whole_runs import losses, resumed_exactly, run

Configure = Callable[..., Any]

CASES = {
    "full, concat": {"method": "full"},
    "lora with dropout": {"method": "lora", "lora__lora_dropout": 0.3},
    "lora, filled rows": {
        "method": "lora",
        "data__packing": "fill",
        "training__batch_size": 1,
        "lora__lora_dropout": 0.1,
    },
    "full, accumulated and padded": {
        "data__packing": "false",
        "training__batch_size": 2,
        "training__gradient_accumulation_steps": 2,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_gives_the_losses_of_one_that_was_never_stopped(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    values = {"training__batch_size": 4, "training__num_epochs": 2, "training__save_steps": 3}
    config = configure(**(values | CASES[name]))
    resumed_exactly(config, tmp_path)


def test_a_damaged_checkpoint_is_passed_over(configure: Configure, tmp_path: Path) -> None:
    config = configure(training__save_steps=1)
    folder = tmp_path / "run"
    run(config, folder)
    prepared = prepare(config, folder, 1, False, None)
    assert newest(prepared.job.checkpoints, None)[0] == folder / "checkpoints" / "step-3"
    weights = folder / "checkpoints" / "step-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert checkpoint.damage(weights.parent) == "model.safetensors has changed"
    assert newest(prepared.job.checkpoints, None)[0] == folder / "checkpoints" / "step-2"
    resuming = config.model_copy(update={"resume": "latest"})
    chosen, notes = run_dir.resume_point(resuming, folder)
    assert chosen == folder / "checkpoints" / "step-2"
    assert "step-3 is damaged" in notes[0]


def test_resuming_with_other_rows_or_another_method_is_noticed(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(training__save_steps=1)
    run(config, tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step-2"
    assert "changed since" not in " ".join(prepare(config, tmp_path, 1, False, step).warnings)
    (tmp_path / "train.jsonl").write_text('{"text": "別の行"}\n' * 30, "utf-8")
    with pytest.raises(ConfigError, match=r"data\.train_files: the rows .* changed since"):
        prepare(config, tmp_path, 1, False, step)
    other = configure(resume="latest", resume_allow=["data.train_files"])
    assert "changed since" in " ".join(prepare(other, tmp_path, 1, False, step).warnings)
    with pytest.raises(ConfigError, match="full training"):
        prepare(configure(method="lora"), tmp_path, 1, False, step)


def test_an_adapter_goes_on_with_its_own_base_only(
    configure: Configure, tiny_model: Path, tmp_path: Path
) -> None:
    run(configure(method="lora", training__save_steps=1), tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "step-2"
    copied = shutil.copytree(tiny_model, tmp_path / "copy")
    prepare(configure(method="lora", model=str(copied)), tmp_path, 1, False, step)
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"was trained on {tiny_model}, and .* other weights"):
        prepare(configure(method="lora", model=str(copied)), tmp_path, 1, False, step)


def test_a_run_tells_the_speed_that_was_computed_where_the_machine_was_measured(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = configure(training__max_steps=1)
    run(config, tmp_path / "unmeasured")
    assert run_dir.summary(tmp_path / "unmeasured")["estimated_tokens_per_second"] is None
    found = []
    for number, products in enumerate((1e-3, 2e-3)):
        keep(Rates("a thread", 2**34, {"bf16": 1.0, "fp32": products}, 1e6, None))
        run(config, tmp_path / str(number))
        found.append(run_dir.summary(tmp_path / str(number))["estimated_tokens_per_second"])
    assert found[0] < found[1] < 2 * found[0] + 1e-6, "twice the products, as much of the rest"


def test_a_stop_leaves_a_checkpoint_and_says_so(configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = configure(training__num_epochs=3)
    run_dir.start(config, folder)
    (folder / STOP).touch()
    run(config, folder)
    assert run_dir.summary(folder)["status"] == "interrupted"
    assert checkpoint.steps(folder / "checkpoints") == [1]
    assert not (folder / "model").exists()


def test_the_newest_checkpoints_and_the_best_are_kept(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", 4, 100)
    values = iter([9.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(
        "aift_ray.engine.validate.Validator.loss", lambda self, module: next(values)
    )
    config = configure(
        training__batch_size=4,
        training__save_steps=1,
        training__eval_steps=1,
        training__keep_checkpoints=2,
        training__load_best=True,
        data__eval_files=[str(held_out)],
    )
    done = run(config, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2, 5, 6]
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoints" / "step-2")
    for a, b in zip(best.parameters(), done.module.parameters(), strict=True):
        assert torch.equal(a, b), "the final model is the best one"
    assert run_dir.summary(tmp_path / "run")["eval_loss"] == 1.0


def test_training_stops_early_when_nothing_gets_better(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", 4, 100)
    values = iter([9.0, 3.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(
        "aift_ray.engine.validate.Validator.loss", lambda self, module: next(values)
    )
    config = configure(
        training__batch_size=2,
        training__eval_steps=1,
        training__early_stopping_patience=2,
        data__eval_files=[str(held_out)],
    )
    run(config, tmp_path / "run")
    summary = run_dir.summary(tmp_path / "run")
    assert (summary["status"], summary["stopped_early"], summary["steps"]) == ("done", True, 3)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(
    configure: Configure, tmp_path: Path
) -> None:
    broken = started(configure(), tmp_path)
    stepped(broken, 1)
    with torch.no_grad():
        next(broken.module.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 2: loss nan.*train\.jsonl:\d+"):
        stepped(broken, 1)


def test_a_batch_that_is_not_finite_is_left_out_where_that_is_allowed(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = started(configure(training__skip_nonfinite=1), tmp_path)
    before = [p.clone() for p in allowed.module.parameters()]
    forward = type(allowed.module).forward
    with monkeypatch.context() as patch:
        patch.setattr(type(allowed.module), "forward", lambda s, b: forward(s, b) * float("inf"))
        (line,) = stepped(allowed, 1)
        assert line["loss"] is None
        assert "train.jsonl:" in line["skipped"]
        for a, b in zip(before, allowed.module.parameters(), strict=True):
            assert torch.equal(a, b), "the weights are untouched"
    (line,) = stepped(allowed, 1)
    assert line["loss"] > 0, "and the next batch trains"
    with monkeypatch.context() as patch:
        patch.setattr(type(allowed.module), "forward", lambda s, b: forward(s, b) * float("inf"))
        with pytest.raises(TrainingError):
            stepped(allowed, 1)


def test_a_run_stops_when_its_time_is_up(configure: Configure, tmp_path: Path) -> None:
    run(configure(training__max_hours=1e-9), tmp_path / "run")
    summary = run_dir.summary(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("interrupted", 1)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [1]


def test_too_little_memory_is_seen_at_once_with_what_would_fit(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # stands for a GPU that is too small
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("aift_ray.engine.loss.LossModule.forward", full)
    monkeypatch.setattr(loop, "trial", loop.try_longest)
    values = {"training__gradient_checkpointing": True, "training__batch_size": 8}
    with pytest.raises(TrainingError) as caught:
        run(configure(**values), tmp_path / "run")
    message = str(caught.value)
    assert "weights" in message
    assert "--training.batch_size 4 --training.gradient_accumulation_steps 2" in message


def test_a_jump_of_the_loss_is_marked() -> None:
    calm = [{"step": i, "loss": 2.0 + 0.01 * (i % 3)} for i in range(30)]
    assert metrics._spikes(calm) == []
    calm[20]["loss"] = 4.0
    assert metrics._spikes(calm) == [(20, 4.0)]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_final_folder_gives_the_same_logits_in_plain_libraries(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    done = run(configure(method=method), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    loader = AutoModelForCausalLM if method == "full" else AutoPeftModelForCausalLM
    reloaded = loader.from_pretrained(folder, attn_implementation="documents")
    batch = collate(done.rows, [0, 1, 2], padded=False)
    with torch.no_grad():
        mine = done.module.model.eval()(**model_inputs(batch)).logits
        plain = reloaded.eval()(**model_inputs(batch)).logits
    torch.testing.assert_close(mine, plain, rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == done.job.chat_template
    wanted = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}[method]
    assert (folder / wanted).is_file()
    assert json.loads((folder / "generation_config.json").read_text("utf-8"))["eos_token_id"] == [
        done.job.load_tokenizer().eos_token_id
    ]


def test_a_run_leaves_what_the_documentation_lists(configure: Configure, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "eval.jsonl", 4, 100)
    config = configure(data__eval_files=[str(held_out)], training__exact_match_rows=2)
    folder = tmp_path / "run"
    run(config, folder)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("config.yaml", "metrics.jsonl", "summary.json", "loss.png"),
        *("checkpoints", "model", "tensorboard"),
    }
    summary = run_dir.summary(folder)
    assert summary["status"] == "done"
    assert summary["steps"] == 3
    for name in ("first_loss", "last_loss", "eval_loss_before", "eval_loss", "exact_match_before"):
        assert summary[name] is not None
    lines = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    for line in lines:
        if "loss" in line:
            assert set(line) == {
                *("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "time"),
                *("supervised_tokens", "tokens_per_second", "world_size"),
            }
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 3]
    assert list((folder / "tensorboard").glob("events*"))


def test_two_runs_give_the_same_losses_to_the_bit(configure: Configure, tmp_path: Path) -> None:
    config = configure(method="lora")
    run(config, tmp_path / "a")
    run(config, tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_the_trial_of_the_longest_batch_changes_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a GPU
    monkeypatch.setattr(loop, "trial", loop.try_longest)
    values = {"method": "lora", "lora__lora_dropout": 0.2}
    run(configure(**values, training__trial_batch=True), tmp_path / "tried")
    run(configure(**values, training__trial_batch=False), tmp_path / "untried")
    assert losses(tmp_path / "tried") == losses(tmp_path / "untried")


def test_no_micro_batch_is_longer_than_the_one_that_is_tried(
    configure: Configure, tmp_path: Path
) -> None:
    for packing in ("concat", "fill"):
        run_ = started(configure(training__batch_size=3, data__packing=packing), tmp_path)
        plan, lengths = run_.plan, run_.rows.lengths
        tried = lengths[plan.longest_micro_batch()].sum()
        parts = [p for step in range(plan.steps_per_epoch) for p in plan.share(step, 0, 1)]
        assert tried >= max(lengths[part].sum() for part in parts)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_bfloat16_trains_close_to_full_precision(
    method: str, configure: Configure, tmp_path: Path
) -> None:
    common = {"method": method, "lora__lora_dropout": 0.0, "training__learning_rate": 1e-3}
    run(configure(**common), tmp_path / "fp32")
    run(configure(**common, training__precision="bf16"), tmp_path / "bf16")
    exact, short = losses(tmp_path / "fp32"), losses(tmp_path / "bf16")
    for a, b in zip(exact, short, strict=True):
        assert abs(a[1] - b[1]) < 0.02
    stored = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    dtypes = {t.dtype for t in load_file(tmp_path / "bf16" / "model" / stored).values()}
    assert dtypes == {torch.bfloat16 if method == "full" else torch.float32}


def test_a_full_disk_leaves_no_half_written_checkpoint(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(training__save_steps=1)
    real = torch.save
    written: list[int] = []

    def full(*arguments: Any) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(1)
        real(*arguments)

    monkeypatch.setattr("aift_ray.engine.checkpoint.torch.save", full)
    with pytest.raises(TrainingError, match=r"step 2 could not be written.*No space left"):
        run(config, tmp_path / "run")
    left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert left == ["step-1"]
    assert checkpoint.damage(tmp_path / "run" / "checkpoints" / "step-1") is None
