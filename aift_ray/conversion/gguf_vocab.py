"""A tokenizer as a GGUF file holds it: tokens, merges or scores, special tokens, chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gguf import TokenType

from aift_ray.conversion import pre_tokenizers
from aift_ray.errors import ModelError, Problem

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_SCHEMES = {"always": True, "first": True, "never": False}


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp is told of a tokenizer.

    Attributes:
        model: "gpt2", byte-level BPE, or "llama", merges by the scores of tokens.
        pre: name of the pre-tokenizer.
        tokens, types: one for each row of the embeddings.
        merges, scores: of gpt2; of llama.
        space_prefix: a text gets a blank in front.
        special: {key of GGUF without `_token_id`: id}.
        adds: {"bos", "eos": whether it is written around a text}.
        differing: of `pre_tokenizers.PROBES`, texts of which llama.cpp makes other tokens.
        notes: what else is not the same there, a sentence each.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    space_prefix: bool
    special: dict[str, int]
    adds: dict[str, bool]
    chat_template: str | None
    differing: int = 0
    notes: list[str] = field(default_factory=list)

    def write(self, writer: GGUFWriter) -> None:
        """Add it to a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_prefix)
        for name, number in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read(tokenizer: PreTrainedTokenizerBase, size: int, stop_ids: list[int]) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        size: rows of the embeddings.
        stop_ids: tokens that end an answer, of generation_config.json.

    Raises:
        ModelError: llama.cpp has no tokenizer of this kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it is not one of the tokenizers library")
    definition: dict[str, Any] = json.loads(backend.to_str())
    kind = definition["model"]["type"]
    if kind == "BPE" and _byte_level(definition.get("pre_tokenizer")):
        found = _byte_level_bpe(definition)
    elif kind == "BPE" and definition["model"].get("byte_fallback"):
        found = _scored(definition, _ranks(definition["model"]["merges"]))
    elif kind == "Unigram" and definition["model"].get("byte_fallback"):
        found = _unigram(definition)
    else:
        raise _refused(f"llama.cpp has none of its kind ({kind} without bytes)")
    tokens, types = _tokens(definition, size)
    special, notes = _special(tokenizer, stop_ids)
    if pre_tokenizers.is_nfc(definition.get("normalizer")):
        notes.append("the tokenizer composes characters (NFC), llama.cpp does not: give it NFC")
    ids = tokenizer("日本").input_ids
    adds = {
        "bos": bool(ids) and ids[0] == tokenizer.bos_token_id,
        "eos": bool(ids) and ids[-1] == tokenizer.eos_token_id,
    }
    template = tokenizer.chat_template
    scores = found.pop("scores", {})
    return Vocabulary(
        tokens=tokens,
        types=types,
        scores=[scores.get(token, _LAST) for token in tokens] if scores else [],
        special=special,
        adds=adds,
        chat_template=template if isinstance(template, str) else None,
        notes=notes,
        **found,
    )


# of tokens that are not made by merging
_LAST = -1e6


def _refused(what: str) -> ModelError:
    return ModelError([Problem("tokenizer", f"it can't be written as GGUF: {what}")])


def _byte_level(pre: dict[str, Any] | None) -> bool:
    parts = (pre or {}).get("pretokenizers", [pre or {}])
    return any(part.get("type") == "ByteLevel" for part in parts)


def _byte_level_bpe(definition: dict[str, Any]) -> dict[str, Any]:
    match = pre_tokenizers.best(definition)
    merges = [m if isinstance(m, str) else " ".join(m) for m in definition["model"]["merges"]]
    return {
        "model": "gpt2",
        "pre": match.name,
        "merges": merges,
        "space_prefix": False,
        "differing": 0 if match.exact else max(match.differing, 1),
    }


def _ranks(merges: list[Any]) -> dict[str, float]:
    """The score of a token: the sooner a merge makes it, the higher."""
    scores: dict[str, float] = {}
    for rank, merge in enumerate(merges):
        one, other = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault(one + other, float(-rank))
    return scores


def _scored(definition: dict[str, Any], scores: dict[str, float]) -> dict[str, Any]:
    return {
        "model": "llama",
        "pre": "default",
        "merges": [],
        "scores": scores,
        "space_prefix": _space_prefix(definition),
        "differing": 0,
    }


def _unigram(definition: dict[str, Any]) -> dict[str, Any]:
    """Merged by scores instead of chosen by likelihood: llama.cpp knows nothing nearer."""
    model = definition["model"]
    scores = {token: float(score) for token, score in model["vocab"]}
    found = _scored(definition, scores)
    names = [token for token, _ in model["vocab"]]
    ranked = sorted(range(len(names)), key=lambda at: -scores[names[at]])
    known = set(names)
    merges = [
        [names[at][:cut], names[at][cut:]]
        for at in ranked
        for cut in range(1, len(names[at]))
        if names[at][:cut] in known and names[at][cut:] in known
    ]
    merged = {
        "type": "BPE",
        "vocab": {name: at for at, name in enumerate(names)},
        "merges": merges,
        "unk_token": names[model["unk_id"]] if model.get("unk_id") is not None else None,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    found["differing"] = pre_tokenizers.differing(definition, definition | {"model": merged})
    return found


def _space_prefix(definition: dict[str, Any]) -> bool:
    """Whether a blank is put before a text."""
    for part in _parts(definition.get("normalizer"), "normalizers"):
        if part.get("type") == "Prepend":
            return True
    for part in _parts(definition.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace":
            return _SCHEMES[part.get("prepend_scheme", "always")]
    return False


def _parts(definition: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (definition or {}).get(name) or [definition or {}]
    return found


def _tokens(definition: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text and the type of each id; ids without a token are unused."""
    model = definition["model"]
    texts = [f"[PAD{number}]" for number in range(size)]
    types = [int(TokenType.UNUSED)] * size
    named = model["vocab"] if isinstance(model["vocab"], dict) else {}
    pairs = named.items() or ((token, at) for at, (token, _) in enumerate(model["vocab"]))
    unknown = model.get("unk_token")
    for token, number in pairs:
        if number >= size:
            continue
        texts[number] = token
        types[number] = int(TokenType.NORMAL)
        if model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
            types[number] = int(TokenType.BYTE)
        if token == unknown or number == model.get("unk_id"):
            types[number] = int(TokenType.UNKNOWN)
    for added in definition["added_tokens"]:
        number = added["id"]
        if number < size:
            texts[number] = added["content"]
            kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
            if types[number] != TokenType.UNKNOWN:
                types[number] = int(kind)
    return texts, types


def _special(
    tokenizer: PreTrainedTokenizerBase, stop_ids: list[int]
) -> tuple[dict[str, int], list[str]]:
    """Ids of special tokens, and what of them a file has no place for."""
    own = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    own |= {"unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    found = {name: int(number) for name, number in own.items() if number is not None}
    stops = stop_ids or [found["eos"]] if "eos" in found else stop_ids
    if stops and found.get("eos") not in stops:
        found["eos"] = stops[0]
    others = [number for number in stops if number != found.get("eos")]
    if others:
        found["eot"] = others[0]
    notes = []
    if len(others) > 1:
        names = ", ".join(map(str, tokenizer.convert_ids_to_tokens(others[1:])))
        notes.append(f"an answer ends at {names} too, for which a GGUF file has no place")
    return found, notes
