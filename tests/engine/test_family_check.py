"""The check of a model's family, on families of the catalog and on networks of our own."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from aift_ray import evaluate, serve
from aift_ray.engine import family_check, loss, tiny_comparison
from aift_ray.engine.family_check import measure, supported
from aift_ray.errors import ModelError
from aift_ray.models.attention.packed_documents import PackedDocuments
from aift_ray.models.catalog import CATALOG
from aift_ray.models.families import family_support
from aift_ray.models.families.family_support import Refusal, Support
from aift_ray.models.families.tiny_model import random_model, shrunk
from aift_ray.ray_backend import serve_app
from aift_ray.utils.exit_status import guarded
from tests.families import configuration
from tests.families import families as known_families
from tests.helpers.tiny_families import companions

ROOT = Path(__file__).resolve().parents[2]
CATALOGUED = sorted({entry.architecture.model_type for entry in CATALOG.values()})


def networks() -> list[str]:
    """A model of the catalog for each set of features that its networks have."""
    found = {}
    for name, entry in CATALOG.items():
        features = ((k, v if isinstance(v, str) else bool(v)) for k, v in entry.config.items())
        found.setdefault(tuple(sorted(features)), name)
    return sorted(found.values())


class MixingConfig(LlamaConfig):
    """Of a network that the table does not have."""

    model_type = "mixing-llama"


class MixingForCausalLM(LlamaForCausalLM):
    """Each block also mixes neighbouring positions, wherever documents begin."""

    config_class = MixingConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.register_forward_pre_hook(mixed)


def mixed(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    return (inputs[0] + torch.nn.functional.pad(inputs[0], (0, 0, 1, -1)),)


class FollowingConfig(LlamaConfig):
    """Of a network that is right with documents end to end, and not where they share tokens."""

    model_type = "following-llama"


class FollowingForCausalLM(LlamaForCausalLM):
    """Each block also mixes a position with the one before it in the row, in the same document."""

    config_class = FollowingConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.register_forward_pre_hook(followed, with_kwargs=True)


def followed(_: torch.nn.Module, inputs: Any, given: Any) -> Any:
    before = torch.nn.functional.pad(inputs[0], (0, 0, 1, -1))
    return (inputs[0] + before * (given["position_ids"] > 0)[..., None], *inputs[1:]), given


class NoisyConfig(LlamaConfig):
    """Of a network whose training differs from its forward."""

    model_type = "noisy-llama"


class NoisyForCausalLM(LlamaForCausalLM):
    """Computes something else while it is trained."""

    config_class = NoisyConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.register_forward_hook(doubled)


def doubled(module: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2 if module.training else output


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    for config, model in (
        (MixingConfig, MixingForCausalLM),
        (FollowingConfig, FollowingForCausalLM),
        (NoisyConfig, NoisyForCausalLM),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


@pytest.mark.parametrize("family", CATALOGUED)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_family_of_the_catalog_is_computed_as_its_table_says(family: str, method: Any) -> None:
    found, listed = (
        measure(configuration(family), method),
        family_support.known(configuration(family)),
    )
    assert isinstance(found, Support), found
    assert isinstance(listed, Support)
    # the table speaks of both methods
    assert found.packed >= listed.packed
    assert found.attention == listed.attention or not listed.packed
    assert found.batched >= listed.batched


@pytest.mark.parametrize("name", networks())
def test_a_network_of_the_catalog_is_computed_as_the_table_of_its_family_says(name: str) -> None:
    numbers = dict(CATALOG[name].config)
    config = CONFIG_MAPPING[numbers.pop("model_type")](**numbers)
    listed, found = family_support.known(config), measure(config, "full")
    assert isinstance(found, Support), found
    assert isinstance(listed, Support)
    assert found.packed >= listed.packed
    assert found.batched >= listed.batched


def test_a_network_that_carries_state_across_documents_is_padded() -> None:
    found = measure(MixingConfig(), "full")
    assert found == Support("documents", packed=False, batched=False)


def test_a_network_in_which_documents_cannot_share_their_prompt_is_padded() -> None:
    found = measure(FollowingConfig(), "full")
    assert isinstance(found, Support)
    assert (found.attention, found.packed) == ("documents", False)


def test_a_network_that_trains_something_else_is_refused_with_the_difference(
    tmp_path: Path,
) -> None:
    with pytest.raises(ModelError) as caught:
        supported(NoisyConfig(), "full", tmp_path)
    (problem,) = caught.value.problems
    assert problem.where == "model family noisy-llama"
    assert "instead of" in problem.what
    assert "docs/models.md" in problem.remedy
    assert "such as" in problem.remedy


def test_a_server_measures_a_family_that_the_table_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, config in (("mixing", MixingConfig), ("gated", LlamaConfig)):
        small = shrunk(config(mlp_bias=True, attention_dropout=0.5))
        small.vocab_size, small.use_gate = 5056, True
        random_model(small, "eager").save_pretrained(tmp_path / name)
        companions(tmp_path / name)
    command = ["--engine", "transformers", "--dry-run", "--model"]
    assert guarded(serve.run, [*command, str(tmp_path / "mixing")]) == 2
    told = capsys.readouterr().err
    assert "model family mixing-llama: prompts of uneven length change each other's" in told
    assert "choose another model, such as " in told
    assert guarded(serve.run, [*command, str(tmp_path / "gated")]) == 0


def test_evaluation_and_config_files_of_serve_measure_such_a_family_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = shrunk(MixingConfig(attention_dropout=0.5))
    small.vocab_size = 5056
    random_model(small, "eager").save_pretrained(tmp_path / "mixing")
    companions(tmp_path / "mixing")
    model = str(tmp_path / "mixing")
    kinds = {"generate": {"answers": "b"}, "choice": {"choices": ["甲", "乙"], "label": "c"}}
    (tmp_path / "rows.jsonl").write_text('{"a": "問い", "b": "答え", "c": 0}\n', "utf-8")
    for kind, more in kinds.items():
        task = {"name": kind, "files": ["rows.jsonl"], "kind": kind, "prompt": "{{ a }}", **more}
        (tmp_path / f"{kind}.yaml").write_text(json.dumps(task), "utf-8")
        command = ["--dry-run", "--model", model, "--task", str(tmp_path / f"{kind}.yaml")]
        assert guarded(evaluate.run, command) == (2 if kind == "generate" else 0)
        told = capsys.readouterr().err
        assert ("model family mixing-llama: prompts of uneven length" in told) == (
            kind == "generate"
        )
        assert ("leave out the tasks that write answers" in told) == (kind == "generate")
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(ModelError, match="model family mixing-llama: prompts of uneven length"):
        serve_app.build({"model": model, "engine": "transformers", "serving": {"no_auth": True}})


def test_documents_that_see_each_other_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_document(_: Any) -> PackedDocuments:
        tokens = sum(tiny_comparison.LENGTHS)
        return PackedDocuments(torch.tensor([0, tokens], dtype=torch.int32), tokens, tokens)

    monkeypatch.setattr(
        loss, "documents", lambda b, _: one_document(b) if b.cu_seqlens is not None else None
    )
    monkeypatch.setattr(loss, "_takes_more", lambda body: False)
    found = measure(configuration("llama"), "full")
    assert isinstance(found, Support)
    assert not found.packed


def test_a_measurement_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = supported(MixingConfig(), "full", tmp_path)
    monkeypatch.setattr(family_check, "measure", lambda *_: pytest.fail("measured again"))
    began = time.perf_counter()
    assert supported(MixingConfig(), "full", tmp_path) == first
    assert time.perf_counter() - began < 1
    with pytest.raises(pytest.fail.Exception):
        # another configuration is another network
        supported(MixingConfig(hidden_act="relu"), "full", tmp_path)


def test_the_table_holds_every_language_model_of_transformers() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    missing = [name for name in known_families() if f"| {name} |" not in page.replace("*", "")]
    assert not missing, f"run make families: {missing}"
    # what no model was computed of is measured when a run names it
    for name, (_, found) in family_support.table().items():
        assert isinstance(found, Support) or "no tiny model" not in found.why, name


def test_an_architecture_that_cannot_be_made_small_is_refused() -> None:
    class Broken(LlamaConfig):
        model_type = "broken-llama"

    found = measure(Broken(), "full")
    assert isinstance(found, Refusal)
    assert "transformers has no language model of it" in found.why
