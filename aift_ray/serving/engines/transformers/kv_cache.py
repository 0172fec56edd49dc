"""The keys and values of a batch of requests, a row each, that come and go between steps.

Rows are aligned at their right end, as in `generate`: what a shorter row lacks stands in front of
it and is masked. So a step appends one column for all, and distances within a row are right for
every kind of attention, sliding windows included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from aift_ray.errors import ModelError
from aift_ray.models.families.family_support import family_of
from aift_ray.models.families.refusals import is_batched, refusal
from aift_ray.serving.engines.vllm import vllm_families

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# keys and values of one row in one layer, (heads, tokens, size) each
Pair = tuple[torch.Tensor, torch.Tensor]
# those of one row, by the number of the layer
States = dict[int, Pair]

# of a layer that uses the keys and values of an earlier one; transformers before 5.20 has none
_EMPTY = getattr(cache_utils, "DummyLayer", ())
# columns allocated ahead: appending to transformers' own layers copies them whole at every step
AHEAD = 64


class RowsLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, columns, size), with room to grow.

    A sliding window is left to the mask: all columns stay, so that rows can be cut and reused.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, is_sliding: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding = is_sliding
        self._buffers: list[torch.Tensor] = []

    def put(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take other contents."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys, self.values, self._buffers = keys, values, []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns; all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if not self._buffers or self._buffers[0].shape[2] < end:
            pairs = ((self.keys, key_states), (self.values, value_states))
            self._buffers = [_grown(old, new, start, end + AHEAD) for old, new in pairs]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


class RowsCache(DynamicCache):
    """The layers of a model.

    Raises:
        ModelError: the model keeps something else than keys and values.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        kinds: dict[type, bool] = {DynamicLayer: False, DynamicSlidingWindowLayer: True}
        # of blocks that attend to nothing, or share the keys and values of others
        empty = [isinstance(layer, _EMPTY) for layer in self.layers]
        keeping = [layer for layer, none in zip(self.layers, empty, strict=True) if not none]
        foreign = {type(layer).__name__ for layer in keeping if type(layer) not in kinds}
        if foreign:
            what = f"its layers keep {', '.join(sorted(foreign))}, not keys and values by token"
            layout = vllm_families.elsewhere(config)
            raise ModelError([refusal(family_of(config), what, layout, is_batched)])
        self._rows = [RowsLayer(kinds[type(layer)]) for layer in keeping]
        rows = iter(self._rows)
        self.layers = [
            layer if none else next(rows) for layer, none in zip(self.layers, empty, strict=True)
        ]

    @property
    def columns(self) -> int:
        """Length of the longest row."""
        return max((layer.get_seq_length() for layer in self._rows), default=0)

    @property
    def bytes_of_a_column(self) -> int:
        """Bytes of the keys and values of a token of one row."""
        filled = [(layer.keys, layer.values) for layer in self._filled()]
        return sum(each[0, :, 0].nbytes for pair in filled for each in pair)

    def keep(self, rows: list[int], columns: int) -> None:
        """Drop all rows but these, and all columns but the last `columns`."""
        index = torch.tensor(rows, dtype=torch.long)
        for layer in self._filled():
            start = layer.get_seq_length() - columns
            chosen = index.to(layer.keys.device)
            layer.put(layer.keys[chosen, :, start:], layer.values[chosen, :, start:])

    def row(self, at: int, columns: int) -> States:
        """A row's last columns, as they stand in the cache until its next change."""
        return {
            number: (_last(layer.keys[at], columns), _last(layer.values[at], columns))
            for number, layer in enumerate(self._rows)
            if layer.is_initialized
        }

    def begin(self, rows: list[tuple[States, int] | None], columns: int) -> None:
        """Take rows of so many columns.

        Args:
            rows: the states of each, and the column where they begin: what stands before it is to
                be masked. None: a row of which all these columns are masked.
        """
        for number in next(row[0] for row in rows if row):
            parts = [(row[0][number], row[1]) if row else None for row in rows]
            self._rows[number].put(*(_laid(parts, side, columns) for side in (0, 1)))

    def join(self, other: RowsCache) -> None:
        """Add the rows of another batch behind one's own."""
        width = max(self.columns, other.columns)
        for mine, theirs in zip(self._rows, other._rows, strict=True):
            if not theirs.is_initialized:
                continue
            keys, values = _widen(theirs.keys, width), _widen(theirs.values, width)
            if mine.is_initialized:
                keys = torch.cat([_widen(mine.keys, width), keys])
                values = torch.cat([_widen(mine.values, width), values])
            mine.put(keys, values)

    def _filled(self) -> list[RowsLayer]:
        # layers that share the keys of others never get any
        return [layer for layer in self._rows if layer.is_initialized]


def _grown(old: torch.Tensor, new: torch.Tensor, used: int, size: int) -> torch.Tensor:
    buffer = new.new_empty(new.shape[0], new.shape[1], size, new.shape[3])
    if used:
        buffer[:, :, :used] = old
    return buffer


def _last(states: torch.Tensor, columns: int) -> torch.Tensor:
    return states[:, states.shape[1] - columns :]


def _laid(parts: list[tuple[Pair, int] | None], side: int, columns: int) -> torch.Tensor:
    """Keys (side 0) or values (1) of a layer, (rows, heads, columns, size)."""
    like = next(part[0][side] for part in parts if part)
    made = like.new_zeros(len(parts), like.shape[0], columns, like.shape[2])
    for row, part in zip(made, parts, strict=True):
        if part:
            pair, start = part
            row[:, start:] = pair[side][:, : columns - start]
    return made


def _widen(states: torch.Tensor, columns: int) -> torch.Tensor:
    missing = columns - states.shape[2]
    return pad(states, (0, 0, missing, 0)) if missing else states
