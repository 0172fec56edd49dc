"""Names that stand for models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aift_ray.config import SHIPPED_MODEL

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Entry:
    """A catalogued model: where it is, and what a user should know before choosing it.

    Attributes:
        location: Hub id, or a folder that ships with the package.
        display_name: for people.
        min_gpu_memory_gb: GiB of the smallest card that loads it in 16 bits; 0: none needed.
        licence: of the weights.
    """

    location: str
    display_name: str
    min_gpu_memory_gb: int
    licence: str


CATALOG = {
    SHIPPED_MODEL: Entry(
        str(ASSETS / SHIPPED_MODEL), "Hina 4M, the shipped Japanese model", 0, "Apache-2.0"
    ),
    "cyberagent/calm3-DeepSeek-R1-Distill-Qwen-32B": Entry(
        "cyberagent/DeepSeek-R1-Distill-Qwen-32B-Japanese",
        "CyberAgent DeepSeek-R1 Distill Qwen 32B Japanese",
        64,
        "MIT",
    ),
    "elyza/Llama-3-ELYZA-JP-8B": Entry(
        "elyza/Llama-3-ELYZA-JP-8B", "Llama-3 ELYZA Japanese 8B", 16, "Llama 3 Community"
    ),
}
