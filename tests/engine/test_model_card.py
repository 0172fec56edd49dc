"""The final folder has a card that the Hub reads, and that names nothing private."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from aift_ray.config import RunConfig
from aift_ray.engine.card_licence import licence
from aift_ray.models import fingerprint
from tests.conftest import SHIPPED
from tests.helpers.whole_runs import run

Configure = Callable[..., RunConfig]


def test_an_adapter_of_the_shipped_model_has_a_card(configure: Configure, tmp_path: Path) -> None:
    config = configure(
        model="hina-4m",
        method="lora",
        training__max_steps=1,
        data__validation_fraction=0.25,
        training__exact_match_rows=1,
        training__exact_match_max_tokens=2,
    )
    run(config, tmp_path / "run")
    loaded = ModelCard.load(tmp_path / "run" / "model" / "README.md")
    data = loaded.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert (data["language"], data["library_name"]) == ("ja", "peft")
    assert data["pipeline_tag"] == "text-generation"
    assert "base_model" not in data, "the Hub has no such model"
    assert "on no Hub, so that the head of this card names no `base_model`" in loaded.text
    assert 'from_pretrained("FOLDER OF hina-4m")' in loaded.text
    assert "1 worker |" in loaded.text
    text = loaded.text
    for word in (
        "| 24 |",
        "evaluation | 6 |",
        "| steps | 1 |",
        "| lora.r | 16 |",
        "held-out loss",
        "exact match",
        "torch",
    ):
        assert word in text
    assert str(tmp_path) not in loaded.content
    assert "train.jsonl" not in loaded.content


def test_a_full_model_of_a_folder_has_one_and_says_what_is_not_known(
    configure: Configure, tmp_path: Path
) -> None:
    run(configure(training__max_steps=1), tmp_path / "run")
    loaded = ModelCard.load(tmp_path / "run" / "model" / "README.md")
    assert loaded.data.to_dict()["library_name"] == "transformers"
    assert "licence of the base is not known" in loaded.text
    assert "was a folder, so that the head of this card names no `base_model`" in loaded.text
    assert str(tmp_path) not in loaded.content
    assert not list((tmp_path / "run" / "checkpoints").rglob("README.md"))


def test_a_licence_is_that_of_the_bases_card_or_of_the_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: own\nlicense_link: https://example.org\n---\n", "utf-8"
    )
    found = licence(str(tmp_path))
    assert found == {
        "license": "other",
        "license_name": "own",
        "license_link": "https://example.org",
    }
    (tmp_path / "README.md").write_text("---\nlicense: [broken\n---\n", "utf-8")
    assert licence(str(tmp_path)) == {}
    assert licence(str(SHIPPED)) == {"license": "apache-2.0"}
    monkeypatch.setattr(fingerprint, "try_to_load_from_cache", lambda *_: None)
    assert licence("elyza/Llama-3-ELYZA-JP-8B") == {"license": "llama3"}
    assert licence("nobody/nothing") == {}
