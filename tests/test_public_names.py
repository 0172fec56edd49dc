"""What `import aift_ray` gives, and what it leaves alone."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import aift_ray


def test_public_names_are_sorted_and_each_can_be_had() -> None:
    names = aift_ray.__all__[1:]
    assert names == sorted(names)
    for name in names:
        assert getattr(aift_ray, name) is not None
    assert set(names) <= set(dir(aift_ray))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="JapanesModel"):
        _ = aift_ray.JapanesModel


def test_the_package_alone_loads_no_heavy_library() -> None:
    code = (
        "import sys, aift_ray\n"
        "sys.exit(bool({'torch', 'transformers', 'ray', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# the import paths that users have written down, beside those of tests/test_signatures.py
PATHS = {
    "aift_ray.launch.serving": ["build"],
    "aift_ray.models.base_model": ["BaseModel"],
    "aift_ray.models.japanese_model": ["JapaneseModel"],
    "aift_ray.training.full_finetuning": ["FullFinetuningTrainer"],
    "aift_ray.training.lora_finetuning": ["LoRAFinetuningTrainer", "LoRAConfig"],
    "aift_ray.training.multi_gpu_training": ["AdvancedMultiGPUTrainer", "MultiGPUTrainingConfig"],
    "aift_ray.training.preference": ["PreferenceTrainer"],
    "aift_ray.training.reinforcement": ["GRPOTrainer"],
    "aift_ray.training.quantization": ["QuantizationOptimizer"],
    "aift_ray.training.training_utils": ["TrainingConfig", "TextDataset"],
    "aift_ray.utils.gpu_utils": ["get_available_device", "get_gpu_memory_info"],
}


@pytest.mark.parametrize("module", PATHS)
def test_a_documented_import_path_works(module: str) -> None:
    for name in PATHS[module]:
        assert callable(getattr(importlib.import_module(module), name))
        public = getattr(aift_ray, name, None)
        assert public is None or public is getattr(importlib.import_module(module), name)
