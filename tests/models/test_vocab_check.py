"""A tokenizer that can write an id without an embedding is refused, wherever the model is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from aift_ray import quantize, serve, train
from aift_ray.errors import ModelError
from aift_ray.models import hub
from aift_ray.models.japanese_model import JapaneseModel
from aift_ray.models.vocab_check import check_vocabulary
from aift_ray.utils.exit_status import guarded
from tests.quantization.conftest import make_adapter


@pytest.fixture
def enlarged(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """The tiny model with tokens in its tokenizer that it has no embeddings for."""

    def make(token: str, change: Callable[[str], str], special: bool = True) -> Path:
        folder = shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([token], special_tokens=special)
        tokenizer.chat_template = change(tokenizer.chat_template)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def size(folder: Path) -> int:
    return int(hub.load_config(str(folder)).vocab_size)


WRITTEN: dict[str, tuple[str, Callable[[str], str]]] = {
    "by the template": ("<|turn|>", lambda text: "<|turn|>" + text),
    "by the name of a role": (
        "<|as-user|>",
        lambda text: "{{ '<|as-' + messages[-1]['role'] + '|>' }}" + text,
    ),
    "by the role of a tool": (
        "<|as-tool|>",
        lambda text: "{% for m in messages %}{{ '<|as-' + m.role + '|>' }}{% endfor %}" + text,
    ),
    "by a thought": (
        "<|as-think|>",
        lambda text: (
            "{% for m in messages if m.reasoning_content %}{{ '<|as-' + 'think|>' }}"
            "{% endfor %}" + text
        ),
    ),
    "by a run of blanks": ("    ", lambda text: text),
}


@pytest.mark.parametrize("way", list(WRITTEN))
def test_every_entrance_names_the_id_and_the_token(
    enlarged: Callable[..., Path],
    tmp_path: Path,
    rows_file: Path,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    token, change = WRITTEN[way]
    folder = enlarged(token, change)
    number = size(folder)
    told = f"0 to {number - 1}, and its tokenizer or chat template can write {number} {token!r}"
    training = ["--train-file", str(rows_file), "--output-dir", str(tmp_path / "run")]
    quantized = ["--output-dir", str(tmp_path / "out")]
    for verb, more in ((train.run, training), (serve.run, []), (quantize.run, quantized)):
        assert guarded(verb, ["--model", str(folder), "--dry-run", *more]) == 2
        assert told in capsys.readouterr().err
    with pytest.raises(ModelError, match="resize_token_embeddings"):
        JapaneseModel(str(folder)).generate_japanese("はい", max_new_tokens=1)


def test_a_token_that_the_template_makes_of_some_rows_is_refused_with_them(
    enlarged: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = enlarged(
        "<|as-tag|>", lambda text: "{{ '<|as-' + 'tag|>' if '札' in messages[0].content }}" + text
    )
    for word, status in (("花", 0), ("札", 2)):
        rows = tmp_path / f"{status}.jsonl"
        rows.write_text(json.dumps({"instruction": word, "output": "はい。"}) + "\n", "utf-8")
        given = ["--model", str(folder), "--train-file", str(rows), "--dry-run"]
        assert guarded(train.run, given) == status
    assert f"its rows hold {size(folder)} '<|as-tag|>'" in capsys.readouterr().err


def test_an_adapter_with_such_a_tokenizer_is_refused(
    enlarged: Callable[..., Path], tmp_path: Path, tiny_model: Path
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    wrong = enlarged("<|turn|>", lambda text: "<|turn|>" + text)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(wrong / name, adapter / name)
    with pytest.raises(ModelError, match=r"adapter .*can write \d+ '<\|turn\|>'"):
        JapaneseModel(str(adapter)).load_model()


def test_a_token_that_nothing_writes_may_be_there(enlarged: Callable[..., Path]) -> None:
    # as that of an image in the tokenizer of gemma-3-270m
    folder = enlarged("<image_soft_token>", lambda text: text)
    tokenizer = hub.load_tokenizer(str(folder))
    assert len(tokenizer) > size(folder)
    check_vocabulary("a", tokenizer, hub.load_config(str(folder)))
    answer = JapaneseModel(str(folder)).generate_japanese("<image_soft_token>", max_new_tokens=1)
    assert isinstance(answer, str)


def test_every_token_of_a_model_that_is_too_small_counts(tiny_model: Path) -> None:
    config = hub.load_config(str(tiny_model))
    config.vocab_size -= 7
    with pytest.raises(ModelError, match="and 2 more"):
        check_vocabulary("a", hub.load_tokenizer(str(tiny_model)), config)
