"""Adapters of other ranks, layers and scalings in one batch: each row gets its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from aift_ray.errors import ModelError
from aift_ray.serving.engines.transformers.lora_manager import Adapters
from aift_ray.serving.engines.transformers.transformers_engine import TransformersEngine
from tests.serving.conftest import load, write_adapter
from tests.serving.engines.transformers.test_transformers_engine import (
    answer,
    generated,
    ids,
    prompt,
    request,
)

KINDS: dict[str, dict[str, Any]] = {
    "small": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "uneven": {"r": 4, "rank_pattern": {"down_proj": 7}, "alpha_pattern": {"q_proj": 3}},
    "rslora": {"r": 8, "use_rslora": True, "target_modules": "all-linear"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("kinds")
    return {
        name: write_adapter(place / name, seed, **options)
        for seed, (name, options) in enumerate(KINDS.items())
    }


def test_every_mix_answers_as_peft_does_alone_while_adapters_come_and_go(
    folders: dict[str, Path],
) -> None:
    expected = {"": generated(load(), prompt(5))}
    for name, folder in folders.items():
        model = PeftModel.from_pretrained(load(), folder).eval()
        expected[name] = generated(model, prompt(5))
    assert len({tuple(each) for each in expected.values()}) == len(expected)
    engine = TransformersEngine(load(), slots=8, max_queue=8)

    async def ask(*names: str) -> None:
        asked = (answer(engine, request(prompt(5), adapter=name)) for name in names)
        told = await asyncio.gather(*asked)
        assert [ids(tokens) for tokens in told] == [expected[name] for name in names]

    async def run() -> None:
        for name, folder in folders.items():
            await engine.load(name, str(folder))
        for name in expected:
            await ask(name)
            await ask(name, name)
        await ask("rslora", "", "small", "uneven", "small", "")
        await ask("uneven", "small")
        await engine.unload("uneven")
        await ask("small", "rslora", "")
        await engine.load("uneven", str(folders["uneven"]))
        await ask("rslora", "uneven", "small")
        for name in folders:
            await engine.unload(name)
        await ask("", "")

    asyncio.run(run())
    engine.close()


def test_in_bf16_too_a_request_alone_is_answered_as_peft_does(tmp_path: Path) -> None:
    # scaled by 4, a power of two, so that scaling rounds nothing
    folder = write_adapter(tmp_path / "a", 0, r=8, lora_alpha=32, target_modules="all-linear")
    model = PeftModel.from_pretrained(load().bfloat16(), folder).eval()
    engine = TransformersEngine(load().bfloat16(), slots=1, max_queue=8)
    asyncio.run(engine.load("a", str(folder)))
    for seed in range(12):
        told = asyncio.run(answer(engine, request(prompt(seed), adapter="a")))
        assert ids(told) == generated(model, prompt(seed))
    engine.close()


# PEFT warns of tied embeddings
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = load()
    before = generated(model, prompt(1))
    embedding = write_adapter(tmp_path / "a", 0, target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match="not of a LoRA adapter"):
        Adapters(model).load("a", str(embedding))
    whole = write_adapter(tmp_path / "b", 0, modules_to_save=["norm"])
    with pytest.raises(ModelError, match="not of a LoRA adapter"):
        Adapters(model).load("b", str(whole))
    assert generated(model, prompt(1)) == before


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("start", "copies"), [("pissa", None), ("olora", None), (True, [[0, 2], [1, 3]])]
)
def test_an_adapter_never_changes_the_base(tmp_path: Path, start: Any, copies: Any) -> None:
    folder = write_adapter(tmp_path / "a", 0)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text("utf-8"))
    config |= {"init_lora_weights": start, "layer_replication": copies}
    file.write_text(json.dumps(config), "utf-8")
    model = load()
    before = generated(model, prompt(1))
    Adapters(model).load("a", str(folder))
    assert generated(model, prompt(1)) == before


def test_overflowing_weights_of_an_adapter_harm_no_other_row(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", 0)
    stored = load_file(folder / "adapter_model.safetensors")
    # as one flipped bit of an exponent makes them: finite, and infinite when multiplied
    damaged = {
        name: each.fill_(3e38) if "lora_A" in name else each for name, each in stored.items()
    }
    save_file(damaged, folder / "adapter_model.safetensors")
    engine = TransformersEngine(load(), slots=4, max_queue=8)

    async def run() -> None:
        await engine.load("a", str(folder))
        asked = [request(prompt(5), adapter=name) for name in ("a", "", "a")]
        told = await asyncio.gather(*(answer(engine, each) for each in asked))
        assert ids(told[1]) == generated(load(), prompt(5))

    asyncio.run(run())
    engine.close()
