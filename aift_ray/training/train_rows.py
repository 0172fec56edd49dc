"""What `train_texts` and `train_dataset` may be, read into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from torch.utils.data import Dataset

from aift_ray.data import memory_rows
from aift_ray.data.memory_rows import Held
from aift_ray.data.text_dataset import IGNORED, TextDataset, check_texts
from aift_ray.data.token_types import Encoded
from aift_ray.errors import DataError, Problem
from aift_ray.models import hub

Rows = list[str] | list[dict[str, Any]]
# torch's, Hugging Face's, or any other
Items = Dataset[Any] | Iterable[Any]
_TOKENS = "input_ids"
_EXPECTED = "give str, a row (dict), or a dict with input_ids"


def held_texts(rows: Rows, name: str) -> Held:
    """The rows of a list; DataError with every item that is neither a text nor a row."""
    check_texts(rows, name, str, dict)
    return memory_rows.as_lines(rows)


def held_dataset(dataset: Items, name: str, model: str) -> Held:
    """The items of a dataset: texts, rows, or token ids.

    Args:
        dataset: torch's, Hugging Face's, or anything that is indexed or iterated over. The texts of
            a `TextDataset` itself are tokenized as all texts are; one of another class is asked for
            its items.
        model: its vocabulary must hold the ids.

    Raises:
        DataError: every item that is wrong, by its index.
    """
    if type(dataset) is TextDataset:
        return held_texts(list(dataset.texts), name)
    items = list(_items(dataset, name))
    if not items:
        raise DataError([Problem(name, "is empty", "give at least one item")])
    tokens = [isinstance(item, Mapping) and _TOKENS in item for item in items]
    if not any(tokens):
        return held_texts([_plain(item) for item in items], name)
    vocabulary = hub.load_config(hub.resolve(model)).get_text_config().vocab_size
    rows, problems = [], []
    for index, item in enumerate(items):
        try:
            rows.append(_encoded(item, vocabulary))
        except ValueError as error:
            problems.append(Problem(f"{name}[{index}]", str(error)))
    if problems:
        raise DataError(problems)
    return memory_rows.as_tokens(rows)


def max_length(dataset: Items | None) -> int | None:
    """Tokens of an item of a `TextDataset`, and of what is derived from it."""
    return dataset.max_length if isinstance(dataset, TextDataset) else None


def _items(dataset: object, name: str) -> Iterator[Any]:
    """The items by index where there are a length and an index, else by iteration."""
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return (dataset[index] for index in range(len(dataset)))
    if isinstance(dataset, Iterable):
        return iter(dataset)
    what = f"{type(dataset).__name__} is neither indexed nor iterated over"
    raise DataError([Problem(name, what, "give a torch Dataset, or an iterable of texts or rows")])


def _plain(item: object) -> Any:
    return dict(item) if isinstance(item, Mapping) else item


def _encoded(item: object, vocabulary: int) -> Encoded:
    """An item of token ids without its padding; ValueError says what is wrong with it."""
    if not isinstance(item, Mapping) or _TOKENS not in item:
        raise ValueError(f"{type(item).__name__} is among token ids: {_EXPECTED}")
    ids = _numbers(item[_TOKENS], _TOKENS)
    labels = _numbers(item["labels"], "labels") if item.get("labels") is not None else ids
    seen = item.get("attention_mask")
    mask = _numbers(seen, "attention_mask") if seen is not None else [1] * len(ids)
    if not len(ids) == len(labels) == len(mask):
        sizes = f"{len(ids)} input_ids, {len(labels)} labels, {len(mask)} of attention_mask"
        raise ValueError(f"{sizes}: expected as many of each")
    kept = [at for at, one in enumerate(mask) if one]
    if not kept:
        raise ValueError("holds no token")
    outside = [ids[at] for at in kept if not 0 <= ids[at] < vocabulary]
    if outside:
        raise ValueError(f"id {outside[0]} is outside the vocabulary of {vocabulary:,}")
    others = [at for at in kept if labels[at] not in (IGNORED, ids[at])]
    if others:
        at = others[0]
        what = f"labels[{at}] is {labels[at]}, input_ids[{at}] is {ids[at]}"
        raise ValueError(f"{what}: expected the same id, or {IGNORED} where nothing is trained")
    return Encoded([ids[at] for at in kept], [labels[at] != IGNORED for at in kept])


def _numbers(value: object, name: str) -> list[int]:
    found = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(found, (list, tuple)) or not all(
        isinstance(one, int) and not isinstance(one, bool) for one in found
    ):
        first = next(iter(islice(found, 1)), None) if isinstance(found, (list, tuple)) else found
        kind = type(first).__name__
        raise ValueError(f"{name} holds {kind}: expected one dimension of whole numbers")
    return list(found)
