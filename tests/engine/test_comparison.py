"""A run that compares answers: where it begins, what it leaves, and going on after a stop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from aift_ray.engine import reference_logprobs
from aift_ray.engine.step_batches import micro_batch
from aift_ray.errors import ConfigError, DataError, ModelError
from aift_ray.runs.prepare import prepare
from tests.conftest import make_tiny_model
from tests.helpers.preference_rows import labelled, pairs, write
from tests.helpers.runs import started, stepped
from tests.helpers.whole_runs import Killed, losses, run

Configure = Callable[..., Any]
BEGINS = {"dpo": math.log(2), "ipo": 25.0, "hinge": 1.0, "kto": 0.5}


@torch.no_grad()
def log_probability(model: Any, ids: np.ndarray, flags: np.ndarray) -> float:
    """Of the supervised tokens of a row, by transformers' own forward."""
    logits = model(torch.tensor(ids)[None].long()).logits[0].log_softmax(-1)
    return sum(float(logits[at - 1, ids[at]]) for at in np.flatnonzero(flags))


@pytest.fixture
def compared(configure: Configure, tmp_path: Path) -> Callable[..., Any]:
    """A RunConfig of an objective; of each test its own cache."""

    def make(objective: str, **values: Any) -> Any:
        labels = objective == "kto"
        rows = write(tmp_path / f"{objective}.jsonl", labelled(12) if labels else pairs(12))
        common = {
            "objective": objective,
            "data__train_files": [str(rows)],
            "data__cache_dir": str(tmp_path / "cache"),
            "training__batch_size": 3,
            "training__gradient_accumulation_steps": 2,
            "training__max_steps": 2,
            "training__learning_rate": 1e-3,
            "lora__lora_dropout": 0.1,
        }
        return configure(**(common | values))

    return make


STARTS = [("dpo", "full"), ("dpo", "lora"), ("dpo", "qlora")]
STARTS += [(name, "lora") for name in BEGINS if name != "dpo"]
OTHERS = [(name, method) for name in BEGINS for method in ("full", "qlora") if name != "dpo"]


@pytest.mark.parametrize(
    ("objective", "method"),
    [*STARTS, *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)],
)
def test_the_first_step_is_that_of_a_model_that_is_its_reference(
    objective: str, method: str, compared: Callable[..., Any], tmp_path: Path
) -> None:
    first = stepped(started(compared(objective, method=method), tmp_path), 1)[0]
    assert first["loss"] == pytest.approx(BEGINS[objective], abs=1e-6)
    assert first["rewards/margins"] == 0


@pytest.mark.slow
def test_micro_batches_and_packing_change_nothing(
    compared: Callable[..., Any], tmp_path: Path
) -> None:
    ways = {
        "whole": {"training__batch_size": 6, "training__gradient_accumulation_steps": 1},
        "one by one": {"training__batch_size": 1, "training__gradient_accumulation_steps": 6},
        "padded": {"data__packing": "false"},
    }
    for objective in ("dpo", "orpo", "kto", "reward"):
        found = {
            name: stepped(started(compared(objective, method="full", **how), tmp_path))
            for name, how in ways.items()
        }
        first = found.pop("whole")
        for lines in found.values():
            for one, other in zip(first, lines, strict=True):
                for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected"):
                    assert one[name] == pytest.approx(other[name], rel=2e-5, abs=2e-6), name


SHARING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dpo, full": ("dpo", "llama", {"method": "full"}),
    "dpo, filled and recomputed": (
        "dpo",
        "llama",
        {"method": "lora", "data__packing": "fill", "training__gradient_checkpointing": True},
    ),
    "orpo, windows and softcapping": ("orpo", "gemma2", {"method": "lora"}),
    "reward, lora": ("reward", "llama", {"method": "lora"}),
}


@pytest.mark.parametrize("case", SHARING)
def test_a_prompt_that_two_answers_share_is_computed_once_and_changes_nothing(
    case: str, compared: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, kind, how = SHARING[case]
    model = make_tiny_model(tmp_path / "model", kind)
    config = compared(objective, model=str(model), lora__lora_dropout=0.0, **how)
    runs = {True: started(config, tmp_path)}
    with monkeypatch.context() as patched:
        patched.setattr(reference_logprobs, "shares_prompts", lambda job: False)
        runs[False] = started(config, tmp_path)
    tokens = {}
    for shared, run_of in runs.items():
        batch = micro_batch(run_of, [0, 1, 2, 3])
        tokens[shared] = batch.input_ids.shape[1]
        assert (batch.places is not None) == shared
    prompts = [int(runs[True].rows.row(row)[1].argmax()) for row in (0, 2)]
    assert tokens[False] - tokens[True] == sum(prompts)
    assert min(prompts) > 10
    for one, other in zip(*(stepped(runs[shared]) for shared in (True, False)), strict=True):
        for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected"):
            assert one[name] == pytest.approx(other[name], rel=2e-5, abs=2e-6), name


CASES = {
    "dpo, lora with dropout": ("dpo", {"method": "lora", "lora__lora_dropout": 0.3}),
    "kto, full": ("kto", {"method": "full"}),
    "reward, lora": ("reward", {"method": "lora"}),
    "dpo, filled": ("dpo", {"method": "full", "data__packing": "fill", "training__batch_size": 1}),
}


SLOW = ("reward, lora", "dpo, filled")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_a_killed_run_goes_on_to_the_bit(
    case: str, compared: Callable[..., Any], tmp_path: Path
) -> None:
    objective, how = CASES[case]
    held_out = labelled(4, 50) if objective == "kto" else pairs(4, 50)
    config = compared(
        objective,
        **how,
        data__eval_files=[str(write(tmp_path / "eval.jsonl", held_out))],
        training__max_steps=4,
        training__save_steps=2,
        training__eval_steps=2,
    )
    run(config, tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", kill_at=2)
    # the references are lost with the cache of another machine
    for kept in (tmp_path / "cache").rglob("reference-*.npy"):
        kept.unlink()
    resumed = config.model_copy(update={"resume": "latest"})
    run(resumed, tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text("utf-8"))
        for name in ("whole", "killed")
    ]
    for name in ("eval_loss_before", "eval_loss", "eval_accuracy_before", "eval_accuracy"):
        assert summaries[0][name] == summaries[1][name] is not None


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_mixture_tells_the_loss_of_each_set(
    objective: str, compared: Callable[..., Any], tmp_path: Path
) -> None:
    make = labelled if objective == "kto" else pairs
    first, second = (str(write(tmp_path / f"{n}.jsonl", make(n, 20 + n))) for n in (7, 12))
    mixed = [{"files": [first], "name": "a", "rows": 14}, {"files": [second], "name": "b"}]
    done = started(compared(objective, data__mixture=mixed, data__train_files=[]), tmp_path)
    assert done.plan.mixture
    assert done.plan.mixture.amounts == (14, 12)
    for step, line in enumerate(stepped(done)):
        losses, weights = line["loss_by_set"], done.plan.set_weights(step)
        assert sum(weights) == 6
        each = zip(losses.values(), weights, strict=True)
        total = sum(loss * weight for loss, weight in each if weight)
        assert total / 6 == pytest.approx(line["loss"], rel=1e-6)
    # of one set it is the run without a mixture
    plain = started(compared(objective, data__train_files=[second]), tmp_path)
    one = started(compared(objective, data__mixture=mixed[1:], data__train_files=[]), tmp_path)
    assert [line["loss"] for line in stepped(one)] == [line["loss"] for line in stepped(plain)]


def test_references_are_computed_once_for_all_runs_of_the_same_rows(
    compared: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    computed = reference_logprobs._computed

    def counted(*given: Any) -> Any:
        asked.append(given)
        return computed(*given)

    monkeypatch.setattr(reference_logprobs, "_computed", counted)
    config = compared("dpo", method="lora")
    one = stepped(started(config, tmp_path))
    number = len(asked)
    again = stepped(started(config, tmp_path))
    assert number == 4, "two steps of two micro-batches"
    assert len(asked) == number
    assert one[-1]["loss"] == again[-1]["loss"]
    stepped(started(compared("ipo", method="lora"), tmp_path))
    assert len(asked) == 2 * number, "rows of another file"


def test_another_reference_shifts_the_rewards(compared: Callable[..., Any], tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", num_hidden_layers=3)
    config = compared("dpo", method="lora", preference__reference=str(other))
    run_of = started(config, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(other).eval()
    wanted = log_probability(model, *run_of.rows.row(0))
    assert run_of.comparison is not None
    assert float(run_of.comparison.reference[0]) == pytest.approx(wanted, rel=1e-5)


def test_a_reference_of_another_vocabulary_is_refused(
    compared: Callable[..., Any], tmp_path: Path, tiny_model: Path
) -> None:
    other = make_tiny_model(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["新語"])
    tokenizer.save_pretrained(other)
    config = compared("dpo", preference__reference=str(other))
    with pytest.raises(ConfigError, match="another vocabulary"):
        prepare(config, tmp_path / "out", 1, False, None)


def test_a_reference_that_is_none_is_named_by_its_setting(
    compared: Callable[..., Any], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}", "utf-8")
    for name in ("nosuchmodel", str(adapter)):
        with pytest.raises(ModelError) as caught:
            prepare(compared("dpo", preference__reference=name), tmp_path / "out", 1, False, None)
        [problem] = caught.value.problems
        assert problem.where == "preference.reference"
        assert "--lora.init_from" not in str(problem)


def test_a_wrong_reference_and_wrong_rows_are_told_at_once(
    compared: Callable[..., Any], tmp_path: Path
) -> None:
    rows = write(tmp_path / "wrong.jsonl", [{"prompt": "a", "chosen": "b"}])
    config = compared("dpo", preference__reference="", data__train_files=[str(rows)])
    with pytest.raises(DataError) as caught:
        prepare(config, tmp_path / "out", 1, False, None)
    assert [each.where for each in caught.value.problems] == ["preference.reference", f"{rows}:1"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_reward_model_is_a_plain_classifier(
    method: str, compared: Callable[..., Any], tmp_path: Path
) -> None:
    held_out = write(tmp_path / "eval.jsonl", pairs(3, 50))
    config = compared(
        "reward", method=method, lora__lora_dropout=0.0, data__eval_files=[str(held_out)]
    )
    done = run(config, tmp_path / "out")
    folder = tmp_path / "out" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = folder if method == "full" else config.model
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    if method == "lora":
        model = PeftModel.from_pretrained(model, folder)
    texts = [
        tokenizer.apply_chat_template([*row["prompt"], *row[name]], tokenize=False)
        for row in pairs(3, 50)
        for name in ("chosen", "rejected")
    ]
    tokens = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    scores = model.eval()(**tokens).logits[:, 0].reshape(-1, 2)
    margin = float((scores[:, 0] - scores[:, 1]).detach().mean())
    assert done.evaluator is not None
    assert done.evaluator.measures["rewards/margins"] == pytest.approx(margin, abs=1e-5)


def test_a_trained_adapter_is_the_one_that_was_measured(
    compared: Callable[..., Any], tmp_path: Path
) -> None:
    done = run(compared("dpo", method="lora", lora__lora_dropout=0.0), tmp_path / "out")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "model").eval()
    assert done.comparison is not None
    done.module.eval()
    wanted = log_probability(model, *done.rows.row(0))
    found = done.comparison.log_probabilities(done.module, [0, 1])
    assert float(found[0]) == pytest.approx(wanted, rel=1e-5)
