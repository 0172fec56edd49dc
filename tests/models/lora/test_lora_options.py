"""rsLoRA, DoRA, LoRA+, NEFTune and layers trained as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from aift_ray.commandline import validated
from aift_ray.data.collate import collate
from aift_ray.engine.loss import LossModule, model_inputs, noisy
from aift_ray.errors import ConfigError
from aift_ray.runs.prepare import prepare
from tests import parity
from tests.conftest import make_tiny_model, write_rows
from tests.helpers.runs import curve, started, stepped
from tests.helpers.whole_runs import Killed, resumed_exactly, run

Configure = Callable[..., Any]
OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"lora__use_rslora": True},
    "dora": {"lora__use_dora": True},
    "dora on nf4": {"lora__use_dora": True, "method": "qlora"},
    "pissa": {"lora__init_lora_weights": "pissa"},
    "pissa, scaled by the root": {
        "lora__init_lora_weights": "pissa",
        "lora__use_rslora": True,
        "lora__bias": "lora_only",
    },
    "loftq": {"lora__init_lora_weights": "loftq", "method": "qlora"},
    "whole layers": {"lora__modules_to_save": ["embed_tokens", "norm"]},
    "lora+": {"lora__lora_plus_ratio": 8.0},
    "neftune": {"training__neftune_noise_alpha": 5.0},
}


def logits(model: torch.nn.Module, done: Any) -> torch.Tensor:
    with torch.no_grad():
        batch = collate(done.rows, [0, 1, 2], padded=False)
        found: torch.Tensor = model.eval()(**model_inputs(batch)).logits
        return found


@pytest.mark.parametrize("name", OPTIONS)
def test_it_resumes_exactly_and_its_adapter_loads_in_plain_peft(
    name: str, configure: Configure, tiny_model: Path, tmp_path: Path
) -> None:
    values = {"method": "lora", "training__batch_size": 6, "training__save_steps": 2}
    config = configure(**values | OPTIONS[name], lora__lora_dropout=0.3, lora__r=4)
    whole = resumed_exactly(config, tmp_path, at=2)
    trained = [p for p in whole.module.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    if config.base_bits is None:
        base = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="documents")
        plain = PeftModel.from_pretrained(base, tmp_path / "whole" / "model")
        found, wanted = logits(plain, whole), logits(whole.module.model, whole)
        # PiSSA's are put together in another order
        slack = 1e-5 if "pissa" in name else 0
        torch.testing.assert_close(found, wanted, rtol=0, atol=slack)


@pytest.mark.parametrize("name", [*OPTIONS][:-1])
def test_a_batch_of_eight_is_the_same_step_however_it_is_spread(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    common = {"method": "lora", "training__learning_rate": 1e-3} | OPTIONS[name]
    common |= {"lora__lora_dropout": 0.0}
    whole = curve(configure(**common), tmp_path)
    spread = {"training__batch_size": 2, "training__gradient_accumulation_steps": 4}
    other = curve(configure(**common, **spread, training__gradient_checkpointing=True), tmp_path)
    assert whole[-1][0] < whole[0][0], "it learns"
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(other), rtol=1e-4, atol=1e-4)


SPREAD: dict[str, dict[str, Any]] = {
    "fsdp": {
        "pissa": {"init_lora_weights": "pissa"},
        "whole layers": {"modules_to_save": ["embed_tokens", "norm"]},
        "dora": {"use_dora": True},
        "lora+": {"lora_plus_ratio": 8.0},
    },
    "tensor": {
        "pissa": {"init_lora_weights": "pissa"},
        "whole layers": {"modules_to_save": ["embed_tokens", "norm"]},
        "lora+": {"lora_plus_ratio": 8.0},
    },
    "pipeline": {
        "whole layers": {"modules_to_save": ["norm"]},
        "dora": {"use_dora": True},
        "lora+": {"lora_plus_ratio": 8.0},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SPREAD)
def test_two_workers_train_what_one_process_trains(strategy: str, tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "deep", num_hidden_layers=4)
    rows = write_rows(tmp_path / "train.jsonl", 22)

    def configured(name: str, how: str, workers: int) -> Any:
        config = parity.settings((how, "lora", "fp32", "concat"), workers, model, rows)
        values = config.model_dump(mode="json")
        return validated(values | {"lora": values["lora"] | SPREAD[strategy][name]})

    split = {name: configured(name, strategy, 2) for name in SPREAD[strategy]}
    curves, weights = parity.spread(split, tmp_path, 2)
    for name in split:
        one = parity.alone(configured(name, "ddp", 1), tmp_path)
        # LoRA+ moves eight times as far in a step, and so does rounding
        bound = 1e-4 if name == "lora+" else 1e-5
        assert max(parity.differences(one, (curves[name], weights[name]))) < bound, name


def test_rslora_scales_by_the_root_of_the_rank(configure: Configure, tmp_path: Path) -> None:
    scales = {}
    for root in (False, True):
        config = configure(method="lora", lora__r=16, lora__lora_alpha=8, lora__use_rslora=root)
        model = started(config, tmp_path).module.model
        found = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
        (scales[root],) = found
    assert scales == {False: 8 / 16, True: 8 / math.sqrt(16)}


def test_before_the_first_step_every_option_answers_as_the_base(
    configure: Configure, tiny_model: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="documents")
    for name, values in OPTIONS.items():
        config = configure(**{"method": "lora"} | values)
        if config.base_bits is None:
            fresh = started(config, tmp_path)
            torch.testing.assert_close(
                logits(fresh.module.model, fresh), logits(base, fresh), rtol=0, atol=1e-6, msg=name
            )


def test_pissa_takes_its_start_from_the_base_and_its_adapter_gives_it_back(
    configure: Configure, tiny_model: Path, tmp_path: Path
) -> None:
    config = configure(method="lora", lora__init_lora_weights="pissa", lora__r=4)
    done = run(config, tmp_path / "run")
    published = AutoModelForCausalLM.from_pretrained(tiny_model)
    for name, module in done.module.model.named_modules():
        if isinstance(module, LoraLayer):
            weight = published.get_submodule(name.removeprefix("base_model.model.")).weight
            left = torch.linalg.svdvals(module.get_base_layer().weight)
            before = torch.linalg.svdvals(weight)
            # what was largest is no longer in the base
            torch.testing.assert_close(left[0], before[4], rtol=0.1, atol=0)
    final = PeftConfig.from_pretrained(tmp_path / "run" / "model")
    assert (final.r, final.init_lora_weights) == (8, True)
    last = tmp_path / "run" / "checkpoints" / f"step-{done.state.step}"
    assert PeftConfig.from_pretrained(last).r == 4, "what is trained further is not doubled"


def test_loftq_starts_nearer_to_the_published_model(
    configure: Configure, tiny_model: Path, tmp_path: Path
) -> None:
    config = configure(method="qlora", lora__init_lora_weights="loftq", lora__r=8)
    fresh = started(config, tmp_path).module.model
    published = AutoModelForCausalLM.from_pretrained(tiny_model)
    for name, module in fresh.named_modules():
        if isinstance(module, LoraLayer):
            weight = published.get_submodule(name.removeprefix("base_model.model.")).weight
            held = module.get_base_layer().weight
            now = dequantize_4bit(held.data, held.quant_state)
            lost = torch.linalg.svdvals(weight - now)
            rest = (weight - now - module.get_delta_weight("default")).norm()
            torch.testing.assert_close(rest, lost[8:].norm(), rtol=0.05, atol=0)


def test_where_adapters_can_not_start_is_refused(configure: Configure, tmp_path: Path) -> None:
    pissa, loftq = ({"lora__init_lora_weights": name} for name in ("pissa", "loftq"))
    with pytest.raises(ConfigError, match="which 4 bits can't give"):
        configure(method="qlora", **pissa)
    with pytest.raises(ConfigError, match="the base is not in 4 bits"):
        configure(method="lora", **loftq)
    with pytest.raises(ConfigError, match="both say where the adapters start"):
        configure(method="lora", lora__use_dora=True, **pissa)
    run(configure(method="lora", **pissa), tmp_path / "run")
    checkpoint = str(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    with pytest.raises(ConfigError, match=r"init_lora_weights: default differs from the pissa"):
        prepare(configure(method="lora"), tmp_path / "run", 1, False, Path(checkpoint))


def test_lora_plus_multiplies_the_rate_of_b_alone(configure: Configure, tmp_path: Path) -> None:
    values = {"method": "lora", "lora__lora_plus_ratio": 8.0, "training__warmup_steps": 2}
    fresh = started(configure(**values), tmp_path)
    (line,) = stepped(fresh, 1)
    rates = {id(p): g["lr"] for g in fresh.optimizer.param_groups for p in g["params"]}
    for name, parameter in fresh.module.named_parameters():
        if parameter.requires_grad:
            factor = 8 if "lora_B" in name else 1
            assert rates[id(parameter)] == line["learning_rate"] * factor


def test_another_ratio_than_the_checkpoint_s_is_taken_or_refused(
    configure: Configure, tmp_path: Path
) -> None:
    values = {"method": "lora", "training__save_steps": 2}
    with pytest.raises(Killed):
        run(configure(**values, lora__lora_plus_ratio=8.0), tmp_path / "run", kill_at=2)
    with pytest.raises(ConfigError, match=r"lora\.lora_plus_ratio: was 1"):
        run(configure(**values), tmp_path / "run")
    other = run(configure(**values, lora__lora_plus_ratio=4.0), tmp_path / "run")
    assert [group["factor"] for group in other.optimizer.param_groups] == [1.0, 4.0]


def test_noise_is_bounded_by_each_document_s_length_and_stays_out_of_evaluation(
    configure: Configure, tmp_path: Path
) -> None:
    fresh = started(configure(training__neftune_noise_alpha=5.0), tmp_path)
    table = fresh.module.model.get_input_embeddings()  # type: ignore[operator]
    for padded in (False, True):
        batch = collate(fresh.rows, [0, 1, 2], padded)
        clean = table(batch.input_ids)
        with noisy(table, 5.0, batch):
            noise = (table(batch.input_ids) - clean).abs()
        bound = 5.0 / (batch.document_lengths() * clean.shape[-1]).sqrt()
        ratio = noise.amax(-1) / bound
        assert ratio.min() > 0.8
        assert ratio.max() <= 1 + 1e-5
        assert torch.equal(table(batch.input_ids), clean), "the hook is gone"
    plain = LossModule(fresh.module.model)
    assert fresh.module.train()(batch) != plain.train()(batch)
    assert torch.equal(fresh.module.eval()(batch), plain.eval()(batch))


def test_layers_that_can_not_be_trained_as_a_whole_are_refused(
    configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"to_save: no layer is called 'nothing'\n.* norm"):
        started(configure(method="lora", lora__modules_to_save=["nothing"]), tmp_path)
    with pytest.raises(ConfigError, match="'up_proj' is held in 4 or 8 bits"):
        started(configure(method="qlora", lora__modules_to_save=["up_proj"]), tmp_path)
    both = {"lora__modules_to_save": ["q_proj"], "lora__target_modules": ["q_proj"]}
    with pytest.raises(ConfigError, match="q_proj is listed in target_modules, too"):
        configure(method="lora", **both)
