"""`aift-ray plan`: at once and without torch, the figures of a run, commands that can be typed."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aift_ray import plan
from aift_ray.commandline import parse
from aift_ray.config import PlanConfig, RunConfig, ServeConfig
from aift_ray.config.preference_config import PREFERENCE_OBJECTIVES
from aift_ray.models.catalog import CATALOG
from aift_ray.models.config_stats import numbers_of, table
from aift_ray.models.model_stats import measured
from aift_ray.planning import serve_plan, speed, train_plan
from aift_ray.planning.candidates import Candidate
from aift_ray.planning.gpu_specs import CARDS
from aift_ray.planning.memory_estimate import GIB, Workload
from aift_ray.planning.model_shape import Shape
from aift_ray.runs import memory_fit
from aift_ray.runs.prepare import prepare
from aift_ray.utils.exit_status import guarded
from tests.conftest import SHIPPED, make_tiny_mixture, make_tiny_model, write_rows
from tests.helpers import counted
from tests.helpers.tiny_families import make_hybrid

ELYZA, B13 = "elyza/Llama-3-ELYZA-JP-8B", "tokyotech-llm/Swallow-13b-instruct-hf"
OSS = next(n for n, e in CATALOG.items() if e.architecture.model_type == "gpt_oss")
Planned = Callable[..., dict[str, Any]]


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str]) -> Planned:
    """What the verb says as JSON."""

    def call(*argv: str) -> dict[str, Any]:
        assert guarded(plan.run, [*argv, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


def test_it_takes_less_than_a_second_and_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from aift_ray.__main__ import main\n"
        "late = ('torch', 'ray', 'transformers', 'numpy', 'pyarrow')\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('loaded:', [name for name in late if name in sys.modules])\n"
    )
    argv = ["plan", "--model", ELYZA, "--gpus", "2", "--gpu-memory", "24GB"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "loaded: []" in done.stdout
    ways = ["ddp", "zero1", "zero2", "fsdp, offload", "fsdp, context", "tensor", "pipeline"]
    for name in (*ways, "model_parallel"):
        assert f"\n{name} " in done.stdout
    # a fast machine takes 0.3 s
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


@pytest.mark.parametrize(
    "further",
    [
        "--backend fsdp2",
        "--backend deepspeed",
        "--activation-checkpointing selective",
        "--activation-offloading true",
    ],
)
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_its_memory_is_that_of_the_run_it_names(
    method: str, further: str, planned: Planned
) -> None:
    given = ("--method", method, "--gpus", "2", "--batch-size", "1", *further.split())
    found = planned("--model", B13, *given)
    assert any(row["fits"] for row in found["strategies"])
    shape = Shape.of(CATALOG[B13].config)
    for row in found["strategies"]:
        name, _, how = row["strategy"].partition(", ")
        if name == "model_parallel" or not row["fits"]:
            continue
        argv = shlex.split(row["command"])
        config = parse(argv[2:], RunConfig, "train", "").config
        need = memory_fit.needs(config, shape, 2048, 2, True, 0)
        apart = 2 if name in ("tensor", "pipeline") else 0
        wanted = need(Candidate(method, name, how == "offload", apart))
        if name == "tensor":
            config.parallel.tensor_parallel_size = 2
            wanted = need(Candidate(method, name))
        assert row["memory"]["total"] == wanted.total
        filled = None if name == "pipeline" else 2048
        assert config.data.tokens_per_micro_batch == filled


def test_a_command_fills_micro_steps_with_the_tokens_of_its_row(
    planned: Planned, tmp_path: Path
) -> None:
    given = ("--sequence-length", "512", "--batch-size", "1", "--gradient-accumulation-steps", "16")
    found = planned(*given)
    assert found["tokens_per_micro_step"] == 512
    argv = shlex.split(found["strategies"][0]["command"])[2:]
    rows = write_rows(tmp_path / "rows.jsonl", 64)
    argv[argv.index("rows.jsonl")] = str(rows)
    config = parse([*argv, "--data.cache_dir", str(tmp_path / "cache")], RunConfig, "train", "")
    run = prepare(config.config, tmp_path / "run", 1, False, None)
    # rows of some 20 tokens: one a micro-step without it
    assert 300 < run.plan.tokens_per_micro_step(1) <= 512
    assert run.plan.global_batch == 16
    pairs = planned(*given, "--objective", "dpo")
    assert " --data.tokens_per_micro_batch 1024 " in pairs["strategies"][0]["command"]


@pytest.mark.parametrize(
    ("model", "rank", "method", "strategy", "gib"),
    [
        (ELYZA, "16", "lora", "ddp", 18.5),
        ("cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B", "8", "qlora", "fsdp", 19.5),
        (B13, "16", "lora", "pipeline", 15.5),
    ],
)
def test_two_cards_hold_what_was_added_up_by_hand(
    model: str, rank: str, method: str, strategy: str, gib: float, planned: Planned
) -> None:
    given = ("--model", model, "--method", method, "--r", rank, "--batch-size", "1", *GPUS)
    rows = {row["strategy"]: row for row in planned(*given)["strategies"]}
    assert rows[strategy]["memory"]["total"] / GIB == pytest.approx(gib, rel=0.05)
    assert rows[strategy]["fits"]


def test_cards_that_divide_rows_hold_longer_ones(planned: Planned) -> None:
    given = ("--model", ELYZA, "--gpus", "2", "--gpu-memory", "22GB", "--batch-size", "1")
    rows = {
        length: {
            row["strategy"]: row
            for row in planned(*given, "--sequence-length", str(length))["strategies"]
        }
        for length in (2048, 8192)
    }
    whole, part = rows[8192]["ddp"], rows[8192]["ddp, context"]
    assert not whole["fits"]
    assert part["fits"]
    # half of the tokens, and the keys and values of all: 128 KiB a token of 32 blocks, three times
    gathered = 3 * 8192 * 4096
    half = whole["memory"]["activations"] / 2
    assert part["memory"]["activations"] == pytest.approx(half + gathered, rel=1e-6)
    assert "--parallel.context_parallel_size 2 " in part["command"]
    # of each row the other's keys and values: gathered twice, and summed on the way back
    micro_steps, sent = 4, 4096 * 131072 * 3
    waited = part["seconds_of_a_step"]["keys and values"]
    assert waited == pytest.approx(micro_steps * sent / (0.8 * 31.5e9), rel=1e-6)
    for name in ("ddp", "fsdp"):
        slower = (
            rows[8192][name]["tokens_per_second"]
            / rows[8192][f"{name}, context"]["tokens_per_second"]
        )
        assert 1 < slower < 1.1
    # short rows are not worth it
    assert rows[2048]["ddp"]["fits"]
    assert planned(*given)["best"] == "ddp"
    other = planned(*given, "--objective", "dpo")["strategies"]
    assert not [row for row in other if "context" in row["strategy"]]


def test_rows_that_are_padded_are_not_divided(planned: Planned, tmp_path: Path) -> None:
    hybrid = str(make_hybrid(tmp_path / "hybrid"))
    found = planned("--model", hybrid, "--sequence-length", "256", *GPUS)["strategies"]
    assert not [row for row in found if "context" in row["strategy"]]


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo", "reward"])
def test_an_objective_has_the_memory_of_its_run_and_the_time_of_its_reference(
    objective: str, planned: Planned
) -> None:
    given = ("--model", ELYZA, "--gpus", "2")
    sft = {row["strategy"]: row for row in planned(*given, "--batch-size", "8")["strategies"]}
    pairs = objective != "kto"
    size = "4" if pairs else "8"
    found = planned(*given, "--objective", objective, "--batch-size", size)
    assert found["tokens_per_micro_step"] == 8 * 2048
    for row in found["strategies"]:
        other = sft[row["strategy"]]
        if objective == "reward" and row["strategy"] in ("tensor", "pipeline", "model_parallel"):
            assert "objective reward" in row["limit"]
            continue
        memory, same = dict(row["memory"]), dict(other["memory"])
        if objective == "reward":
            assert memory.pop("logits") == 0
            assert same.pop("logits")
            for name in ("total", "slack"):
                assert memory.pop(name) < same.pop(name)
        assert memory == same
        if row["strategy"] == "ddp":
            # operations by the parameter: forward, backward, recomputation; and the reference
            passes = {"dpo": 8 / 6, "kto": 12 / 6}.get(objective, 1.0)
            slower = other["tokens_per_second"] / row["tokens_per_second"]
            assert slower == pytest.approx(passes, rel=0.05)
        if row["fits"]:
            config = parse(shlex.split(row["command"])[2:], RunConfig, "train", "").config
            assert config.objective == objective


def test_generated_completions_take_memory_of_their_own_and_time(planned: Planned) -> None:
    given = ("--model", ELYZA, "--method", "qlora", "--gpus", "2", "--sequence-length", "1024")
    found = planned(*given, "--objective", "grpo", "--max-completion-length", "512")
    ddp, *others = found["strategies"]
    sharded = [row for row in others if row["strategy"] in ("zero1", "zero2", "fsdp")]
    divided = [row for row in others if row not in sharded]
    assert all("a whole model on each card" in row["limit"] for row in divided)
    assert not any(row["fits"] for row in divided)
    assert len(sharded) == 3
    for row in sharded:
        # all weights of the blocks for a generation, and a share of them in a step of fsdp
        assert row["phase"] == "generate"
        assert row["memory"]["gathered"] > ddp["memory"]["weights"] * 0.5
    [sft, *_] = planned(*given)["strategies"]
    # keys and values of 64 completions of 1,024 tokens, 128 KiB each
    assert ddp["memory"]["cache"] == 64 * 1024 * 128 * 1024
    assert ddp["phase"] == "generate"
    assert ddp["phases"]["generate"] == ddp["memory"]["total"] > ddp["phases"]["step"]
    assert set(ddp["seconds_of_a_step"]) == {*sft["seconds_of_a_step"], "generation"}
    assert ddp["tokens_per_second"] < sft["tokens_per_second"]
    config = parse(shlex.split(ddp["command"])[2:], RunConfig, "train", "").config
    assert config.objective == "grpo"
    assert config.grpo.max_completion_length == 512
    config.lora.lora_dropout = 0.0
    need = memory_fit.needs(config, numbers_of(ELYZA).shape, 4096, 2, True, 0)
    assert need(Candidate("qlora", "ddp")).total == ddp["memory"]["total"]
    # actors beside the workers generate
    config.grpo.placement = "apart"
    need = memory_fit.needs(config, numbers_of(ELYZA).shape, 4096, 2, True, 0)
    assert need(Candidate("qlora", "ddp")).total == ddp["phases"]["step"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_kl_takes_a_forward_pass_and_of_full_training_a_second_model(
    method: str, planned: Planned
) -> None:
    model = "SakanaAI/TinySwallow-1.5B-Instruct"
    given = ("--model", model, "--method", method, "--gpus", "2", "--objective", "grpo")
    given = (*given, "--sequence-length", "1024", "--gpu", "a6000")
    without, with_kl = (planned(*given, *more)["strategies"] for more in ((), ("--beta", "0.1")))
    for row, other in zip(with_kl, without, strict=True):
        if not (row["memory"] and other["memory"]):
            continue
        strategy = row["strategy"]
        grown = row["memory"]["weights"] - other["memory"]["weights"]
        if method == "lora":
            assert row["memory"] == other["memory"]
        elif strategy == "ddp":
            assert grown == 4 * numbers_of(model).shape.parameters
        assert row["tokens_per_second"] < other["tokens_per_second"]
        config = parse(shlex.split(row["command"])[2:], RunConfig, "train", "").config
        assert config.grpo.beta == 0.1
        config.lora.lora_dropout = 0.0
        need = memory_fit.needs(config, numbers_of(model).shape, 4096, 2, True, 0)
        assert need(Candidate(method, strategy)).total == row["memory"]["total"]


def test_completions_too_many_at_once_are_fewer_in_what_fits(planned: Planned) -> None:
    given = ("--model", ELYZA, "--gpus", "2", "--gpu-memory", "24GB", "--objective", "grpo")
    ddp = planned(*given, "--sequence-length", "1024")["strategies"][0]
    assert not ddp["fits"]
    assert ddp["nearest"] == {"rollout_batch_size": 32}
    assert "--grpo.rollout_batch_size 32" in ddp["command"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--rollout-batch-size", "8"), "acts with --objective grpo only"),
        (("--beta", "0.1"), "acts with --objective grpo only"),
        (("--objective", "grpo", "--max-completion-length", "2048"), "no room for a prompt"),
        (("--objective", "grpo", "--lora-dropout", "0.1"), "has no dropout"),
        (("--num-generations", "4"), "acts with --objective grpo only"),
        (
            ("--objective", "grpo", "--max-completion-length", "2047"),
            "give --max-completion-length 2046",
        ),
        (("--objective", "grpo", "--rollout-batch-size", "7"), "--rollout-batch-size 8 or more"),
        (
            ("--objective", "grpo", "--gpus", "3", "--gradient-accumulation-steps", "3"),
            "8 does not divide the 36 completions of a step (batch_size x "
            "gradient_accumulation_steps x gpus) give --gradient-accumulation-steps 4,",
        ),
    ],
)
def test_settings_of_generation_that_do_nothing_are_refused(
    given: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(plan.run, list(given)) == 2
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("steps", "generations", "size", "remedy"),
    [(3, 8, 4, 4), (1, 8, 1, 8), (5, 6, 3, 6), (1, 7, 4, 7)],
)
def test_the_remedy_of_a_step_that_is_not_divided_is_right(
    steps: int, generations: int, size: int, remedy: int, planned: Planned, capsys: Any
) -> None:
    given = ("--objective", "grpo", "--num-generations", str(generations))
    given = (*given, "--batch-size", str(size), "--gradient-accumulation-steps")
    assert guarded(plan.run, [*given, str(steps)]) == 2
    assert f"give --gradient-accumulation-steps {remedy}," in capsys.readouterr().err
    command = planned(*given, str(remedy))["strategies"][0]["command"]
    config = parse(shlex.split(command)[2:], RunConfig, "train", "").config
    assert config.grpo.num_generations == generations


@pytest.mark.parametrize("objective", ["sft", *PREFERENCE_OBJECTIVES, "grpo"])
def test_every_objective_s_commands_are_ones_that_train_takes(
    objective: str, planned: Planned
) -> None:
    for method in ("full", "lora", "qlora"):
        given = ("--objective", objective, "--method", method, "--gpu", "h200", *GPUS)
        rows = planned("--model", B13, *given)
        commands = [row["command"] for row in rows["strategies"] if row["command"]]
        assert commands
        for command in commands:
            config = parse(shlex.split(command)[2:], RunConfig, "train", "").config
            assert config.objective == objective


def test_what_fits_without_a_setting_is_told_of_a_strategy_that_can_not_have_it(
    planned: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/a5000.md: 8B in full fits two cards with offload alone."""
    smaller = ("--optimizer", "paged_adamw_8bit", "--bf16-stochastic-round", "true")
    given = ("--model", ELYZA, "--method", "full", "--batch-size", "1", *smaller, *GPUS)
    rows = {row["strategy"]: row for row in planned(*given)["strategies"]}
    assert not any(row["fits"] for row in rows.values())
    offload = rows["fsdp, offload"]
    assert offload["memory"] is None
    assert offload["nearest"] == {"optimizer": "adamw", "bf16_stochastic_round": False}
    plain = planned(*given[: -len(smaller + GPUS)], *GPUS)["strategies"]
    fits = next(row for row in plain if row["strategy"] == "fsdp, offload")
    assert fits["fits"]
    assert offload["command"] == fits["command"]
    assert guarded(plan.run, list(given)) == 0
    said = capsys.readouterr().out
    assert "fsdp, offload with optimizer adamw, bf16_stochastic_round false:" in said
    # adapters have no weights of their own in bf16, and train refuses the setting
    for line in said.splitlines():
        if line.strip().startswith("aift-ray train"):
            parse(shlex.split(line)[2:], RunConfig, "train", "")


def test_every_command_is_one_that_the_verbs_take(planned: Planned) -> None:
    commands = []
    for method in ("full", "lora", "qlora"):
        for gpus in ("1", "2", "4"):
            found = planned("--model", B13, "--method", method, "--gpus", gpus)
            commands += [row["command"] for row in found["strategies"] + found["serving"]]
    commands = [shlex.split(line) for line in dict.fromkeys(commands) if line]
    assert {words[1] for words in commands} == {"train", "serve"}
    assert len(commands) > 20
    for words in commands:
        kind: Any = RunConfig if words[1] == "train" else ServeConfig
        parse(words[2:], kind, words[1], "")


def test_the_nearest_settings_fit_and_keep_the_global_batch(planned: Planned) -> None:
    flags = ("--model", ELYZA, "--gpus", "2", "--gpu-memory", "20GB", "--batch-size", "8")
    ddp = planned(*flags)["strategies"][0]
    assert not ddp["fits"]
    assert "GiB too little on the card" in ddp["limit"]
    changes = ddp["nearest"]
    assert changes["batch_size"] * changes["gradient_accumulation_steps"] == 8 * 4
    given = [part for name, n in changes.items() for part in (f"--{name}", str(n))]
    again = planned(*flags[:-2], *given)["strategies"][0]
    assert again["fits"]
    assert again["command"] == ddp["command"]
    assert f"--training.batch_size {changes['batch_size']} " in again["command"]


def test_host_memory_limits_what_is_kept_there(planned: Planned) -> None:
    flags = ("--model", B13, "--method", "full", "--gpus", "2", "--host-memory")
    rows = {
        size: next(r for r in planned(*flags, size)["strategies"] if "offload" in r["strategy"])
        for size in ("128GiB", "256GiB", "512GiB")
    }
    assert "GiB too little in the host" in rows["128GiB"]["limit"]
    assert rows["256GiB"]["fits"]
    # with it the copy of a checkpoint: 12 of 16 bytes a weight
    copied = rows["512GiB"]["host_memory"] / rows["256GiB"]["host_memory"]
    assert copied == pytest.approx(28 / 16, rel=1e-3)


def test_less_recomputation_is_faster_and_larger_and_host_memory_the_reverse(
    planned: Planned,
) -> None:
    given = ("--model", ELYZA, "--gpus", "2", "--batch-size", "1")
    kinds = {
        "all": (),
        "selective": ("--activation-checkpointing", "selective"),
        "none": ("--gradient-checkpointing", "false"),
        "host": ("--activation-offloading", "true"),
    }
    rows = {name: planned(*given, *flags)["strategies"] for name, flags in kinds.items()}
    (fsdp,) = (at for at, row in enumerate(rows["all"]) if row["strategy"] == "fsdp")
    found = {name: each[fsdp] for name, each in rows.items()}
    memory = [found[name]["memory"]["total"] for name in ("host", "all", "selective", "none")]
    assert memory == sorted(memory)
    assert len(set(memory)) == 4
    rates = [found[name]["tokens_per_second"] for name in ("host", "all", "selective", "none")]
    assert rates == sorted(rates)
    assert len(set(rates)) == 4


def test_what_can_not_be_is_said(planned: Planned, tmp_path: Path) -> None:
    def limit(strategy: str, *argv: str) -> str:
        rows = planned(*argv)["strategies"]
        return str(next(row for row in rows if row["strategy"] == strategy)["limit"])

    assert "tensor knows how to split" in limit("tensor", "--model", OSS, *GPUS)
    eight = ("--method", "full", "--optimizer", "adamw_8bit", *GPUS)
    assert limit("tensor", *eight) == "adamw_8bit is not possible with it"
    assert "5 parts can't be made of 4 blocks" in limit("pipeline", "--gpus", "5")


GPUS = ("--gpus", "2")


def seven() -> Shape:
    name = next(n for n, e in CATALOG.items() if e.architecture.parameters == 6_738_415_616)
    return Shape.of(CATALOG[name].config)


def test_estimates_are_the_documented_parts_of_the_bounds() -> None:
    """docs/a5000.md: 65% of what two cards could do at most."""
    card, lora = CARDS["a5000"], Workload("lora", 16, 2048, 2, True, workers=2, gpu=True)
    found = speed.training(seven(), lora, card, 2048, 8)
    assert found.tokens_per_second == pytest.approx(3430, rel=0.02)
    assert found.limit == "compute"
    b13 = Shape.of(CATALOG[B13].config)
    full = replace(lora, method="full")
    stages = replace(full, strategy="pipeline", model_parallel_size=2)
    piped = speed.training(b13, stages, card, 2048, 8)
    # without the step of the optimizer, which the page counts apart
    step = sum(piped.seconds.values()) - piped.seconds["the optimizer's step"]
    assert 8 * 2048 / step == pytest.approx(1200, rel=0.05)
    alone = speed.training(
        b13,
        replace(full, workers=1, strategy="model_parallel", model_parallel_size=2),
        card,
        2048,
        8,
    )
    assert alone.tokens_per_second == pytest.approx(677, rel=0.05)
    offloaded = speed.training(b13, replace(full, strategy="fsdp", offload=True), card, 2048, 1)
    # 13.0B x 28 bytes at 50 GB/s
    seconds = offloaded.seconds["the optimizer's step in host memory"]
    assert seconds == pytest.approx(7.3, rel=0.02)
    assert offloaded.limit != "compute", "small steps wait for host memory or PCIe"


def test_deepspeed_has_terms_of_its_own() -> None:
    """Bytes of its stages, by deepspeed/runtime/zero (0.19.8), sent beside no computation."""
    shape, card = Shape.of(CATALOG[B13].config), CARDS["a5000"]
    # of PCIe: bytes a second that are reached
    rate = 0.8 * card.pcie * 1e9
    full = Workload("full", 16, 2048, 2, True, workers=2, gpu=True, by_deepspeed=True)
    own = shape.parameters * 4 / 2
    for stage, sent, moved in (
        # gradients are all-reduced once a step, or once a micro-step; stepped weights are gathered
        ("zero1", 3, 8),
        ("zero2", 2 * 4 + 1, 8),
        # weights are gathered twice a micro-step, and gradients reduced; with offload they go up
        ("zero3", 3 * 4, 7 + 2 * 4),
    ):
        work = replace(full, strategy=stage)
        seconds = speed.training(shape, work, card, 2048, 4).seconds["PCIe"]
        assert seconds == pytest.approx(sent * own / rate, rel=0.01), stage
        fsdp = replace(work, by_deepspeed=False)
        assert speed.training(shape, fsdp, card, 2048, 4).seconds["PCIe"] < seconds
        more = speed.training(shape, replace(work, offload=True), card, 2048, 4).seconds["PCIe"]
        assert more - seconds == pytest.approx(moved * own / rate, rel=0.01), stage
        alone = replace(work, workers=1, offload=True)
        more = speed.training(shape, alone, card, 2048, 4).seconds["PCIe"]
        assert more == pytest.approx(moved * 2 * own / rate, rel=0.01), "nothing is sent"


# others' figures, tokens a second of both cards: see docs/planning.md
PUBLISHED = {
    "7B LoRA, ddp, two 4090": ("4090", "lora", "ddp", 4 * 2048, 4799),
    "7B LoRA, ddp, two 3090": ("3090", "lora", "ddp", 4 * 2048, 2380),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_estimates_are_near_published_figures(name: str) -> None:
    card, method, strategy, tokens, published = PUBLISHED[name]
    work = Workload(method, 16, tokens, 2, True, strategy=strategy, workers=2)
    found = speed.training(seven(), work, CARDS[card], 2048, 1)
    assert found.tokens_per_second == pytest.approx(published, rel=0.25)


def test_decoding_is_bound_by_bytes_and_near_published_figures() -> None:
    shape = Shape.of(CATALOG[ELYZA].config)
    cached = 131072 * 512
    graphs = {card: speed.decoding(shape, CARDS[card], cached, 1, None, True, 1) for card in CARDS}
    # llama.cpp in f16 on a 3090 and a 4090
    assert graphs["3090"] == pytest.approx(46.5, rel=0.15)
    assert graphs["4090"] == pytest.approx(54.3, rel=0.15)
    narrow = speed.decoding(shape, CARDS["a5000"], cached, 1, 4, True, 1)
    assert 85 < narrow < 115
    eager = speed.decoding(shape, CARDS["a5000"], cached, 1, 4, False, 1)
    assert 25 < 1000 / eager < 35, "milliseconds of a step without graphs, whatever the bits"


def test_a_server_s_requests_fill_what_weights_leave(planned: Planned) -> None:
    found = planned("--model", ELYZA, "--gpu-memory", "24GB")["serving"]
    bf16 = next(row for row in found if row["bits"] == 16)
    # 32 layers of 8 heads of 128 numbers, keys and values, 2 bytes
    assert bf16["token"] == 131072
    left = 24e9 - bf16["weights"] - bf16["requests"] * 131072 * 2048
    assert 0 < left < 1.5e9 + 131072 * 2048
    assert bf16["rates"]["vllm"]["1"] < bf16["rates"]["vllm"]["16"] / 10
    assert found[-1]["requests"] > 2 * bf16["requests"]


KINDS = ["llama", "qwen3", "gemma3_text", "phi3", "olmo2", "qwen3_moe", "gpt_oss", "gpt_neox"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_planned_as_a_run_measures_it(
    kind: str, tmp_path: Path, configure: Callable[..., Any]
) -> None:
    make = make_tiny_mixture if kind in ("qwen3_moe", "gpt_oss") else make_tiny_model
    folder = make(tmp_path / kind, kind)
    shape = numbers_of(str(folder)).shape
    wanted = measured(str(folder), configure(model=str(folder), method="lora")).shape
    assert shape.parameters == pytest.approx(wanted.parameters, rel=0.01)
    assert shape.linear_parameters == pytest.approx(wanted.linear_parameters, rel=0.01)
    assert shape.expert_parameters == wanted.expert_parameters
    assert shape.adapter_parameters(8) == pytest.approx(wanted.adapter_parameters(8), rel=0.05)
    assert (shape.layers, shape.hidden, shape.tied) == (wanted.layers, wanted.hidden, wanted.tied)


@pytest.mark.parametrize("name", ["stabilityai/japanese-stablelm-3b-4e1t-instruct"])
def test_the_catalog_s_table_is_what_is_counted(name: str) -> None:
    assert _sorted(numbers_of(name).shape) == _sorted(counted.counted(name))
    assert str(CATALOG[name].architecture.parameters) in table()


def _sorted(shape: Shape) -> Shape:
    """The same whatever the order of layers."""
    assert shape.counted
    lists: Any = {n: tuple(sorted(getattr(shape.counted, n))) for n in ("linear", "adapted")}
    experts = tuple(sorted(shape.counted.experts))
    return replace(shape, counted=replace(shape.counted, **lists, experts=experts))


@pytest.mark.slow
@pytest.mark.parametrize("name", counted.ARCHITECTURES.values())
def test_all_of_the_catalog_s_table_is_what_is_counted(name: str) -> None:
    assert _sorted(numbers_of(name).shape) == _sorted(counted.counted(name))


@pytest.mark.parametrize("name", CATALOG)
def test_every_model_of_the_catalog_can_be_planned(name: str) -> None:
    numbers = numbers_of(name)
    assert numbers.shape.parameters == pytest.approx(
        CATALOG[name].architecture.parameters, rel=1e-3
    )
    config = PlanConfig(model=name, gpus=2, sequence_length=min(2048, numbers.context or 2048))
    ways = train_plan.trained(config, numbers.config, numbers.shape)
    assert all(way.speed and way.speed.tokens_per_second > 0 for way in ways if way.memory)
    assert all(server.token for server in serve_plan.served(config, numbers.config, numbers.shape))


def test_a_model_in_the_hub_s_cache_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: Planned
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--lab--model" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text((SHIPPED / "config.json").read_text("utf-8"), "utf-8")
    refs = tmp_path / "models--lab--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("1234", "utf-8")
    assert planned("--model", "lab/model")["parameters"] == 4245760


BAD = {
    ("--gpus", "0"): "gpus: '0' is not allowed",
    ("--gpu-memory", "24"): "for example 22GB",
    ("--gpu-memory", "0GB"): "give more than 0",
    ("--gpu", "a500"): "gpu: 'a500' is not allowed",
    ("--activation-offloading", "true", "--backend", "deepspeed"): (
        "activation_offloading: is not possible with backend deepspeed"
    ),
    ("--activation-checkpointing", "selective", "--gradient-checkpointing", "false"): (
        "activation_checkpointing: acts on what gradient_checkpointing recomputes"
    ),
    ("--batchsize", "1"): "did you mean '--batch-size'?",
    ("--model", "hina-4n"): "did you mean hina-4m",
    ("--model", "lab/none"): "hf download lab/none config.json",
    ("--sequence-length", "4096"): "use --sequence-length 2048",
    ("--model", "EMPTY"): "has no config.json",
    ("--model", "WRONG"): "does not say enough: KeyError('num_attention_heads')",
    ("--model", "BROKEN"): "its config.json can't be read",
    ("--model", "DAMAGED"): "model.safetensors is damaged",
    ("--model", "UNKNOWN"): "and there are no weights",
    ("--model", "PACKED"): "quantized already",
}


@pytest.mark.parametrize("flags", BAD, ids=" ".join)
def test_bad_input_is_one_message(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    files = {
        "EMPTY": {},
        "WRONG": {"config.json": '{"model_type": "llama", "hidden_size": 64}'},
        "BROKEN": {"config.json": "{"},
        "UNKNOWN": {"config.json": '{"model_type": "phi3"}'},
        "DAMAGED": {"config.json": '{"model_type": "phi3"}', "model.safetensors": "12345678{"},
        "PACKED": {"config.json": '{"model_type": "llama", "quantization_config": {"a": 1}}'},
    }
    for name, content in files.items():
        (tmp_path / name).mkdir()
        for file, text in content.items():
            (tmp_path / name / file).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    assert guarded(plan.run, list(flags)) == 2
    said = capsys.readouterr()
    assert BAD[flags] in said.err
    assert not said.out
