"""What `aift-ray doctor --bench` has measured of a machine's devices, kept for plans."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from aift_ray.planning.gpu_specs import GIB, Card, of_name

_FILE = "rates.json"


@dataclass(frozen=True)
class Rates:
    """What a device reaches.

    Attributes:
        name: of a GPU as its driver says it; of a CPU, whose one thread was measured, in words.
        memory: bytes.
        tflops: 1e12 operations a second in products of large matrices, by dtype: bf16, fp32.
        bandwidth: of its memory, GB/s, read and written.
        host: from pinned host memory, GB/s; None: it is the host.
    """

    name: str
    memory: int
    tflops: dict[str, float]
    bandwidth: float
    host: float | None

    def card(self, dtype: str, threads: float = 1) -> Card:
        """The same as a plan knows a GPU.

        Args:
            threads: that a worker has, of a CPU.
        """
        products = self.tflops[dtype] * (threads if self.host is None else 1)
        known = of_name(self.name)
        host = self.host or self.bandwidth
        box = known.box if known else round(self.memory / 1e9)
        link = known.nvlink if known else None
        return Card(
            self.name, box, self.memory / GIB, products, self.bandwidth, host, link, measured=True
        )


def keep(rates: Rates) -> Path:
    """Write what was measured to where `kept` reads it; the file.

    Raises:
        OSError: it could not be written.
    """
    file = _folder() / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(asdict(rates), ensure_ascii=False, indent=1) + "\n", "utf-8")
    scratch.replace(file)
    return file


def kept() -> Rates | None:
    """What was measured on this machine; None: nothing, or it can't be read."""
    with suppress(OSError, ValueError, TypeError):
        return Rates(**json.loads((_folder() / _FILE).read_text("utf-8")))
    return None


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "aift_ray"
