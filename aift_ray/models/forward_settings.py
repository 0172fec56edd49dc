"""The numbers of a model's configuration on which its forward pass depends.

Two folders can hold the same weights and compute different logits: rope_theta, a scale of the
logits or a window is in config.json alone. An adapter fits the model that it was trained on only
where these are the same.
"""

from __future__ import annotations

import json
from typing import Any

from aift_ray.models.hub import load_config

# of the identity of a file, of training, of generation, or repeated by the weights' shapes
_WITHOUT_EFFECT = frozenset(
    {
        "architectures",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "problem_type",
        "quantization_config",
        "return_dict",
        "router_aux_loss_coef",
        "sep_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
# rotary frequencies of these kinds depend on the longest context
_BY_LENGTH = ("dynamic", "longrope")
_LENGTH = "max_position_embeddings"


def forward_settings(location: str) -> dict[str, Any]:
    """{name: value} of the language model's settings; names of nested ones have dots.

    Raises:
        ModelError: the location has no configuration that transformers knows.
    """
    text = load_config(location).get_text_config(decoder=True)
    # tuples and dtypes as a file would hold them
    plain = json.loads(json.dumps(text.to_dict(), default=str))
    found = _flat({k: v for k, v in plain.items() if k not in _WITHOUT_EFFECT})
    found = {k: v for k, v in found.items() if "drop" not in k and not k.startswith("_")}
    if not any(k.endswith("rope_type") and v in _BY_LENGTH for k, v in found.items()):
        found.pop(_LENGTH, None)
    return found


def changed_settings(recorded: dict[str, Any], location: str) -> list[str]:
    """What differs between recorded settings and those of a location now, in words.

    Settings that only one of them has are left out: another version of transformers names others.

    Raises:
        ModelError: the location has no configuration that transformers knows.
    """
    if not recorded:
        return []
    now = forward_settings(location)
    return [
        f"{name} is {now[name]}, and was {value}"
        for name, value in recorded.items()
        if name in now and now[name] != value
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
