"""Figures of vLLM's scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aift_ray.serving.engines.vllm.vllm_compat import stat_logger_base

if TYPE_CHECKING:
    from aift_ray.serving.engines.vllm.vllm_compat import SchedulerStats


class Statistics:
    """The latest figures of vLLM's scheduler."""

    def __init__(self) -> None:
        self.usage = 0.0
        self.reused = 0

    def logger(self) -> Any:
        """What makes a StatLogger that writes here."""
        statistics, base = self, stat_logger_base()

        class Logger(base):  # type: ignore[misc, valid-type]
            def __init__(self, vllm_config: object, engine_index: int = 0) -> None: ...

            def record(
                self, scheduler_stats: SchedulerStats | None, *_: object, **__: object
            ) -> None:
                if scheduler_stats:
                    statistics.usage = scheduler_stats.kv_cache_usage
                    statistics.reused += scheduler_stats.prefix_cache_stats.hits

            def log_engine_initialized(self) -> None: ...

        return Logger
