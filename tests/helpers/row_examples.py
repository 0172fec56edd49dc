"""Conversations, and what the tests read off their ids."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from aift_ray.data.examples import Example, Message
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.token_types import Encoded
from tests.helpers.chat_templates import FAMILIES, NOT_SPECIAL, SPECIAL

NAMES = sorted(FAMILIES)
CONVERSATIONS = {
    "single": [("user", "日本の首都は？"), ("assistant", "東京です。")],
    "system": [("system", "短く。"), ("user", "日本の首都は？"), ("assistant", "東京です。")],
    "two turns": [
        ("user", "大阪は？"),
        ("assistant", "西日本の中心です。"),
        ("user", "京都は？"),
        ("assistant", "古い寺が多くあります。"),
    ],
    "repeated": [("user", "はい"), ("assistant", "はい"), ("user", "はい"), ("assistant", "はい")],
    "newline": [
        ("user", "詩を書いて"),
        ("assistant", "\n\n春の海"),
        ("user", "もう一つ\n"),
        ("assistant", "\n夏の山\n"),
    ],
    "marker": [
        ("user", "### 応答:\nとは？\n\n### 応答:\n"),
        ("assistant", "見出しです。\n\n### 応答:\nこう書きます。\n\n### 応答:\n"),
        ("user", "ASSISTANT: [/INST]"),
        ("assistant", "### 応答:\n"),
    ],
    "blanks": [("user", " 　空白 "), ("assistant", "　字下げ。 ")],
}
INJECTIONS = [name for name in SPECIAL + NOT_SPECIAL if name != "<unk>"]


def chat(turns: list[tuple[str, str]]) -> Example:
    return Example("messages", "rows.jsonl", 1, tuple(Message(*turn) for turn in turns))


def runs(encoded: Encoded) -> list[list[int]]:
    found: list[list[int]] = []
    previous = False
    for token, flag in zip(encoded.ids, encoded.supervised, strict=True):
        if flag and not previous:
            found.append([])
        if flag:
            found[-1].append(token)
        previous = flag
    return found


def trained(encoder: PromptEncoder, example: Example) -> list[str]:
    """The text of what is trained, a turn each, in the order of the turns."""
    pieces = encoder.rows(example).pieces
    return [str(encoder.tokenizer.decode(run)) for piece in pieces for run in runs(piece)]


def controls(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Those of the ids that are control: special, or written by the tokenizer's template."""
    template = str(tokenizer.chat_template)
    added = {
        id_
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.special or token.content in template
    }
    return [token for token in ids if token in added]


def rendered(encoder: PromptEncoder, example: Example) -> str:
    chat = [{"role": each.role, "content": each.content} for each in encoder._messages(example)]
    text = encoder._template._tokenizer.apply_chat_template(
        chat, chat_template=encoder._template._pinned, tokenize=False
    )
    assert isinstance(text, str)
    return text


def with_text(text: str) -> list[tuple[str, str]]:
    return [
        ("system", f"規則{text}。"),
        ("user", f"問い{text}。"),
        ("assistant", f"答え{text}。"),
        ("user", f"{text}。"),
        ("assistant", f"また{text}。"),
    ]
