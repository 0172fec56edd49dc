"""What a user should know of a run on a mixture of experts before it starts."""

from __future__ import annotations

from typing import Any

from aift_ray.config import RunConfig
from aift_ray.planning.shape import Shape


def warnings(config: RunConfig, location: str, numbers: dict[str, Any]) -> list[str]:
    """What of a mixture is held or adapted otherwise than the settings let expect."""
    try:
        shape = Shape.of(numbers)
    except KeyError:
        return []
    if shape.experts == 1 or config.method == "full":
        return []
    found = []
    if config.base_bits == 8:
        found.append(
            f"bitsandbytes has no 8 bits for experts: their {shape.expert_parameters:,} weights "
            "are held as without quantization; 4 bits (--lora.qlora_4bit true) hold them too"
        )
    if (shape.shared or shape.dense_layers) and not config.lora.target_modules:
        from aift_ray.models import adapters, experts, loading

        model = loading.skeleton(location)
        taken = experts.mistaken(model, adapters.linear_layers(model))
        if taken:
            found.append(
                f"{', '.join(taken)} get no adapters: PEFT takes layers of these names for the "
                f"experts of a {numbers['model_type']}"
            )
    return found
