"""Several LoRA adapters in one batch: their matrices side by side, each row sees its own.

PEFT's `adapter_names` cuts the batch by adapter in every layer, some twenty small operations an
adapter. Here a step takes a few a layer, whatever the number of adapters: down to the ranks of all
of them, a mask that leaves each row those of its own adapter, up again. Prompts, whose tokens make
the arithmetic count, are cut by adapter. As in PEFT, adapters are held and computed in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn
from torch.nn.functional import linear

from aift_ray.serving.engines.interface import BASE


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to one layer.

    Attributes:
        down: (rank, features in).
        up: (features out, rank), with the adapter's scaling.
    """

    down: torch.Tensor
    up: torch.Tensor


class Mixed:
    """Adapters on the layers of one model, which stays as it is.

    Args:
        base: the model.
    """

    def __init__(self, base: nn.Module) -> None:
        self._base = base
        self._adapters: dict[str, Mapping[str, Pair]] = {}
        self._columns: list[_Columns] = []
        self._layers: list[_Layer] = []
        self._chosen: list[str] = []

    def put(self, name: str, pairs: Mapping[str, Pair]) -> None:
        """Add an adapter, given by the names of its layers in the model."""
        self._adapters[name] = pairs
        self._stack()

    def drop(self, name: str) -> None:
        """Forget an adapter; KeyError where there is none."""
        del self._adapters[name]
        self._stack()

    def choose(self, rows: Sequence[str]) -> None:
        """Name the adapter of each row of the next forward pass; BASE: none."""
        if rows == self._chosen:
            return
        self._chosen = list(rows)
        order = list(self._adapters)
        numbers = [-1 if name == BASE else order.index(name) for name in rows]
        for columns in self._columns:
            columns.choose(numbers)
        for layer in self._layers:
            layer.choose()

    def _stack(self) -> None:
        for layer in self._layers:
            layer.handle.remove()
        by_ranks: dict[tuple[int, ...], _Columns] = {}
        self._layers = []
        for name in dict.fromkeys(name for pairs in self._adapters.values() for name in pairs):
            found = [pairs.get(name) for pairs in self._adapters.values()]
            ranks = tuple(len(pair.down) if pair else 0 for pair in found)
            stacked = [pair for pair in found if pair]
            columns = by_ranks.setdefault(ranks, _Columns(ranks, stacked[0].down.device))
            module = self._base.get_submodule(name)
            self._layers.append(_Layer(module, stacked, columns))
        self._columns = list(by_ranks.values())
        self._chosen = []


class _Columns:
    """Whose the stacked ranks are; layers on which the adapters have equal ranks share it.

    Attributes:
        used: the ranks of the adapters in the batch; None: no row has any.
        mask: (rows, 1, used ranks), where a rank is another row's; None: all have the same
            adapter.
        parts: of rows side by side that have the same adapter, these rows and its used ranks.
    """

    def __init__(self, ranks: tuple[int, ...], device: torch.device) -> None:
        self._ranks, self._device = ranks, device
        self.used: slice | None = None
        self.mask: torch.Tensor | None = None
        self.parts: list[tuple[slice, slice]] = []

    def choose(self, rows: list[int]) -> None:
        present = {number for number in rows if number >= 0 and self._ranks[number]}
        self.used = self.mask = None
        self.parts = []
        if not present:
            return
        first, last = min(present), max(present)
        start = sum(self._ranks[:first])
        self.used = slice(start, start + sum(self._ranks[first : last + 1]))
        if len(set(rows)) == 1:
            return
        numbers = torch.arange(first, last + 1)
        owners = numbers.repeat_interleave(torch.tensor(self._ranks[first : last + 1]))
        self.mask = (owners != torch.tensor(rows)[:, None, None]).to(self._device)
        end = 0
        for number, run in groupby(rows):
            begin, end = end, end + len(list(run))
            if number in present:
                own = sum(self._ranks[first:number])
                self.parts.append((slice(begin, end), slice(own, own + self._ranks[number])))


class _Layer:
    """A hook on one layer."""

    def __init__(self, module: nn.Module, pairs: list[Pair], columns: _Columns) -> None:
        self._down = torch.cat([pair.down for pair in pairs])
        self._up = torch.cat([pair.up for pair in pairs], dim=1)
        self._columns = columns
        self._used_down, self._used_up = self._down, self._up
        self.handle = module.register_forward_hook(self)

    def choose(self) -> None:
        used = self._columns.used
        if used is not None:
            self._used_down, self._used_up = self._down[used], self._up[:, used].contiguous()

    def __call__(
        self, module: nn.Module, inputs: tuple[torch.Tensor, ...], made: torch.Tensor
    ) -> torch.Tensor:
        """The output (rows, tokens, features out) with what the adapters add, in place."""
        columns, down, up = self._columns, self._used_down, self._used_up
        if columns.used is None:
            return made
        states = inputs[0].to(down.dtype)
        if columns.mask is None:
            made += linear(linear(states, down), up)
        elif states.shape[1] == 1:
            # not multiplied by zero: what damaged weights make infinite would be NaN then
            made += linear(linear(states, down).masked_fill(columns.mask, 0), up)
        else:
            for rows, ranks in columns.parts:
                made[rows] += linear(linear(states[rows], down[ranks]), up[:, ranks])
        return made
