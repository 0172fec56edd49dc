"""What llm-compressor has no setting for, read from 0.14.0.1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def has_mappings(model: torch.nn.Module) -> bool:
    """Whether it knows which layers of a model AWQ scales together.

    Missing: it takes those of Llama for every other model.
    """
    from llmcompressor.modifiers.transform import awq

    known: Any = {*awq.AWQ_MAPPING_REGISTRY, *awq.AWQ_DYNAMIC_MAPPING_REGISTRY}
    return type(model).__name__ in known


@contextmanager
def without_pinned_memory() -> Iterator[None]:
    """Have AWQ pin no memory where there is no GPU, inside this context.

    Missing: it pins what it keeps of the calibration whether there is a GPU or not.
    """
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    usual = IntermediatesCache.pin_memory
    IntermediatesCache.pin_memory = lambda *given, **named: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = usual
