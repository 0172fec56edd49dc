"""Which of llama.cpp's pre-tokenizers splits texts as a tokenizer does: tried out on texts.

llama.cpp has a fixed list of pre-tokenizers, regular expressions that a GGUF file names. Each is
built here as a pre-tokenizer of `tokenizers` with the model's own vocabulary and merges, and both
read the same texts. A tokenizer that no entry agrees with can be exported with the nearest one,
if the user says so; then the texts that differ are counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"

# names in a GGUF file: (expressions, applied one after the other; whether whole words that are
# tokens are not merged from their pieces). Source: llama.cpp, src/llama-vocab.cpp
PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "gpt-2": ((_GPT2,), False),
    "smollm": ((r"\p{N}", _GPT2), False),
    "llama-bpe": ((rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",), True),
    "chatglm-bpe": ((rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",), False),
    "qwen2": ((rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}",), False),
    "qwen35": (
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}"
            r"\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        False,
    ),
    "gpt-4o": (
        (f"{_CASED % (_CONTRACTION + '?', _CONTRACTION + '?')}|\\p{{N}}{{1,3}}|{_REST_SLASH}",),
        False,
    ),
    "tekken": ((f"{_CASED % ('', '')}|\\p{{N}}|{_REST_SLASH}",), True),
    "deepseek-v3": (
        (
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            rf"{_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}"
            r"\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        False,
    ),
}

PROBES = (
    "日本の首都は東京です。明日は晴れるでしょうか？いいえ、雨が降りました。",
    "ひらがな、カタカナ・ー々〆ヶ、漢字；全角ＡＢＣ１２３、半角ｶﾀｶﾅ。「引用」『二重』（括弧）…―〜",
    "私は2024年12月31日に3,141.59円払いました。電話は03-1234-5678です。\n\n次の行。",
    "  二つの空白   三つ\t\ttab\r\nCRLF\n\n\n三行 \n 行頭の空白　全角の空白　　です",
    "I'm you're WE'LL don't DON'T it's 'quoted' \"double\" naïve café ŒUVRE Straße",
    "HTTPServer camelCase snake_case kebab-case path/to/file.py https://例え.jp/?q=1&r=2#x",
    "def f(x):\n    if x >= 10:\n\t\treturn {'a': [1, 22, 333, 4444, 55555]}\n",
    "がぎぐ か\u3099き\u3099 e\u0301 👨‍👩‍👧‍👦 🇯🇵 ①②③ ⅳ ㍿ ½ ² \u200b\ufeff",
    "한국어 中文简体 العربية עברית ไทย हिन्दी Ελληνικά Русский",
    "しませんでした。走っていました、行きましょう…です！？ではありません。お待ちしております",
    "!!!???...---===+++ <|not_a_token|> </s> $100 50% #タグ @user ^_^ (^o^)/ \\n",
)


@dataclass(frozen=True)
class Match:
    """An entry of llama.cpp's list, held against a tokenizer.

    Attributes:
        name: what a GGUF file calls it.
        differing: texts, of `len(PROBES)`, that it makes other tokens of.
        exact: it splits them into the same pieces, too, so that it does with other vocabularies.
    """

    name: str
    differing: int
    exact: bool


def best(definition: dict[str, Any]) -> Match:
    """The pre-tokenizer that agrees with a byte-level BPE tokenizer, or the nearest.

    Args:
        definition: the content of its tokenizer.json.
    """
    own = [_read(_plain(definition), text) for text in PROBES]
    # a large vocabulary takes a second to build
    built = {flag: _plain(_with(definition, ignore_merges=flag)) for flag in (False, True)}
    found = []
    for name, (expressions, ignore_merges) in PRE_TOKENIZERS.items():
        other = built[ignore_merges]
        other.pre_tokenizer = _splitting(expressions)
        read = [_read(other, text) for text in PROBES]
        number = sum(a[0] != b[0] for a, b in zip(own, read, strict=True))
        found.append(Match(name, number, own == read))
    return min(found, key=lambda match: (match.differing, not match.exact))


def differing(definition: dict[str, Any], other: dict[str, Any]) -> int:
    """How many texts two tokenizers make different tokens of, special tokens aside."""
    pair = _plain(definition), _plain(other)
    return sum(_read(pair[0], text)[0] != _read(pair[1], text)[0] for text in PROBES)


def _read(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[str] | None]:
    """The tokens of a text, and the pieces that they were made of."""
    pre = tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in pre.pre_tokenize_str(text)] if pre else None
    return tokenizer.encode(text, add_special_tokens=False).ids, pieces


def _splitting(expressions: tuple[str, ...]) -> Any:
    splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in expressions]
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, level])


def _with(definition: dict[str, Any], **settings: object) -> dict[str, Any]:
    return definition | {"model": definition["model"] | settings}


def _plain(definition: dict[str, Any]) -> Tokenizer:
    """A tokenizer without normalization that is only NFC, which is told apart from this."""
    normalizer = definition.get("normalizer")
    kept = None if is_nfc(normalizer) else normalizer
    return Tokenizer.from_str(json.dumps(definition | {"normalizer": kept}))


def is_nfc(normalizer: dict[str, Any] | None) -> bool:
    """Whether a normalizer composes characters and does nothing else."""
    return bool(normalizer) and normalizer == {"type": "NFC"}
