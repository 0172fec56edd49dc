"""Rows that are longer than a sequence: cut in the prompt, or split."""

from __future__ import annotations

import random

from tokenizers import Tokenizer

from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder
from aift_ray.data.token_types import Encoded
from aift_ray.data.truncation import fit, split_text
from tests.helpers.chat_templates import wrap


def test_fit_keeps_answers_order_and_the_ends_of_the_prompt() -> None:
    source = random.Random(0)
    for _ in range(300):
        flags: list[bool] = []
        for _ in range(source.randint(1, 4)):
            flags += [False] * source.randint(1, 30) + [True] * source.randint(1, 12)
        flags += [False] * source.randint(0, 3)
        row = Encoded(list(range(len(flags))), flags)
        for length in (3, 10, 40, 80, len(flags)):
            cut = fit(row, length)
            trained = [at for at, flag in enumerate(flags) if flag]
            if cut is None:
                assert len(trained) + 2 > length or (len(trained) + 1 > length and not flags[1])
                continue
            assert len(cut) == min(length, len(flags)) or len(cut) == trained[-1] + 1
            assert cut.ids == sorted(set(cut.ids))
            assert [at for at, flag in zip(cut.ids, cut.supervised, strict=True) if flag] == trained
            assert cut.ids[0] == 0
            assert cut.ids[cut.supervised.index(True) - 1] == trained[0] - 1


def test_fit_cuts_the_longest_prompt_first() -> None:
    flags = [False] * 20 + [True] * 2 + [False] * 4 + [True] * 2 + [False]
    row = Encoded(list(range(len(flags))), flags)
    cut = fit(row, 18)
    assert cut is not None
    assert cut.ids == [0, 1, 2, 3, 4, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27]
    assert fit(row, 5) is None
    assert fit(row, len(row)) is row


def test_split_text_loses_nothing(bpe: Tokenizer) -> None:
    encoder = PromptEncoder(wrap(bpe, None, "<s>", "</s>", adds_bos=True))
    encoded = encoder.encode(Example("text", "f", 1, output="日本の首都は東京です。" * 20))
    for length in (1, 7, 64, 10_000):
        pieces = split_text(encoded, length)
        assert all(0 < len(piece) <= length for piece in pieces)
        assert [token for piece in pieces for token in piece.ids] == encoded.ids
        assert [flag for piece in pieces for flag in piece.supervised] == encoded.supervised
        assert pieces[-1].ids[-1] == encoder.tokenizer.eos_token_id
