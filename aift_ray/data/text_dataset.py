"""`TextDataset`: plain texts as token ids, as the documented Python API has it."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from aift_ray.errors import DataError, Problem, check_arguments

IGNORED = -100


class TextDataset(Dataset[dict[str, torch.Tensor]]):
    """Texts cut or padded to one length; the whole of each text is supervised.

    Args:
        texts: the documents.
        tokenizer: of the model that is to be trained.
        max_length: tokens of an item.

    Raises:
        ArgumentError: a TypeError: an argument is of another type.
        DataError: every text that is none, by index and type.
    """

    def __init__(
        self, texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int = 512
    ) -> None:
        check_arguments(
            "TextDataset",
            texts=(texts, (list, tuple)),
            tokenizer=(tokenizer, PreTrainedTokenizerBase),
            max_length=(max_length, int),
        )
        check_texts(texts, "texts", str)
        self.texts, self.tokenizer, self.max_length = list(texts), tokenizer, max_length

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """Item `idx`: input_ids, attention_mask and labels, each (max_length,) of int64.

        Labels are the ids, with -100 where there is padding. A text that is long enough loses
        its end; the end-of-sequence token is trained where there is room for it.
        """
        eos = self.tokenizer.eos_token_id
        ids = list(self.tokenizer(self.texts[idx])["input_ids"])
        if eos is not None and (not ids or ids[-1] != eos):
            ids.append(eos)
        ids = ids[: self.max_length]
        missing = self.max_length - len(ids)
        pad = self.tokenizer.pad_token_id
        padding = [pad if pad is not None else eos or 0] * missing
        return {
            "input_ids": torch.tensor(ids + padding),
            "attention_mask": torch.tensor([1] * len(ids) + [0] * missing),
            "labels": torch.tensor(ids + [IGNORED] * missing),
        }


def check_texts(texts: object, name: str, *kinds: type) -> None:
    """Refuse what is no list of texts (or rows), with a DataError that names every wrong item."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(texts, (list, tuple)):
        what = f"{type(texts).__name__} is not allowed: give a list of {expected}"
        other = f"{name.removesuffix('_texts')}_dataset"
        remedy = f"a dataset or an iterable is given as {other}" if name.endswith("_texts") else ""
        raise DataError([Problem(name, what, remedy)])
    problems = [
        Problem(f"{name}[{index}]", f"{type(item).__name__} is not allowed: give {expected}")
        for index, item in enumerate(texts)
        if not isinstance(item, kinds)
    ]
    if not texts:
        problems = [Problem(name, "is empty", f"give at least one {expected}")]
    if problems:
        raise DataError(problems)
