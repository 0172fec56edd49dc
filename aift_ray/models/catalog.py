"""The models that are known by name; the tables lie beside this file, in `tables/`.

`models.csv` says what a user should know before choosing one. `architectures.csv` holds the
numbers of the networks, which many models share, so that a run can be planned with no network; a
config.json on disk comes first. `architectures.json` adds the keys of config.json that only some
families have. `templates.csv` names the tokens that end a turn.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aift_ray.config import SHIPPED_MODEL
from aift_ray.errors import Problem

ASSETS = Path(__file__).parent / "assets"
TABLES = Path(__file__).parent / "tables"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# GiB of memory that cards are sold with
_CARDS = (2, 4, 8, 16, 24, 32, 48, 64, 80, 141)


@dataclass(frozen=True)
class Architecture:
    """Numbers of a network; `active_experts` of `experts` see each token (1 of 1: a dense one).

    Attributes:
        model_type: as transformers calls it; of the language model, where that is one of a larger
            whole.
        parameters: of the language model, without towers for images and sound and without layers
            that predict further tokens.
        tied: whether the output layer shares the embedding.
        extra: further keys of config.json, as the network's own class reads them.
    """

    model_type: str
    parameters: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    tied: bool
    experts: int
    active_experts: int
    extra: dict[str, Any] = field(default_factory=dict, hash=False)

    def config(self) -> dict[str, Any]:
        """The numbers under the names of config.json."""
        numbers = {
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.feed_forward,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
        }
        if self.experts > 1:
            # each model reads the name that its own family uses
            numbers["moe_intermediate_size"] = self.feed_forward
            numbers["num_experts"] = numbers["num_local_experts"] = self.experts
            numbers["num_experts_per_tok"] = self.active_experts
        return numbers | self.extra


@dataclass(frozen=True)
class Entry:
    """A catalogued model: where it is, and what a user should know before choosing it.

    Attributes:
        location: Hub id, or a folder that ships with the package.
        display_name: for people.
        architecture: its numbers.
        context: tokens of prompt and answer together, at most.
        licence: of the weights.
        gated: the Hub asks for an account that has accepted the terms.
        template: kind of its prompt; none: a base model.
        turn_ends: tokens that end the model's turn.
    """

    location: str
    display_name: str
    architecture: Architecture
    context: int
    licence: str
    gated: bool
    template: str
    turn_ends: tuple[str, ...]

    @property
    def config(self) -> dict[str, Any]:
        """What is known of its config.json, for planning with no network."""
        return self.architecture.config() | {"max_position_embeddings": self.context}

    @property
    def min_gpu_memory_gb(self) -> int:
        """GiB of the smallest card that loads it in 16 bits; training needs more."""
        need = self.architecture.parameters * 2 / 2**30 + 1
        return next((card for card in _CARDS if card >= need), int(need) + 1)

    def public(self) -> dict[str, Any]:
        """As `JapaneseModel.SUPPORTED_MODELS` shows it."""
        return {
            "display_name": self.display_name,
            "min_gpu_memory_gb": self.min_gpu_memory_gb,
            "location": self.location,
            "parameters": self.architecture.parameters,
            "context": self.context,
            "licence": self.licence,
            "gated": self.gated,
            "template": self.template,
            "turn_ends": list(self.turn_ends),
        }


def _rows(table: str) -> Iterator[dict[str, str]]:
    with (TABLES / f"{table}.csv").open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _number(text: str) -> int | bool | str:
    return int(text) if text.isdecimal() else {"yes": True, "no": False}.get(text, text)


def _read() -> dict[str, Entry]:
    architectures = {}
    extra = json.loads((TABLES / "architectures.json").read_text("utf-8"))
    for row in _rows("architectures"):
        name = row.pop("architecture")
        numbers: dict[str, Any] = {key: _number(value) for key, value in row.items()}
        architectures[name] = Architecture(**numbers, extra=extra.get(name, {}))
    turn_ends = {row["template"]: tuple(row["turn_ends"].split()) for row in _rows("templates")}
    return {
        row["name"]: Entry(
            location=_location(row),
            display_name=row["display_name"],
            architecture=architectures[row["architecture"]],
            context=int(row["context"]),
            licence=row["licence"],
            gated=row["gated"] == "yes",
            template=row["template"],
            turn_ends=turn_ends[row["template"]],
        )
        for row in _rows("models")
    }


def _location(row: dict[str, str]) -> str:
    if row["name"] == SHIPPED_MODEL:
        return str(ASSETS / SHIPPED_MODEL)
    return row["hub_id"] or row["name"]


CATALOG = _read()


def find(name: str) -> Entry | None:
    """The entry of a catalog name, or of the location that one stands for."""
    if name in CATALOG:
        return CATALOG[name]
    return next((entry for entry in CATALOG.values() if entry.location == name), None)


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a repository on the Hub."""
    return _HUB_ID.fullmatch(name) is not None


def unknown(name: str) -> Problem:
    """What is wrong with a name that is no catalogued model, no folder and no Hub id."""
    what = "missing: there is no such folder or catalog name"
    return Problem(f"model {name}", what, suggestion(name))


def suggestion(name: str) -> str:
    """What to give in place of a model's name that was not found."""
    near = nearest(name)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "give a folder, a Hub id, or a name of aift_ray.JapaneseModel.list_supported_models()"


def of_family(kind: str, fits: Callable[[str], bool] | None = None) -> str:
    """The catalog's model whose architecture's name resembles `kind` most; the smallest of it.

    Where none resembles it, the shipped model, or else the smallest that fits.

    Args:
        fits: whether a model of a type may be named; None: all may.
    """
    known = [(name, entry.architecture) for name, entry in CATALOG.items() if name != SHIPPED_MODEL]
    known.sort(key=lambda one: one[1].parameters)
    types: dict[str, str] = {}
    for name, architecture in known:
        types.setdefault(architecture.model_type, name)
    named = {type_: name for type_, name in types.items() if fits is None or fits(type_)}
    near = difflib.get_close_matches(kind, named, 1, 0.4)
    if near:
        return named[near[0]]
    shipped = CATALOG[SHIPPED_MODEL].architecture.model_type
    if not named or fits is None or fits(shipped):
        return SHIPPED_MODEL
    return next(iter(named.values()))


def nearest(name: str) -> list[str]:
    """The catalog's names that resemble `name`, best first, at most three."""
    wanted = name.rsplit("/", 1)[-1].lower()
    short = {each.rsplit("/", 1)[-1].lower(): each for each in CATALOG}
    return [short[found] for found in difflib.get_close_matches(wanted, short, 3, 0.5)]
