"""Private interfaces of vLLM, read from vLLM 0.32.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.metrics.stats import SchedulerStats

__all__ = ["SchedulerStats", "stat_logger_base"]


def stat_logger_base() -> Any:
    """The class of what an engine tells its figures to.

    Missing: `AsyncLLMEngine` takes a list of such classes, and no public module has the base.
    """
    from vllm.v1.metrics.loggers import StatLoggerBase

    return StatLoggerBase
