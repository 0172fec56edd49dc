"""The actor that knows which adapters every replica has to have.

It waits in a process of its own, and replicas wait for it: so nothing here needs Serve, which takes
seconds to import.
"""

from __future__ import annotations

import ray

from aift_ray.serving.adapter_record import AdapterRecord


@ray.remote(num_cpus=0)
class AdapterRegistry:
    """Which adapters every replica has to have; lives as long as the deployment."""

    def __init__(self, adapters: dict[str, AdapterRecord]) -> None:
        self._adapters = adapters

    def adapters(self) -> dict[str, AdapterRecord]:
        """Each by its name."""
        return self._adapters

    def put(self, name: str, wanted: AdapterRecord | None) -> None:
        """Add an adapter; None: take it away."""
        if wanted is None:
            self._adapters.pop(name, None)
        else:
            self._adapters[name] = wanted
