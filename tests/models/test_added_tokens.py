"""New tokens: found in texts, begun as their pieces, and trained as plain PEFT trains them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.engine.final_model import write
from aift_ray.engine.worker_run import Run
from aift_ray.errors import ConfigError
from aift_ray.models.base_and_adapter import find_place
from tests.conftest import make_tiny_model
from tests.helpers.runs import started, stepped

TOKENS = ["番目の言葉", "花鳥風月"]
ROW = Example(
    "instruction", "", 0, instruction="3番目の言葉は？", output="はい、「花鳥風月」です。"
)


class _Writer:
    def gathered(self, parts: object, then: Callable[[], None]) -> None:
        then()


def final(run: Run) -> Path:
    """The folder of the trained model."""
    write(run, _Writer(), "")  # type: ignore[arg-type]
    return run.job.output / "model"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return make_tiny_model(folder, tie_word_embeddings=request.param)


def as_by_hand(base: Path) -> tuple[Any, Any]:
    """Model and tokenizer with the tokens, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    pieces = [tokenizer(token, add_special_tokens=False).input_ids for token in TOKENS]
    tokenizer.add_tokens(TOKENS)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        for number, parts in zip(ids, pieces, strict=True):
            table.data[number] = table.data[parts].mean(0)
    return model, tokenizer


@pytest.mark.parametrize("how", ["alone", "whole", "full"])
def test_first_loss_and_final_folder_are_those_of_transformers_and_peft(
    how: str, base: Path, configure: Callable[..., Any], tmp_path: Path
) -> None:
    method = "full" if how == "full" else "lora"
    train = {} if how == "full" else {"tokens__train": how, "lora__lora_dropout": 0.0}
    config = configure(model=str(base), method=method, tokens__add=TOKENS, **train)
    run = started(config, tmp_path)
    model, tokenizer = as_by_hand(base)
    encoded = PromptEncoder(run.job.load_tokenizer()).encode(ROW)
    plain = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": ROW.instruction},
            {"role": "assistant", "content": ROW.output},
        ],
        return_dict=False,
    )
    assert encoded.ids[: len(plain)] == plain[: len(encoded.ids)]
    ids = tokenizer.convert_tokens_to_ids(TOKENS)
    assert set(ids) < set(encoded.ids)
    sample = torch.tensor([encoded.ids])
    with torch.no_grad():
        wanted = model.eval()(sample).logits
        begun = run.module.model.eval()(sample).logits
    torch.testing.assert_close(begun, wanted, rtol=1e-5, atol=1e-5)
    run.module.train()
    stepped(run, 2)
    frozen = {name: p for name, p in run.module.named_parameters() if not p.requires_grad}
    folder = final(run)
    own = AutoTokenizer.from_pretrained(folder)
    assert own.convert_tokens_to_ids(TOKENS) == ids
    with torch.no_grad():
        trained = run.module.model.eval()(sample).logits
        opener: Any = AutoModelForCausalLM if how == "full" else AutoPeftModelForCausalLM
        again = opener.from_pretrained(folder).eval()(sample).logits
    assert (trained - begun).abs().max() > 1e-3
    torch.testing.assert_close(again, trained, rtol=1e-5, atol=1e-5)
    assert bool(frozen) == (how != "full")


def test_the_rows_of_other_tokens_stay_as_they_were(
    base: Path, configure: Callable[..., Any], tmp_path: Path
) -> None:
    run = started(configure(model=str(base), method="lora", tokens__add=TOKENS), tmp_path)
    stepped(run, 2)
    merged: Any = run.module.model.merge_and_unload()
    first: Any = AutoModelForCausalLM.from_pretrained(base)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        now, before = getattr(merged, get)().weight, getattr(first, get)().weight
        assert torch.equal(now[: len(before)], before)
        assert len(now) == len(before) + len(TOKENS)


def test_an_adapter_with_tokens_is_found_and_its_words_stay_words(
    base: Path, configure: Callable[..., Any], tmp_path: Path
) -> None:
    run = started(configure(model=str(base), method="lora", tokens__add=TOKENS), tmp_path)
    place = find_place(str(final(run)))
    encoder = PromptEncoder(place.load_tokenizer("x"))
    assert encoder.encode(ROW).ids == PromptEncoder(run.job.load_tokenizer()).encode(ROW).ids
    # a control string is still plain text
    said = Example(
        "instruction", "", 0, instruction=run.job.load_tokenizer().eos_token, output="はい"
    )
    before = PromptEncoder(AutoTokenizer.from_pretrained(base)).encode(said).ids
    assert encoder.encode(said).ids == before


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tokens__add": ["花鳥風月", "花鳥風月"]}, "given more than once"),
        ({"tokens__add": ["です"]}, "one token of the tokenizer already"),
        ({"tokens__add": [" 花鳥"]}, "begins or ends with a blank"),
        ({"tokens__add": ["none.txt"]}, "none.txt can't be read"),
        ({"tokens__add": TOKENS, "method": "full", "tokens__train": "alone"}, "tokens.train"),
        ({"tokens__add": TOKENS, "parallel__strategy": "tensor"}, "tokens.add: strategy tensor"),
        ({"tokens__add": TOKENS, "objective": "reward"}, "objective reward has none"),
        ({"tokens__train": "whole"}, "acts with tokens.add only"),
    ],
)
def test_what_can_not_be_added_is_refused_by_name(
    values: dict[str, Any], told: str, configure: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        started(configure(**({"method": "lora"} | values)), tmp_path)
    assert told in str(error.value)
