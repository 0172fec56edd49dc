"""Every architecture of transformers against its own eager forward: `make families`.

Writes aift_ray/models/tables/families.csv, by which runs are laid out, and the tables of
docs/models.md and docs/ja/models.md: the rows of the families that are its arguments, or all. All
families take about an hour on one core; with `--rows FOLDER` each measured row is kept there and
not measured again, so that the work can be split among processes and continued later.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from aift_ray.engine.family_check import measure
from aift_ray.errors import AiftError
from aift_ray.models.catalog import CATALOG
from aift_ray.models.families.family_support import (
    FEATURES,
    TABLE,
    Refusal,
    Support,
    family_of,
    layer_kinds,
)
from aift_ray.models.families.tiny_model import shrunk
from aift_ray.models.load import built
from aift_ray.models.lora.target_modules import linear_layers
from aift_ray.models.split import pieces_of
from aift_ray.parallel import tensor_parallel
from aift_ray.serving.engines.transformers.kv_cache import RowsCache
from aift_ray.serving.engines.vllm.vllm_families import architectures_of
from aift_ray.serving.engines.vllm.vllm_families import table as vllm

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {"en": DOCS / "models.md", "ja": DOCS / "ja" / "models.md"}
COLUMNS = ("model_type", "kinds", "attention", "packed", "batched", "qlora", "targets", "refused")
# of those that AutoModelForCausalLM does not know: of any other a run measures its own
_WRAPPERS = ("cohere2_vision", "exaone4_5", "glm4v", "idefics3", "internvl", "llava", "mistral3")
_WRAPPERS += ("llava_onevision", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe")
_WRAPPERS += ("smolvlm", "voxtral")
# of the engines, where adapters are refused
_PLAIN = "vllm (no adapters)"
# seconds that a family may take
_LIMIT = 30
# numbers that every published configuration has, and the class leaves out
_NUMBERS = {
    "num_key_value_heads": 4,
    "head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
}
_SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
# kinds of layers that published models of a family have, and the class leaves out
_LAYERS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "cohere_compass_text": {
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _SECTIONS)
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 128,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.25,
        },
    },
    **{name: {"rope_parameters": _SECTIONS} for name in ("qwen2_vl", "qwen2_5_vl", "glm4v")},
}


class _TooLong(BaseException):
    """A family takes longer than it may."""


def families() -> list[str]:
    """The model types of language models that transformers knows, and of wrappers, sorted."""
    found = set()
    for name in (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *_WRAPPERS):
        config = configuration(name)
        if config is not None:
            found.add(family_of(config))
    return sorted(found)


def configuration(name: str) -> PreTrainedConfig | None:
    """The configuration of an architecture as its class has it; None where it can't be made.

    Of a wrapper that AutoModelForCausalLM does not know the whole, else the language model's.
    """
    try:
        config: PreTrainedConfig = CONFIG_MAPPING[name]()
        text = config.get_text_config(decoder=True)
    except Exception:
        return None
    for field, value in _LAYERS.get(name, {}).items():
        setattr(text, field, value)
    given = text.to_dict()
    numbers = {k: v for k, v in _NUMBERS.items() if k in given and given[k] is None}
    kinds = given.get("layer_types")
    if kinds and set(kinds) == {"full_attention"} and "sliding_window" in given:
        pair = ["sliding_attention", "full_attention"]
        numbers["layer_types"] = (pair * len(kinds))[: len(kinds)]
    for field, value in (numbers | {k: v for k, v in FEATURES.items() if k in given}).items():
        with suppress(Exception):  # some fields differ by layer
            setattr(text, field, value)
    return text if family_of(config) == text.model_type else config


@dataclass(frozen=True)
class Row:
    """What was measured of a family.

    Attributes:
        methods: full, lora and qlora: how each is computed.
        kinds: of its layers.
        targets: last names of the layers that get adapters.
    """

    family: str
    kinds: frozenset[str]
    methods: dict[str, Support | Refusal]
    targets: list[str]
    strategies: list[str]
    engines: list[str]

    @property
    def support(self) -> Support | Refusal:
        """Of full training and LoRA together."""
        full, lora = self.methods["full"], self.methods["lora"]
        if isinstance(full, Refusal) or isinstance(lora, Refusal):
            return full if isinstance(full, Refusal) else lora
        ways = sorted((full, lora), key=lambda way: (way.packed, way.attention == "documents"))
        return Support(ways[0].attention, ways[0].packed, full.batched and lora.batched)

    @property
    def is_known(self) -> bool:
        """Whether a model of the family, as its class has it, was computed."""
        return not isinstance(self.support, Refusal) or self.support.computed

    def cells(self) -> dict[str, str]:
        """As the table of the package holds it."""
        found, yes = self.support, {True: "yes", False: "no"}
        base = {"model_type": self.family, "kinds": " ".join(sorted(self.kinds))}
        base["targets"] = " ".join(self.targets)
        if isinstance(found, Refusal):
            return dict.fromkeys(COLUMNS, "") | base | {"refused": found.why, "targets": ""}
        return base | {
            "attention": found.attention,
            "packed": yes[found.packed],
            "batched": yes[found.batched],
            "qlora": yes[isinstance(self.methods["qlora"], Support)],
            "refused": "",
        }


def _to_json(one: Row) -> str:
    return json.dumps(asdict(one) | {"kinds": sorted(one.kinds)}, indent=1)


def _from_json(text: str) -> Row:
    found = json.loads(text)
    methods = {
        name: Refusal(**of) if "why" in of else Support(**of)
        for name, of in found.pop("methods").items()
    }
    return Row(**found | {"kinds": frozenset(found["kinds"]), "methods": methods})


def kept_row(family: str, folder: Path | None) -> Row:
    """The row of a family: from `folder` if an earlier run measured it, else measured now."""
    file = folder / f"{family}.json" if folder else None
    if file and file.is_file():
        return _from_json(file.read_text(encoding="utf-8"))
    measured = row(family)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_to_json(measured), encoding="utf-8")
    return measured


def row(family: str) -> Row:
    """Measure a family."""
    config = configuration(family)
    assert config is not None
    full = _limited(lambda: measure(config, "full"))
    methods = {"full": full, "lora": full, "qlora": full}
    if not isinstance(full, Refusal):
        methods["lora"] = _limited(lambda: measure(config, "lora"))
        methods["qlora"] = _limited(lambda: measure(config, "qlora"))
    kinds = layer_kinds(config)
    made = Row(family, kinds, methods, [], [], [])
    if isinstance(made.support, Refusal):
        return made
    tiny = shrunk(config)
    if getattr(tiny, "num_kv_shared_layers", 0):
        # which some models of a family do, and splitting refuses by name
        tiny.num_kv_shared_layers = 0
    with torch.device("meta"):
        model = built(tiny)
    targets = linear_layers(model)
    return Row(family, kinds, methods, targets, _strategies(model), _engines(model, made))


def _limited(call: Callable[[], Any]) -> Any:
    def stop(*_: Any) -> None:
        raise _TooLong

    # of the processor's time, which a busy machine does not change
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, _LIMIT)
    try:
        return call()
    except _TooLong:
        return Refusal(f"a tiny model of it takes more than {_LIMIT} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _strategies(model: PreTrainedModel) -> list[str]:
    found = ["ddp", "fsdp", "zero"]
    try:
        pieces_of(model)
        found += ["pipeline", "model_parallel"]
    except AiftError:
        pass
    return [*found, *(["tensor"] if _text_kind(model) in tensor_parallel.FAMILIES else [])]


def _text_kind(model: PreTrainedModel) -> str:
    return str(model.config.get_text_config(decoder=True).model_type)


def _engines(model: PreTrainedModel, measured: Row) -> list[str]:
    found = []
    with suppress(AiftError):
        RowsCache(model.config)
        support = measured.support
        found += ["transformers"] if isinstance(support, Support) and support.batched else []
    named = [name for kind in _kinds(measured.family) for name in architectures_of(kind)]
    taken = [name for name in named if name in vllm()]
    if taken:
        found.append("vllm" if vllm()[taken[0]] else _PLAIN)
    return found


def _kinds(family: str) -> list[str]:
    """A model type, and those of wholes that hold such a language model."""
    return [family, *(name for name in CONFIG_MAPPING if _held(name) == family)]


@cache
def _held(name: str) -> str | None:
    try:
        config = CONFIG_MAPPING[name]()
        return family_of(config) if config.get_text_config(decoder=True) is not config else None
    except Exception:
        return None


def main() -> int:
    """Measure the families of the command line, or all and write the tables."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--rows", type=Path, help="folder of measured rows, which are not repeated")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for family in options.families or families():
        rows.append(kept_row(family, options.rows))
        print(f"{family:24} {rows[-1].support}", flush=True)
    write(rows, not options.families)
    return 0


def write(rows: list[Row], whole: bool) -> None:
    """Write the table of the package and those of the documentation.

    Args:
        whole: the rows are all that there are; else the others stay.
    """
    measured = {one.family for one in rows}
    with TABLE.open(encoding="utf-8", newline="") as file:
        kept = [] if whole else [r for r in csv.DictReader(file) if r["model_type"] not in measured]
    # of others a run measures its own configuration
    kept += [one.cells() for one in rows if one.is_known]
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept, key=lambda cells: cells["model_type"]))
    for language, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        for name, made in (("trained", _trained(rows, language)), ("refused", _refused(rows))):
            old = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
            assert old
            lines = [] if whole else old[1].splitlines(keepends=True)
            lines = [line for line in lines if line.split("|")[1].strip(" *") not in measured]
            table = "".join(sorted([*lines, *made], key=lambda line: (line[2] != "*", line)))
            text = text[: old.start(1)] + table + text[old.end(1) :]
        page.write_text(text, encoding="utf-8")


_WORDS = {
    "en": {"packed": "packed", "padded": "padded", "yes": "yes", "no": "refused", "none": "none"},
    "ja": {"packed": "連結", "padded": "パディング", "yes": "可", "no": "拒否", "none": "なし"},
}
_WORDS["ja"][_PLAIN] = "vllm（アダプターは不可）"


def _trained(rows: list[Row], language: str) -> list[str]:
    words = _WORDS[language]
    named = {entry.architecture.model_type for entry in CATALOG.values()}
    lines = []
    for one in rows:
        if isinstance(one.support, Refusal):
            continue
        cells = [
            f"**{one.family}**" if one.family in named else one.family,
            words["packed" if one.support.packed else "padded"],
            ", ".join(one.targets),
            words["yes" if isinstance(one.methods["qlora"], Support) else "no"],
            ", ".join(one.strategies),
            ", ".join(words.get(each, each) for each in one.engines) or words["none"],
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return lines


def _refused(rows: list[Row]) -> list[str]:
    found = [(one.family, one.support) for one in rows if isinstance(one.support, Refusal)]
    reasons = {family: " ".join(why.why.replace("|", "/").split()) for family, why in found}
    return [f"| {family} | {why} |\n" for family, why in reasons.items()]


if __name__ == "__main__":
    sys.exit(main())
