"""Tensors of which each worker holds a share, written one after the other: none holds them all."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from aift_ray.errors import ModelError
from aift_ray.models.decoder import causal_model
from aift_ray.parallel.dtensor_utils import is_partitioned, is_shared_out, whole

Tensors = Mapping[str, torch.Tensor]

# names of dtypes in the header of a safetensors file
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}


def write(path: Path | None, tensors: Tensors, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file tensor by tensor; every worker must call this alike.

    Args:
        path: None: this worker takes part in gathering, and writes nothing.
        tensors: floating point ones, or codes of 8 bits.
        dtype: of the file; None: as they are.

    Raises:
        OSError: it could not be written; only after all took part, so that no worker waits.
    """
    if path is None:
        gather(tensors, None)
        return
    with _File(path, header(tensors, dtype)) as file:
        gather(tensors, lambda _, tensor: file.write(_content(tensor, dtype)))


def gather(tensors: Tensors, put: Callable[[str, torch.Tensor], Any] | None) -> None:
    """Bring each tensor together, one after the other; every worker must call this alike.

    Args:
        put: takes a tensor under its name; None: this worker takes part, and keeps nothing.

    Raises:
        OSError, ModelError: what `put` raised; only after all took part.
    """
    problem: Exception | None = None
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        try:
            if put and problem is None:
                put(name, full)
        except (OSError, ModelError) as error:
            problem = error
    if problem:
        raise problem


class _File:
    """A file of which an error, that of opening it too, is raised where it is closed at last."""

    def __init__(self, path: Path, begin: bytes) -> None:
        self._path, self._begin = path, begin
        self._file: Any = None
        self._problem: OSError | None = None

    def __enter__(self) -> _File:
        try:
            self._file = self._path.open("wb")
            self._file.write(self._begin)
        except OSError as error:
            self._problem = error
        return self

    def write(self, content: memoryview) -> None:
        """Write; nothing after an error."""
        if self._problem is None:
            self._file.write(content)

    def __exit__(self, *_: object) -> None:
        if self._file:
            try:
                # what is still in its buffer may not fit either
                self._file.close()
            except OSError as error:
                self._problem = self._problem or error
        if self._problem:
            raise self._problem


def header(tensors: Tensors, dtype: torch.dtype | None) -> bytes:
    """The beginning of a safetensors file: names, kinds and places; the tensors follow in order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        kept = dtype or tensor.dtype
        begin, end = end, end + tensor.numel() * kept.itemsize
        shape = list(tensor.shape)
        entries[name] = {"dtype": _NAMES[kept], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _content(tensor: torch.Tensor, dtype: torch.dtype | None) -> memoryview:
    flat = tensor.to("cpu", dtype or tensor.dtype).contiguous().flatten()
    content: Any = flat.view(torch.uint8).numpy()
    return memoryview(content)


def can_stream(model: torch.nn.Module) -> bool:
    """Whether a model is shared out, and its weights bear the names of their file."""
    if isinstance(model, PeftModel) or not is_shared_out(model):
        return False
    if any(is_partitioned(weight) for weight in model.parameters()):
        # by DeepSpeed, in pieces that have no place in the file
        return False
    return not getattr(model, "_weight_conversions", None)


def named_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model, each once, by the name that it has in a file."""
    ignored = set(causal_model(model)._keys_to_ignore_on_save or ())
    found: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, weight in state.items():
        if name not in ignored:
            found.setdefault(id(weight), name)
    return {name: state[name] for name in found.values()}


class GatheredTensors:
    """Sets of tensors that are written in one order by all workers, to the end."""

    def __init__(self, sets: dict[str, Tensors]) -> None:
        self._left = dict(sets)

    def give(self, name: str, put: Callable[[str, torch.Tensor], Any]) -> None:
        """Hand a set over, tensor by tensor; worker 0 alone calls this, as `write`.

        Raises:
            OSError, ModelError: of `put`.
        """
        gather(self._left.pop(name), put)

    def write(self, name: str, path: Path, dtype: torch.dtype | None = None) -> None:
        """Write a set; worker 0 alone calls this, in the order that they were given in.

        Raises:
            OSError: it could not be written.
        """
        write(path, self._left.pop(name), dtype)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever happens within, all sets are gathered in the end, as the others do."""
        try:
            yield
        finally:
            for name in list(self._left):
                write(None, self._left.pop(name))
