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

from aift_ray.models.decoder import causal_model
from aift_ray.parallel.tensors import is_shared_out, whole

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
    problem: OSError | None = None

    def attempt(act: Callable[[], Any]) -> Any:
        nonlocal problem
        try:
            return act() if path and problem is None else None
        except OSError as error:
            problem = error

    file = attempt(lambda: path.open("wb"))  # type: ignore[union-attr]
    attempt(lambda: file.write(header(tensors, dtype)))
    for tensor in tensors.values():
        full = whole(tensor.detach())
        attempt(lambda full=full: file.write(_content(full, dtype)))  # type: ignore[misc]
    if file:
        problem = _closed(file, problem)
    if problem:
        raise problem


def _closed(file: Any, problem: OSError | None) -> OSError | None:
    try:
        # what is still in its buffer may not fit either
        file.close()
    except OSError as error:
        return problem or error
    return problem


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


class Streams:
    """Sets of tensors that are written in one order by all workers, to the end."""

    def __init__(self, sets: dict[str, Tensors]) -> None:
        self._left = dict(sets)

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
