"""Private interfaces of vLLM, read from vLLM 0.32.0."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from vllm import LLM
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.worker.gpu_worker import Worker as GPUWorker

__all__ = ["SchedulerStats", "replace_weights", "stat_logger_base"]

_RELOAD = "vllm.model_executor.model_loader.reload.layerwise"


def stat_logger_base() -> Any:
    """The class of what an engine tells its figures to.

    Missing: `AsyncLLMEngine` takes a list of such classes, and no public module has the base.
    """
    from vllm.v1.metrics.loggers import StatLoggerBase

    return StatLoggerBase


def replace_weights(llm: LLM, weights: Mapping[str, torch.Tensor]) -> None:
    """Have an engine in this process compute with other weights, and forget all prefixes.

    Missing: the worker's `reload_weights` leaves an output layer that is tied to the embeddings as
    it was, where that has a copy of them in another layout, as on a CPU.

    Args:
        weights: all of the model's, by their names in its folder.
    """
    # it tells of layers that have no weights, such as rotary embeddings, that they got none
    logging.getLogger(_RELOAD).setLevel(logging.ERROR)
    llm.collective_rpc(_replaced, args=(weights,))
    llm.reset_prefix_cache()


def _replaced(worker: GPUWorker, weights: Mapping[str, torch.Tensor]) -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    worker.reload_weights(weights_iterator=iter(weights.items()))
    for layer in worker.get_model().modules():
        if isinstance(layer, ParallelLMHead):
            layer.quant_method.process_weights_after_loading(layer)
