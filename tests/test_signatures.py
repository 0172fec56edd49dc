"""Every documented callable has its documented signature.

`DOCUMENTED` is the public API as users know it; a row is a name and the signature as it is written
in Python. A callable is added by adding its row. A parameter without annotation in the table may
have any. What the package adds comes after what is documented, and has a default.
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import pytest
import torch

import aift_ray

_PARTS = "device: torch.device | None = None, load_in_8bit: bool = False, "
_PARTS += "load_in_4bit: bool = False, torch_dtype: torch.dtype | None = None"

DOCUMENTED = {
    "aift_ray.models.base_model.BaseModel": f"(model_name: str, {_PARTS})",
    "aift_ray.models.base_model.BaseModel.load_model": "(self)",
    "aift_ray.models.base_model.BaseModel.load_tokenizer": "(self)",
    "aift_ray.models.japanese_model.JapaneseModel": (
        f"(model_name: str = 'stabilityai/japanese-stablelm-3b-4e1t-instruct', {_PARTS}, "
        "use_flash_attention: bool = True, gradient_checkpointing: bool = False)"
    ),
    "aift_ray.models.japanese_model.JapaneseModel.load_model": "(self) -> PreTrainedModel",
    "aift_ray.models.japanese_model.JapaneseModel.load_tokenizer": "(self) -> PreTrainedTokenizer",
    "aift_ray.models.japanese_model.JapaneseModel.generate_japanese": (
        "(self, instruction: str, input_text: str | None = None, max_new_tokens: int = 512, "
        "temperature: float = 0.7, top_p: float = 0.9, top_k: int = 50, do_sample: bool = True, "
        "**kwargs) -> str"
    ),
    "aift_ray.models.japanese_model.JapaneseModel.load_with_fallback": (
        "(self, fallback_models: list[str] | None = None) -> bool"
    ),
    "aift_ray.models.japanese_model.JapaneseModel.list_supported_models": "() -> dict[str, Any]",
    "aift_ray.config.TrainingConfig": (
        "(learning_rate: float = 2e-5, batch_size: int = 4, gradient_accumulation_steps: int = 4, "
        "num_epochs: int = 3, warmup_steps: int = 100, max_grad_norm: float = 1.0, "
        "eval_steps: int = 100, save_steps: int = 500, logging_steps: int = 10, "
        "output_dir: str = './outputs', fp16: bool = True, gradient_checkpointing: bool = True, "
        "ddp: bool = False, local_rank: int = -1, world_size: int = 1)"
    ),
    "aift_ray.config.LoRAConfig": (
        "(r: int = 16, lora_alpha: int = 32, target_modules: list[str] | None = None, "
        "lora_dropout: float = 0.05, bias: str = 'none', task_type: str = 'CAUSAL_LM', "
        "use_qlora: bool = False, qlora_4bit: bool = True)"
    ),
    "aift_ray.config.MultiGPUTrainingConfig": (
        "(strategy: str = 'ddp', max_memory_per_gpu: dict[int, str] | None = None, "
        "pipeline_parallel_size: int = 1, tensor_parallel_size: int = 1)"
    ),
    "aift_ray.training.training_utils.TextDataset": (
        "(texts: list[str], tokenizer, max_length: int = 512)"
    ),
    "aift_ray.training.full_finetuning.FullFinetuningTrainer": (
        "(model: BaseModel, config: TrainingConfig, train_dataset=None, "
        "eval_dataset=None, use_accelerate: bool = True)"
    ),
    "aift_ray.training.full_finetuning.FullFinetuningTrainer.train": (
        "(self, train_texts: list[str] | None = None, eval_texts: list[str] | None = None, "
        "resume_from_checkpoint: str | None = None) -> nn.Module"
    ),
    "aift_ray.training.lora_finetuning.LoRAFinetuningTrainer": (
        "(model: BaseModel, lora_config, training_config: TrainingConfig, "
        "train_dataset=None, eval_dataset=None)"
    ),
    "aift_ray.training.lora_finetuning.LoRAFinetuningTrainer.train": (
        "(self, train_texts=None, eval_texts=None, resume_from_checkpoint=None) -> nn.Module"
    ),
    "aift_ray.training.lora_finetuning.LoRAFinetuningTrainer.load_lora_model": (
        "(base_model_name: str, lora_adapter_path: str, device: torch.device | None = None)"
    ),
    "aift_ray.training.multi_gpu_training.AdvancedMultiGPUTrainer": (
        "(model: BaseModel, config: MultiGPUTrainingConfig, train_dataset=None, eval_dataset=None)"
    ),
    "aift_ray.training.multi_gpu_training.AdvancedMultiGPUTrainer.train": (
        "(self, train_texts=None, eval_texts=None, resume_from_checkpoint=None)"
    ),
    "aift_ray.training.quantization.QuantizationOptimizer": (
        "(model_name_or_path: str, device: torch.device | None = None)"
    ),
    "aift_ray.training.quantization.QuantizationOptimizer.quantize_to_8bit": (
        "(self, output_dir: str, compute_dtype=torch.float16, llm_int8_threshold: float = 6.0, "
        "llm_int8_has_fp16_weight: bool = False, "
        "llm_int8_enable_fp32_cpu_offload: bool = False) -> AutoModelForCausalLM"
    ),
    "aift_ray.training.quantization.QuantizationOptimizer.quantize_to_4bit": (
        "(self, output_dir: str, compute_dtype=torch.float16, quant_type: str = 'nf4', "
        "use_double_quant: bool = True) -> AutoModelForCausalLM"
    ),
    "aift_ray.training.quantization.QuantizationOptimizer.benchmark_quantization": (
        "(self, original_model: nn.Module, quantized_model: nn.Module, "
        "test_inputs: list[torch.Tensor], num_runs: int = 100) -> dict[str, Any]"
    ),
    "aift_ray.utils.gpu_utils.get_available_device": "() -> torch.device",
    "aift_ray.utils.gpu_utils.get_gpu_memory_info": "() -> dict[str, Any]",
    "aift_ray.utils.gpu_utils.optimize_model_for_gpu": (
        "(model, device=None, enable_mixed_precision: bool = True, "
        "gradient_checkpointing: bool = False) -> tuple[nn.Module, torch.device]"
    ),
    "aift_ray.utils.gpu_utils.clear_gpu_memory": "() -> None",
    "aift_ray.utils.gpu_utils.set_memory_fraction": "(fraction: float = 0.9) -> None",
}


def documented(text: str) -> inspect.Signature:
    """The signature that a row of the table writes down."""
    place: dict[str, Any] = {"torch": torch}
    exec(f"from __future__ import annotations\ndef row{text}: ...", place)
    return inspect.signature(place["row"])


def found(name: str) -> Any:
    """The callable behind a dotted name: module, then a class or function, then a method."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return getattr(found(module), attribute)


def spelled(annotation: Any) -> str:
    """An annotation as text, however it was written down."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\s", "", text)


def differences(actual: inspect.Signature, wanted: inspect.Signature) -> list[str]:
    """Where a signature departs from the documented one."""
    empty, problems = inspect.Parameter.empty, []
    own, known = (
        [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for signature in (actual, wanted)
    )
    for place, want in enumerate(known):
        have = own[place] if place < len(own) else None
        if have is None or have.name != want.name:
            problems.append(f"parameter {place + 1} is {have}, documented as {want}")
        elif (have.kind, have.default) != (want.kind, want.default):
            problems.append(f"{have.name}: {have}, documented as {want}")
        elif want.annotation is not empty and spelled(have.annotation) != spelled(want.annotation):
            problems.append(f"{have.name}: {have.annotation}, documented as {want.annotation}")
    added = own[len(known) :]
    problems += [f"{p.name} was added without a default" for p in added if p.default is empty]
    if any(p.kind is p.VAR_KEYWORD for p in wanted.parameters.values()):
        taken = any(p.kind is p.VAR_KEYWORD for p in actual.parameters.values())
        problems += [] if taken else ["takes no **kwargs"]
    returned = wanted.return_annotation
    if returned is not inspect.Signature.empty and spelled(returned) != spelled(
        actual.return_annotation
    ):
        problems.append(f"returns {actual.return_annotation}, documented as {returned}")
    return problems


@pytest.mark.parametrize("name", DOCUMENTED)
def test_signature_is_the_documented_one(name: str) -> None:
    assert differences(inspect.signature(found(name)), documented(DOCUMENTED[name])) == []


@pytest.mark.parametrize(
    "other",
    [
        "(b: int = 1, a: int = 1) -> str",
        "(a: int = 2, b: int = 1) -> str",
        "(a: str = 1, b: int = 1) -> str",
        "(a: int = 1) -> str",
        "(a: int = 1, *, b: int = 1) -> str",
        "(a: int = 1, b: int = 1, *, c: int) -> str",
        "(a: int = 1, b: int = 1) -> int",
    ],
)
def test_any_difference_is_seen(other: str) -> None:
    wanted = documented("(a: int = 1, b: int = 1) -> str")
    assert differences(documented(other), wanted) != []
    assert differences(documented("(a: int = 1, b: int = 1, *, c: int = 1) -> str"), wanted) == []


def test_what_is_abstract_stays_to_be_written() -> None:
    abstract = found("aift_ray.models.base_model.BaseModel").__abstractmethods__
    assert abstract == {"load_model", "load_tokenizer"}


def test_what_is_called_on_the_class_needs_no_instance() -> None:
    owner = found("aift_ray.models.japanese_model.JapaneseModel")
    assert isinstance(inspect.getattr_static(owner, "list_supported_models"), classmethod)


def test_documented_callables_are_public_names_of_the_package() -> None:
    for name in DOCUMENTED:
        (public,) = set(name.split(".")) & set(aift_ray.__all__)
        assert getattr(aift_ray, public) is found(name.partition(public)[0] + public)
