"""Which models can be split matrix by matrix, from the numbers of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aift_ray.errors import Problem

# model types whose blocks are laid out as the plan has it
FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")
# layers split by outputs, and those split by inputs
COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROWS = ("o_proj", "down_proj")
# weights that share a scale, of 4 bits
_BLOCK = 64


def unfit(
    config: Mapping[str, Any], parts: int, targets: list[str], quantized: bool = False
) -> list[Problem]:
    """Why a model can't be split into `parts`.

    Args:
        config: numbers of the model, as its config.json names them.
        targets: names of the layers that get adapters, where the user gave any.
        quantized: its linear layers are held in 4 bits.
    """
    kind = config["model_type"]
    if kind not in FAMILIES:
        what = f"tensor knows how to split {', '.join(FAMILIES)}, and the model is a {kind}"
        return [Problem("parallel.strategy", what, "use --strategy fsdp")]
    heads = config["num_attention_heads"]
    numbers = {
        "attention heads": heads,
        "key and value heads": config.get("num_key_value_heads") or heads,
        "feed-forward channels": config["intermediate_size"],
    }
    whole = ", ".join(f"{n} {name}" for name, n in numbers.items() if n % parts)
    found = []
    if whole:
        what = f"{parts} workers can't share the model's {whole} evenly"
        remedy = "give a size that divides them, or use --strategy fsdp"
        found.append(Problem("parallel.tensor_parallel_size", what, remedy))
    size = config.get("head_dim") or config["hidden_size"] // heads
    shares = [config["hidden_size"], heads * size // parts, config["intermediate_size"] // parts]
    cut = ", ".join(str(width) for width in shares if width % _BLOCK)
    if quantized and cut and not whole:
        what = f"blocks of {_BLOCK} weights in 4 bits share a scale, and don't fit rows of {cut}"
        found.append(Problem("parallel.strategy", what, "use --strategy fsdp, or --method lora"))
    others = [name for name in targets if name not in (*COLUMNS, *ROWS)]
    if others:
        what = f"tensor can't split adapters of {', '.join(others)}"
        remedy = f"adapt {', '.join(COLUMNS + ROWS)} only, or use --strategy fsdp"
        found.append(Problem("lora.target_modules", what, remedy))
    return found
