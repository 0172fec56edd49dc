"""Log-likelihoods equal those of transformers' eager forward pass of each sequence by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from aift_ray.evaluation import likelihood
from aift_ray.evaluation.evaluated_models import Opened, open_candidate
from aift_ray.evaluation.likelihood import Likelihoods
from aift_ray.models.base_and_adapter import find_place
from aift_ray.tasks.task_prompts import ItemEncoder, ScoredSequence
from tests.helpers.tiny_families import make

# cache, window shorter than the prompts, absolute positions, states and convolutions
FAMILIES = ["llama", "gemma3_text", "gpt2", "lfm2", "mamba2", "qwen3_moe"]
MORE = {"mamba2": {"num_heads": 8, "head_dim": 16}}
SHOTS = "例：空は何色ですか。\n答え：青\n\n例：草は何色ですか。\n答え：緑\n\n"
PROMPTS = [f"{SHOTS}例：{'とても' * at}赤い花は何色ですか。\n答え：" for at in (0, 1, 1, 4, 9)]
CHOICES = ["赤", "青い花のようなとても長い答え", "緑色"]


def opened(folder: Path) -> Opened:
    return open_candidate(find_place(str(folder)), folder.name, "fp32", torch.device("cpu"))


def expected(folder: Path, groups: list[list[ScoredSequence]]) -> list[list[float]]:
    """Of transformers' own eager forward pass, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    found = []
    for group in groups:
        values = []
        for each in group:
            with torch.no_grad():
                logits = model(torch.tensor([each.ids])).logits[0].double()
            chosen = torch.log_softmax(logits, -1)[:-1].gather(
                1, torch.tensor(each.ids[1:])[:, None]
            )
            values.append(float(chosen[each.start - 1 :].sum()))
        found.append(values)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_those_of_each_sequence_alone(family: str, tmp_path: Path) -> None:
    folder = make(family, tmp_path / family, **MORE.get(family, {}))
    model = opened(folder)
    encoder = ItemEncoder(model.prompts, model.context)
    groups = [encoder.choices(prompt, CHOICES, "") for prompt in PROMPTS]
    computed = Likelihoods(model.model, 4096)
    torch.testing.assert_close(
        torch.tensor(computed.sums(groups)),
        torch.tensor(expected(folder, groups)),
        atol=2e-3,
        rtol=1e-4,
    )
    # of a state nothing can be shared; of keys and values everything
    assert (computed.plain is None) == (family != "mamba2")


def test_batches_change_nothing(tmp_path: Path) -> None:
    model = opened(make("llama", tmp_path / "llama"))
    encoder = ItemEncoder(model.prompts, model.context)
    groups = [encoder.choices(prompt, CHOICES, "") for prompt in PROMPTS]
    alone = [Likelihoods(model.model, 64).sums([group])[0] for group in groups]
    torch.testing.assert_close(
        torch.tensor(Likelihoods(model.model, 4096).sums(groups)),
        torch.tensor(alone),
        atol=1e-4,
        rtol=1e-5,
    )


def test_long_texts_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("gemma3_text", tmp_path / "model")
    model = opened(folder)
    text = "".join(f"{at}番目の花は{'とても' * (at % 3)}赤い。" for at in range(25))
    windows = ItemEncoder(model.prompts, model.context).windows(text)
    assert len(windows[0].ids) > 100
    monkeypatch.setattr(likelihood, "_LOGITS", 4 * 5057 * 40)
    computed = Likelihoods(model.model, 4096).sums([[each] for each in windows])
    torch.testing.assert_close(
        torch.tensor(computed),
        torch.tensor(expected(folder, [[each] for each in windows])),
        atol=2e-3,
        rtol=1e-5,
    )


def test_a_text_longer_than_the_context_is_scored_token_by_token_once(tmp_path: Path) -> None:
    model = opened(make("llama", tmp_path / "llama"))
    encoder = ItemEncoder(model.prompts, 32)
    text = "花は赤い。" * 40
    windows = encoder.windows(text)
    ids = [id_ for each in windows for id_ in each.ids[each.start :]]
    assert ids == model.prompts.tokenizer.encode(text, add_special_tokens=False)
    assert max(len(each.ids) for each in windows) == 33


def test_a_prompt_longer_than_the_context_loses_its_beginning(tmp_path: Path) -> None:
    model = opened(make("llama", tmp_path / "llama"))
    encoder = ItemEncoder(model.prompts, 16)
    whole = ItemEncoder(model.prompts, 10_000).choices("花は赤い。" * 20, ["はい"], "")[0]
    cut = encoder.choices("花は赤い。" * 20, ["はい"], "")[0]
    assert cut.ids == whole.ids[-17:]
    assert cut.ids[cut.start :] == whole.ids[whole.start :]
    assert encoder.truncated == 1
