"""The dtypes of a run: of the stored weights, of the computation, of the result."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import torch
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from aift_ray.config import RunConfig
from aift_ray.errors import ConfigError, Problem
from aift_ray.parallel.group import Group
from aift_ray.parallel.torch_compat import scalar_overflow_flags

# rows of a matrix are rounded up to a multiple of it where kernels are compiled for each shape
ROUNDED = 32


@dataclass(frozen=True)
class Precision:
    """Resolved dtypes.

    Attributes:
        name: bf16, fp16 or fp32.
        compute: dtype of matrix products.
        frozen: dtype of weights that are not trained.
        trained: of weights that are; fp32, unless updates are rounded stochastically.
    """

    name: str
    compute: torch.dtype
    frozen: torch.dtype
    trained: torch.dtype = torch.float32

    @classmethod
    def resolve(cls, config: RunConfig, device: torch.device) -> Precision:
        """The dtypes that `config` asks for on `device`.

        Raises:
            ConfigError: fp16 on a CPU, which has no loss scaling worth its name; weights in bf16,
                and another precision on this device.
        """
        name: str = config.training.precision
        if name == "auto":
            name = _automatic(config.training.fp16, device)
        if name == "fp16" and device.type != "cuda":
            problem = Problem("training.precision", "fp16 needs a GPU", "use bf16, fp32 or auto")
            raise ConfigError([problem])
        if name == "fp16" and config.parallel.by_deepspeed:
            what = "is fp16 on this GPU, and parallel.backend deepspeed does not scale the loss"
            remedy = "use --training.precision fp32, or --parallel.backend fsdp2"
            raise ConfigError([Problem("training.precision", what, remedy)])
        rounded = config.training.bf16_stochastic_round
        if rounded and name != "bf16":
            what = f"keeps weights in bf16, and the precision on this device is {name}"
            remedy = "give --training.precision bf16, or leave it out"
            raise ConfigError([Problem("training.bf16_stochastic_round", what, remedy)])
        dtype, trained = DTYPES[name], torch.bfloat16 if rounded else torch.float32
        return cls(name, dtype, trained if config.method == "full" else dtype, trained)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Computes in `compute`, on `device` and where blocks lie in the host; nothing in fp32.

        Copies of weights in that dtype are not kept: together they would take half as much memory
        as the weights, and hardly any is used twice in a forward pass.
        """
        contexts = ExitStack()
        if self.compute is not torch.float32:
            for kind in {device.type, "cpu"}:
                contexts.enter_context(
                    torch.autocast(kind, dtype=self.compute, cache_enabled=False)
                )
        return contexts

    def compiles_by_shape(self, device: torch.device) -> bool:
        """Whether the first product of a shape compiles a kernel, by oneDNN: 1 to 5 ms each."""
        return device.type == "cpu" and self.compute is not torch.float32

    def scaler(self, group: Group) -> torch.amp.GradScaler:
        """Scales the loss in fp16; passes everything through otherwise."""
        enabled = self.compute is torch.float16
        if group.world_size == 1:
            return torch.amp.GradScaler(group.device.type, enabled=enabled)
        # where each worker has other weights, all must leave a step out together
        return JoinedScaler(group.device.type, enabled=enabled)


class JoinedScaler(ShardedGradScaler):
    """Loss scaling of several workers: where one of them has overflowed, all leave the step out."""

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale; as torch's, but told in scalars."""
        super().unscale_(optimizer)
        if self.is_enabled():
            scalar_overflow_flags(self, optimizer)


def _automatic(mixed: bool, device: torch.device) -> str:
    if not mixed or device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
