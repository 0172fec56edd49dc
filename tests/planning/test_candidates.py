"""What fits two cards of 22 GB by arithmetic, and what the program says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aift_ray.errors import ConfigError
from aift_ray.models.catalog import CATALOG
from aift_ray.planning.candidates import Candidate, Room, candidates, choose
from aift_ray.planning.candidates import fitting as fits
from aift_ray.planning.memory_estimate import Memory, Workload, memories
from aift_ray.runs import memory_fit
from aift_ray.runs.prepare import prepare
from tests.conftest import SHIPPED
from tests.helpers.a5000 import CARD, DOCUMENTS, MODELS, two_cards, written

B13, B32 = MODELS["13B"], MODELS["32B"]


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("strategy", ["model_parallel", "pipeline", "tensor", "fsdp"])
def test_adapters_of_a_13b_model_fit_two_cards(method: str, strategy: str) -> None:
    cards = two_cards(B13, method, strategy)
    assert len(cards) == (2 if strategy in ("model_parallel", "pipeline") else 1)
    assert max(card.total for card in cards) < CARD
    assert two_cards(B13, "lora", "ddp")[0].total > CARD, "one card does not hold it"


@pytest.mark.parametrize("strategy", ["fsdp", "zero3", "pipeline", "tensor"])
def test_4_bit_adapters_of_a_32b_model_fit_two_cards(strategy: str) -> None:
    assert 30e9 < B32.parameters < 34e9
    assert max(card.total for card in two_cards(B32, "qlora", strategy)) < CARD


def test_all_of_a_13b_model_is_trained_with_its_state_in_host_memory_only() -> None:
    for strategy in ("zero3", "tensor", "pipeline"):
        (*_, card) = two_cards(B13, "full", strategy)
        # weights and gradients alone fill both cards
        assert card.weights + card.gradients > CARD
    (offloaded,) = two_cards(B13, "full", "zero3", offload=True)
    assert offloaded.total < CARD / 2
    # of each weight: itself, its gradient and two moments in fp32
    assert offloaded.host * 2 == pytest.approx(B13.parameters * 16, rel=1e-6)


def test_stages_hold_the_model_once_and_keep_more_micro_batches_the_earlier_they_are() -> None:
    one = two_cards(B13, "full", "ddp")[0]
    stages = memories(
        B13, Workload("full", 0, 2048, 2, True, None, "pipeline", 4, model_parallel_size=4)
    )
    assert sum(stage.weights for stage in stages) == one.weights
    assert [bool(stage.logits) for stage in stages] == [False, False, False, True]
    kept = [stage.activations for stage in stages]
    assert kept == sorted(kept, reverse=True)
    (first, second) = two_cards(B13, "lora", "model_parallel")
    assert first.activations == second.activations


def test_the_first_way_that_fits_is_chosen_and_the_reason_said() -> None:
    def need(way: Candidate) -> Memory:
        return two_cards(B13, way.method, way.strategy, offload=way.offload)[0]

    chosen = {
        method: choose(candidates(method, 2, bits, offloads=True), need, Room(CARD))
        for method, bits in (("full", None), ("lora", None), ("qlora", 4))
    }
    assert chosen["qlora"][0] == Candidate("qlora", "ddp")
    assert chosen["lora"][0] == Candidate("lora", "fsdp")
    assert chosen["full"][0] == Candidate("full", "fsdp", offload=True)
    first, second = chosen["lora"][1]
    assert "fsdp is the first that fits: 18." in first
    assert "ddp 28." in second
    assert fits("full", 2, need, Room(CARD, host=32 * 2**30)) == [
        "--method lora --strategy fsdp (18.1 GiB)",
        "--method qlora --strategy ddp (10.0 GiB)",
    ], "what would fill the host is not named"
    assert fits("lora", 4, need, Room(16 * 2**30, host=0))[0] == (
        "--method lora --strategy pipeline --parallel.pipeline_parallel_size 4 (15.9 GiB)"
    ), "what holds less than fsdp is named where nothing else fits"
    assert candidates("qlora", 2, 8, offloads=True) == [Candidate("qlora", "ddp")], (
        "8 bits are not shared out"
    )
    generating = fits("full", 2, need, Room(CARD, host=300 * 2**30), generates=True)
    assert not any("offload" in way or "pipeline" in way for way in generating)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A folder that says it is a 13B model; its weights are never read."""
    folder = tmp_path / "13b"
    shutil.copytree(SHIPPED, folder)
    numbers = json.loads((folder / "config.json").read_text("utf-8"))
    numbers |= CATALOG["tokyotech-llm/Swallow-13b-instruct-hf"].config
    (folder / "config.json").write_text(json.dumps(numbers), "utf-8")
    return folder


def test_what_does_not_fit_is_refused_before_anything_starts_with_what_does(
    configure: Callable[..., Any], large: Path, tmp_path: Path
) -> None:
    def prepared(strategy: str, method: str = "full") -> Any:
        config = configure(
            model=str(large),
            method=method,
            parallel__strategy=strategy,
            parallel__gpu_memory="22GB",
            training__gradient_checkpointing=True,
        )
        return prepare(config, tmp_path, 2, False, None)

    for strategy in ("zero3", "auto"):
        with pytest.raises(ConfigError) as caught:
            prepared(strategy)
        said = str(caught.value)
        assert "GiB a worker (computed: weights" in said
        assert "there are 20.5 GiB on the device" in said
        assert "--method full --strategy fsdp --parallel.offload true (" in said
        assert "of host memory" in said
        assert "--method lora --strategy fsdp (" in said
        assert "--method qlora --strategy ddp (" in said
    run = prepared("auto", "lora")
    assert run.job.config.parallel.strategy == "fsdp"
    assert "fsdp is the first that fits" in run.job.why[0]
    assert len(run.job.why) == 2


def test_auto_on_cpus_takes_what_the_machine_has(
    configure: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(parallel__strategy="auto")
    run = prepare(config, tmp_path, 2, False, None)
    assert run.job.config.parallel.strategy == "ddp"
    monkeypatch.setattr(memory_fit, "_room", lambda *_: Room(1))
    crowded = prepare(configure(parallel__strategy="auto"), tmp_path, 2, False, None)
    assert "does not fit" in crowded.job.why[0], "it is said, and not refused"


def test_offload_without_a_gpu_is_refused(configure: Callable[..., Any], tmp_path: Path) -> None:
    config = configure(parallel__strategy="fsdp", parallel__offload=True)
    with pytest.raises(ConfigError, match="the workers compute on CPUs"):
        prepare(config, tmp_path, 2, False, None)
    with pytest.raises(ConfigError, match="needs strategy fsdp or zero3, not ddp"):
        configure(parallel__offload=True)


@pytest.mark.parametrize("size", ["22", "many GB", "22 TB"])
def test_an_amount_of_memory_needs_its_unit(size: str, configure: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"parallel\.gpu_memory.*for example 22GB"):
        configure(parallel__gpu_memory=size)


@pytest.mark.parametrize("page", DOCUMENTS, ids=["en", "ja"])
def test_the_table_of_the_documentation_is_what_is_computed(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text == written(text), "python -m tests.helpers.a5000 writes it"
