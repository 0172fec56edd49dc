"""The catalog's tables are true to the networks that transformers builds from them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from aift_ray.models.catalog import CATALOG, TABLES, find, nearest
from aift_ray.models.families import family_support
from aift_ray.models.hub import out_of_reach
from aift_ray.planning.model_shape import Shape
from tests.conftest import SHIPPED

ARCHITECTURES = {entry.architecture: name for name, entry in CATALOG.items()}

DOCUMENTED = {
    "cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B": (
        "CyberAgent DeepSeek-R1 Distill Qwen 32B Japanese",
        64,
    ),
    "elyza/Llama-3-ELYZA-JP-8B": ("Llama-3 ELYZA Japanese 8B", 16),
    "stabilityai/japanese-stablelm-3b-4e1t-instruct": ("Japanese StableLM 3B Instruct", 8),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_models_have_their_documented_fields(name: str) -> None:
    entry = CATALOG[name]
    assert (entry.display_name, entry.min_gpu_memory_gb) == DOCUMENTED[name]


@pytest.mark.parametrize("name", ARCHITECTURES.values())
def test_a_network_of_the_tables_numbers_has_the_stated_parameters(name: str) -> None:
    entry = CATALOG[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**entry.config))
    assert model.num_parameters() == entry.architecture.parameters


# blocks that are not all alike, or hold more than attention and a feed forward
UNCOUNTED = {
    "gemma4_text",
    "gemma4_unified_text",
    "lfm2",
    "nemotron_h",
    "qwen3_5_moe_text",
    "qwen3_5_text",
}


@pytest.mark.parametrize("name", CATALOG)
def test_every_model_can_be_planned_without_a_network(name: str) -> None:
    entry = CATALOG[name]
    shape = Shape.of(entry.config)
    counted = shape.parameters == pytest.approx(entry.architecture.parameters, rel=0.01)
    assert counted is (entry.architecture.model_type not in UNCOUNTED)
    assert (shape.layers, shape.kv_heads) == (
        entry.architecture.layers,
        entry.architecture.kv_heads,
    )


def test_every_architecture_and_template_of_the_tables_is_used() -> None:
    def column(table: str, name: str) -> set[str]:
        with (TABLES / f"{table}.csv").open(encoding="utf-8") as file:
            return {row[name] for row in csv.DictReader(file)}

    for table, name in (("architectures", "architecture"), ("templates", "template")):
        assert column(table, name) == column("models", name)


def test_the_shipped_models_entry_is_that_of_its_folder() -> None:
    entry = CATALOG["hina-4m"]
    stored = json.loads((SHIPPED / "config.json").read_text("utf-8"))
    assert Path(entry.location) == SHIPPED
    assert entry.config.items() <= stored.items()
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    assert entry.turn_ends == (tokenizer.eos_token,)


def test_a_model_is_found_by_its_name_and_by_its_true_place() -> None:
    documented = "cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B"
    true = "cyberagent/DeepSeek-R1-Distill-Qwen-32B-Japanese"
    assert find(documented) is find(true) is not None
    assert find("no/such-model") is None


def test_a_misspelt_name_finds_its_model() -> None:
    assert nearest("elyza/llama-3-elyza-jp-8")[0] == "elyza/Llama-3-ELYZA-JP-8B"
    assert nearest("hina")[0] == "hina-4m"
    assert nearest("Qwen/Qwen-3.5-4b")[0] == "Qwen/Qwen3.5-4B"
    assert nearest("LFM2.5-JP")[0] == "LiquidAI/LFM2.5-1.2B-JP"
    assert nearest("zzzzzz") == []


def test_the_catalog_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, aift_ray.models.catalog\n"
        "sys.exit(bool({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_a_model_of_the_catalog_is_of_a_family_that_was_measured(name: str) -> None:
    numbers = dict(CATALOG[name].config)
    config = CONFIG_MAPPING[numbers.pop("model_type")](**numbers)
    assert isinstance(family_support.known(config), family_support.Support)


def test_what_was_not_measured_of_a_family_is_not_taken_for_known() -> None:
    asked = CONFIG_MAPPING["gemma3_text"](use_bidirectional_attention=True)
    assert family_support.known(asked) is None
    assert family_support.asks_more(asked) == ["use_bidirectional_attention"]
    # a number of what the measured network has none of
    clipped = CONFIG_MAPPING["olmo"](clip_qkv=8.0)
    assert family_support.known(clipped) is None
    assert family_support.asks_more(clipped) == ["clip_qkv"]
    # kinds of layers that the table does not speak of
    linear = CONFIG_MAPPING["jamba"](num_hidden_layers=4)
    assert family_support.known(linear) is None


def test_a_name_of_the_same_owner_is_told_without_a_network() -> None:
    assert (
        "did you mean elyza/Llama-3-ELYZA-JP-8B?"
        in out_of_reach("elyza/Llama-3-ELYZA-JP-8b").remedy
    )
    for name in ("elyza/Llama-3-ELYZA-JP-8B", "someone/thing"):
        assert out_of_reach(name).remedy == "check the network, or give a local folder"
