"""The same examples make the same step, however they are spread, laid out or recomputed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aift_ray.data.collate import collate
from aift_ray.data.token_cache import load
from aift_ray.engine.loss import model_inputs
from tests.helpers.runs import curve, spawn, started, stepped

Configure = Callable[..., Any]

SPREADS = {
    "one by one, accumulated": {"training__batch_size": 1, "accumulation": 8},
    "two by two, accumulated": {"training__batch_size": 2, "accumulation": 4},
    "padded": {"data__packing": "false"},
    "padded and accumulated": {
        "data__packing": "false",
        "training__batch_size": 4,
        "accumulation": 2,
    },
    "filled up to 200 tokens": {"data__tokens_per_micro_batch": 200},
    "recomputed activations": {"training__gradient_checkpointing": True},
}


def settings(values: dict[str, Any]) -> dict[str, Any]:
    steps = "training__gradient_accumulation_steps"
    return {steps if k == "accumulation" else k: v for k, v in values.items()}


def close(a: list[tuple[float, float]], b: list[tuple[float, float]], at_least: int = 3) -> None:
    assert len(a) == len(b) >= at_least
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", SPREADS)
def test_batch_of_eight_is_the_same_step(
    name: str, method: str, configure: Configure, tmp_path: Path
) -> None:
    common = {"method": method, "lora__lora_dropout": 0.0}
    whole = curve(configure(**common), tmp_path)
    spread = curve(configure(**common, **settings(SPREADS[name])), tmp_path)
    close(whole, spread)
    assert whole[-1][0] < whole[0][0], "it learns"


def test_two_workers_take_the_same_steps_as_one(configure: Configure, tmp_path: Path) -> None:
    runs = {
        "full": configure(training__batch_size=4),
        "lora": configure(method="lora", lora__lora_dropout=0.0, training__batch_size=4),
        "accumulated": configure(training__batch_size=1, **settings({"accumulation": 4})),
        "by tokens": configure(training__batch_size=4, data__tokens_per_micro_batch=100),
        # 24 rows, 7 a worker and step: the last step leaves workers unequal shares
        "uneven": configure(training__batch_size=7),
        "one row left": configure(
            training__batch_size=1, training__num_epochs=1, **settings({"accumulation": 23})
        ),
    }
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({k: v.model_dump(mode="json") for k, v in runs.items()}), "utf-8")
    two = spawn(path, 2)
    for name, config in runs.items():
        training = config.training
        training.batch_size *= 2
        alone = curve(config, tmp_path)
        assert len(alone) == len(two[name])
        torch.testing.assert_close(
            torch.tensor(alone), torch.tensor(two[name]), rtol=1e-5, atol=1e-5
        )


def test_filled_rows_train_every_example_once(configure: Configure, tmp_path: Path) -> None:
    run = started(
        configure(data__packing="fill", training__batch_size=2, data__sequence_length=256), tmp_path
    )
    seen = [
        i
        for step in range(run.plan.steps_per_epoch)
        for part in run.plan.share(step, 0, 1)
        for i in part
    ]
    assert sorted(seen) == list(range(24))
    assert len(run.plan.units) < 24
    lines = stepped(run)
    assert sum(line["tokens"] for line in lines) == int(run.rows.lengths.sum())


def test_filled_rows_give_the_loss_of_the_same_rows_laid_end_to_end(
    configure: Configure, tmp_path: Path
) -> None:
    filled = started(configure(data__packing="fill", training__batch_size=64), tmp_path)
    whole = started(configure(training__batch_size=64), tmp_path)
    close(
        [(line["loss"], line["grad_norm"]) for line in stepped(filled)],
        [(line["loss"], line["grad_norm"]) for line in stepped(whole)],
        at_least=1,
    )


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
def test_documents_in_a_row_do_not_see_each_other(
    attention: str, configure: Configure, tmp_path: Path
) -> None:
    run = started(configure(), tmp_path)
    model: Any = run.module.model
    model.set_attn_implementation(attention)
    model.eval()
    batch = collate(run.rows, [0, 1, 2], padded=False)
    assert batch.cu_seqlens is not None
    first, second = int(batch.cu_seqlens[1]), int(batch.cu_seqlens[2])
    with torch.no_grad():
        before = model(**model_inputs(batch)).logits[0]
        batch.input_ids[0, first:second] = (batch.input_ids[0, first:second] + 7) % 4000 + 8
        after = model(**model_inputs(batch)).logits[0]
    torch.testing.assert_close(before[:first], after[:first], rtol=0, atol=0)
    torch.testing.assert_close(before[second:], after[second:], rtol=0, atol=0)
    assert not torch.allclose(before[first:second], after[first:second])


def test_loss_in_pieces_equals_the_loss_over_all_logits(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aift_ray.engine.chunked_loss.CHUNK", 7)
    run = started(configure(), tmp_path)
    batch = collate(run.rows, range(8), padded=False)
    results = []
    for function in (run.module, run.module.whole_logits_loss):
        run.module.zero_grad()
        loss = function(batch)
        (loss / 3).backward()
        results.append([loss.detach(), *[p.grad.clone() for p in run.module.parameters()]])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_fresh_adapters_change_nothing(configure: Configure, tmp_path: Path) -> None:
    full, lora = (started(configure(method=m), tmp_path) for m in ("full", "lora"))
    batch = collate(full.rows, range(4), padded=False)
    inputs = model_inputs(batch)
    with torch.no_grad():
        base = full.module.model.eval()(**inputs).logits
        adapted = lora.module.model.eval()(**inputs).logits
    torch.testing.assert_close(base, adapted, rtol=0, atol=0)


def test_only_adapters_are_trained(configure: Configure, tmp_path: Path) -> None:
    run = started(configure(method="lora"), tmp_path)
    trained = {name for name, p in run.module.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name or "embed" in name for name in trained)


def test_every_row_is_trained_once_an_epoch_in_an_order_of_its_own(
    configure: Configure, tmp_path: Path
) -> None:
    plan = started(configure(training__num_epochs=2, training__batch_size=5), tmp_path).plan
    steps = plan.steps_per_epoch
    epochs = [
        [
            row
            for step in range(e * steps, (e + 1) * steps)
            for unit in plan.global_units(step)
            for row in unit
        ]
        for e in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]


def test_shares_of_any_number_of_workers_are_the_global_batch(
    configure: Configure, tmp_path: Path
) -> None:
    plan = started(
        configure(training__batch_size=2, **settings({"accumulation": 4})), tmp_path
    ).plan
    for step in range(plan.steps_per_epoch):
        wanted = sorted(i for unit in plan.global_units(step) for i in unit)
        for world in (1, 2, 3, 5):
            shares = [plan.share(step, rank, world) for rank in range(world)]
            assert len({len(share) for share in shares}) == 1, "all take as many micro-steps"
            assert sorted(i for s in shares for part in s for i in part) == wanted
            assert max(len(part) for s in shares for part in s) <= 2


def test_prompt_tokens_are_never_targets(configure: Configure, tmp_path: Path) -> None:
    run = started(configure(), tmp_path)
    batch = collate(run.rows, range(24), padded=False)
    text = run.job.load_tokenizer().decode(batch.labels.tolist())
    assert "言ってください" not in text
    assert text.count("<|im_end|>") == 24
    assert len(batch.labels) == load(run.job.cache).train.supervised_tokens
