"""A family is refused with its name, the feature, what would work, and a near model."""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import aift_ray
from aift_ray.config import LoRAConfig
from aift_ray.engine.family_check import supported
from aift_ray.errors import AiftError, ModelError, Problem
from aift_ray.models.catalog import CATALOG
from aift_ray.models.families import family_support
from aift_ray.models.families.refusals import (
    NO_LAYOUT,
    has_experts,
    is_batched,
    is_llama_like,
    is_supported,
    refusal,
)
from aift_ray.models.load import built, skeleton
from aift_ray.models.lora.target_modules import check_quantizable, check_targets
from aift_ray.models.model_stats import measured
from aift_ray.models.split import pieces_of
from aift_ray.parallel import tensor_parallel
from aift_ray.serving.engines.transformers.kv_cache import RowsCache
from aift_ray.serving.engines.vllm.vllm_families import is_adapted, is_served
from tests.families import configuration
from tests.helpers.tiny_families import make, save, with_towers

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
# of the second table of the page, which holds those of families.csv too
REFUSED = dict(
    re.findall(r"^\| (\S+) \| (.+) \|$", PAGE.read_text("utf-8").split("<!-- refused -->")[1], re.M)
)


def rows() -> dict[str, dict[str, str]]:
    with family_support.TABLE.open(encoding="utf-8", newline="") as file:
        return {row["model_type"]: row for row in csv.DictReader(file)}


def named(problem: Problem) -> family_support.Support:
    """The support of the model that a message names, which is in the catalog."""
    found = re.fullmatch(r".*; (?:or )?choose another model, such as (\S+)", problem.remedy)
    assert found, problem.remedy
    known = family_support.table()[CATALOG[found[1]].architecture.model_type][1]
    assert isinstance(known, family_support.Support)
    return known


def told_of(config: Any, folder: Path) -> Problem:
    """What a run of a family that nothing computes is told: all four parts."""
    with pytest.raises(ModelError) as refused:
        supported(config, "full", folder)
    [problem] = refused.value.problems
    assert problem.where == f"model family {family_support.family_of(config)}"
    assert problem.remedy.startswith(NO_LAYOUT)
    named(problem)
    return problem


def test_every_refused_row_of_the_package_is_in_the_table() -> None:
    assert {name for name, row in rows().items() if row["refused"]} <= REFUSED.keys()
    assert len(REFUSED) > 15


@pytest.mark.parametrize("family", REFUSED)
def test_a_refused_row_of_the_table_names_all_four(family: str, tmp_path: Path) -> None:
    config = configuration(family)
    assert config is not None
    # the table's reasons are whole, and the same each time
    assert REFUSED[family] in told_of(config, tmp_path).what


ONE_KIND: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {"layer_types": ["mamba"] * 4, "num_hidden_layers": 4},
    "bamba": {"attn_layer_indices": [], "num_hidden_layers": 4},
    "nemotron_h": {"layers_block_type": ["mamba"] * 4},
    "qwen3_next": {"layer_types": ["linear_attention"] * 4, "num_hidden_layers": 4},
    "lfm2": {"layer_types": ["conv"] * 4, "num_hidden_layers": 4},
}


@pytest.mark.parametrize("family", ONE_KIND)
def test_a_hybrid_without_any_attention_is_told_why(family: str, tmp_path: Path) -> None:
    config = CONFIG_MAPPING[family](**ONE_KIND[family])
    told = told_of(config, tmp_path).what
    assert "and transformers' generate fails for a model without any attention layer" in told


NOT_SPLIT = [name for name, row in rows().items() if row["targets"] and name[0] in "abcfg"]


@pytest.mark.parametrize("family", [n for n in NOT_SPLIT if n not in tensor_parallel.FAMILIES])
def test_a_family_that_tensor_does_not_split_is_told_what_does(family: str) -> None:
    [problem] = tensor_parallel.unfit({"model_type": family}, 2, [])
    assert problem.where == "parallel.strategy"
    assert problem.what.startswith(f"model family {family}: ")
    assert problem.remedy.startswith("use --strategy fsdp; ")
    named(problem)


def raised(call: Callable[[], Any]) -> Problem:
    with pytest.raises(AiftError) as refused:
        call()
    [problem] = refused.value.problems  # type: ignore[attr-defined]
    return problem


def test_other_features_are_told_with_what_would_work(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    falcon = skeleton(str(make("falcon", tmp_path / "falcon")))
    gpt2 = skeleton(str(make("gpt2", tmp_path / "gpt2")))
    bert = built(CONFIG_MAPPING["bert"](is_decoder=True, num_hidden_layers=1))
    lfm = CONFIG_MAPPING["lfm2"](layer_types=["conv"] * 2, num_hidden_layers=2)
    told = {
        "train it with --method lora": raised(lambda: check_quantizable(falcon)),
        "use --strategy ddp or fsdp": raised(lambda: pieces_of(bert)),
        "serve it with --engine vllm": raised(lambda: RowsCache(lfm)),
        "leave lora.experts off": raised(lambda: check_targets(gpt2, LoRAConfig(experts=True))),
    }
    for layout, problem in told.items():
        assert "model family " in problem.where + problem.what, problem
        assert problem.remedy.startswith(layout), problem
        named(problem)


def test_a_wrapper_that_no_class_opens_is_told_so(
    configure: Callable[..., Any], tmp_path: Path
) -> None:
    save(with_towers("mistral3"), tmp_path)
    measured(str(tmp_path), configure(model=str(tmp_path)))
    CONFIG_MAPPING["pix2struct"]().save_pretrained(tmp_path)
    problem = raised(lambda: measured(str(tmp_path), configure(model=str(tmp_path))))
    assert problem.where == "model family pix2struct"
    assert problem.remedy.startswith(NO_LAYOUT)
    named(problem)


def test_the_nearest_model_has_the_feature() -> None:
    assert "Nemotron" in refusal("nemotron_h_moe", "x", None).remedy
    near = refusal("nemotron_h_moe", "x", None, tensor_parallel.FAMILIES.__contains__).remedy
    kind = CATALOG[near.rsplit(" ", 1)[-1]].architecture.model_type
    assert kind in tensor_parallel.FAMILIES


PACKAGE = Path(aift_ray.__file__).parent
# nothing computes these: no network in transformers, or one whose parts can't be told apart
WITHOUT_LAYOUT = {
    ("models/decoder.py", "_unknown"),
    ("models/hub.py", "load_config"),
    ("models/families/towers.py", "towers"),
    ("models/wrappers.py", "language_class"),
}


def sites() -> dict[tuple[str, str, int], ast.Call]:
    """{(file, function, line): call} of every refusal of a family in the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef) or function.name == "refusal":
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "refusal":
                    place = (str(path.relative_to(PACKAGE)), function.name, call.lineno)
                    found[place] = call
    return found


def test_every_refusal_says_what_works_or_is_listed_as_one_that_nothing_computes() -> None:
    assert len(sites()) > 30
    silent = set()
    for (file, function, _), call in sites().items():
        assert len(call.args) >= 3, (file, function)
        family, what, layout = call.args[:3]
        # the model's own name, not one that stands in the code
        assert not isinstance(family, ast.Constant), (file, function)
        assert not isinstance(what, ast.Constant) or str(what.value).strip(), (file, function)
        if isinstance(layout, ast.Constant) and layout.value is None:
            silent.add((file, function))
    assert silent == WITHOUT_LAYOUT


def test_no_message_names_a_family_but_by_a_refusal() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "refusals.py":
            text = path.read_text("utf-8")
            assert '"model family' not in text, path


FEATURES = [is_supported, is_batched, is_llama_like, has_experts, is_served, is_adapted]
FEATURES.append(tensor_parallel.FAMILIES.__contains__)


@pytest.mark.parametrize("fits", FEATURES)
def test_of_every_family_the_nearest_model_of_the_catalog_has_the_feature(
    fits: Callable[[str], bool],
) -> None:
    for family in [*rows(), "a-family-nobody-knows"]:
        problem = refusal(family, "lacks it", "do this", fits)
        found = re.fullmatch(r"do this; or choose another model, such as (\S+)", problem.remedy)
        assert found, problem.remedy
        assert problem.where == f"model family {family}"
        assert fits(CATALOG[found[1]].architecture.model_type), (family, found[1])
        asked = refusal(family, "lacks it", None, fits, "some.field")
        assert asked.where == "some.field"
        assert asked.what == f"model family {family}: lacks it"
        assert asked.remedy.startswith(NO_LAYOUT)
