"""The layouts of the catalog that no configuration tells: `python -m tests.helpers.counted`.

Writes aift_ray/models/tables/counted.json, by which `aift-ray plan` needs no torch.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from aift_ray.commandline import validated
from aift_ray.models.catalog import CATALOG
from aift_ray.models.config_stats import COUNTED, written
from aift_ray.models.model_stats import measured
from aift_ray.planning.model_shape import FAMILIES, Shape

ARCHITECTURES = {
    str(entry.architecture.parameters): name
    for name, entry in CATALOG.items()
    if entry.architecture.model_type not in FAMILIES
}


def counted(name: str) -> Shape:
    """The shape of a model of the catalog, as a run measures it."""
    numbers: dict[str, Any] = dict(CATALOG[name].config)
    with tempfile.TemporaryDirectory() as folder:
        CONFIG_MAPPING[numbers.pop("model_type")](**numbers).save_pretrained(folder)
        return measured(str(Path(folder)), validated({"method": "lora"})).shape


if __name__ == "__main__":
    rows = {number: written(counted(name)) for number, name in ARCHITECTURES.items()}
    lines = [f'  "{number}": {json.dumps(row)}' for number, row in rows.items()]
    COUNTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
