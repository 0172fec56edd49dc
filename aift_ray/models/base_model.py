"""What every model of the package is: a name, a device, a dtype, and two ways to load."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from transformers import PreTrainedModel, PreTrainedTokenizer

from aift_ray.errors import ArgumentError, ConfigError, Problem, UserError
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.utils.gpu_utils import half_precision, usable_device


class BaseModel(ABC):
    """A model that is loaded when it is first needed.

    Args:
        model_name: catalog name, Hub id, or folder (of a model, or of an adapter on one).
        device: where it computes; None: CUDA, else MPS, else the CPU.
        load_in_8bit, load_in_4bit: hold the linear layers in that many bits; at most one of them.
        torch_dtype: of the weights (with 4 bits: of the products); None: 16 bits on a GPU
            (bfloat16 where it has it), float32 on a CPU.

    Attributes:
        model, tokenizer: None until they are loaded.

    Raises:
        ConfigError: every argument that is wrong, before anything is loaded; where one is of
            another type an ArgumentError, which is a TypeError too.
    """

    def __init__(
        self,
        model_name: str,
        device: torch.device | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        torch_dtype: torch.dtype | None = None,
    ) -> None:
        problems = wrong_flags(load_in_8bit=load_in_8bit, load_in_4bit=load_in_4bit)
        kind = ConfigError if isinstance(model_name, str) and not problems else ArgumentError
        if not isinstance(model_name, str) or not model_name.strip():
            what = f"{model_name!r} is not allowed: give a catalog name, Hub id or folder"
            problems.append(Problem("model_name", what))
        if load_in_8bit is True and load_in_4bit is True:
            what = "contradicts load_in_4bit: weights are held in 8 or in 4 bits"
            problems.append(Problem("load_in_8bit", what, "give one of them"))
        if torch_dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
            what = f"{torch_dtype!r} is not allowed: give torch.bfloat16, float16 or float32"
            problems.append(Problem("torch_dtype", what))
        try:
            self.device = usable_device(device)
        except UserError as error:
            problems += error.problems
        if problems:
            raise kind(problems)
        self.model_name = model_name
        self.load_in_8bit = load_in_8bit
        self.load_in_4bit = load_in_4bit
        self.torch_dtype = torch_dtype or _usual_dtype(self.device)
        self.model: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizer | None = None

    @property
    def quantization(self) -> Quantization | None:
        """How the linear layers are held; None: like all else."""
        if not self.load_in_8bit and not self.load_in_4bit:
            return None
        return Quantization(8 if self.load_in_8bit else 4, compute_dtype=self.torch_dtype)

    @abstractmethod
    def load_model(self) -> PreTrainedModel:
        """The model on its device; loaded once."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizer:
        """The tokenizer, with the model's chat template; loaded once."""


def wrong_flags(**flags: object) -> list[Problem]:
    """The flags that are neither True nor False."""
    return [
        Problem(name, f"{value!r} is not allowed: give True or False")
        for name, value in flags.items()
        if not isinstance(value, bool)
    ]


def _usual_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else half_precision(device)
