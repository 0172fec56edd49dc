"""AdamW of bitsandbytes over this worker's shards of weights, in fp32 or stochastically rounded.

Imports bitsandbytes, which takes time: `bnb_adamw.build` imports this where it is asked for.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from bitsandbytes.optim.adamw import AdamW
from bitsandbytes.utils import sync_gpu
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from aift_ray.parallel.bnb_adamw import BLOCK, scales_shape
from aift_ray.parallel.stochastic_rounding import key_of, rounded
from aift_ray.parallel.torch_compat import shard_offsets

# weights that are widened to fp32 at once
_CHUNK = 2**22

Group = dict[str, Any]


class ShardAdamW(AdamW):
    """AdamW with moments in 8 or 32 bits, paged or not.

    bitsandbytes pages the state and computes the steps; what it sees are ordinary tensors.

    Args:
        seed: of the stochastic rounding of weights in bf16.
    """

    def __init__(
        self, groups: list[Group], optim_bits: int, is_paged: bool, seed: int, **how: Any
    ) -> None:
        start: Any = super().__init__
        start(groups, optim_bits=optim_bits, is_paged=is_paged, **how)
        self._bits, self._seed = optim_bits, seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step every weight that has a gradient.

        bitsandbytes waits for the GPU at each weight. A stream keeps the order of what it is
        given, and only pages are waited for, once.
        """
        assert closure is None
        stepped, prefetch = None, cast(Any, self.prefetch_state)
        for gindex, group in enumerate(self.param_groups):
            for pindex, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                if not self.state[weight]:
                    self.init_state(group, weight, gindex, pindex)
                prefetch(weight)
                self.update_step(group, weight, gindex, pindex)
                stepped = weight
        if self.is_paged and stepped is not None:
            sync_gpu(stepped)

    def init_state(self, group: Group, p: torch.Tensor, gindex: int, pindex: int) -> None:
        """Make the moments of a weight, all of them zero."""
        weight, shape = local(p), scales_shape(p) if self._bits == 8 else None
        state, kind = self.state[p], torch.float32 if shape is None else torch.uint8
        state["step"] = 0
        buffer: Any = self.get_state_buffer
        for number, code in ((1, "dynamic"), (2, "udynamic")):
            state[f"state{number}"] = buffer(weight, dtype=kind)
            if shape is not None:
                self.name2qmap[code] = self.name2qmap[code].to(weight.device)
                state[f"qmap{number}"] = self.name2qmap[code]
                blocks = -(-weight.numel() // BLOCK)
                state[f"absmax{number}"] = torch.zeros(blocks, device=weight.device)

    def update_step(self, group: Group, p: torch.Tensor, gindex: int, pindex: int) -> None:
        """One step of a weight by its gradient."""
        state = self.state[p]
        state["step"] += 1
        if not isinstance(p, DTensor):
            p.data = p.data.contiguous()
        assert p.grad is not None
        weight, grad = local(p).view(-1), local(p.grad).contiguous().view(-1)
        if weight.dtype is not torch.bfloat16:
            _update(group, state, weight, grad, slice(0, len(weight)))
            return
        key = key_of(self._seed, group["param_names"][pindex], state["step"])
        begin = _begin(p)
        for start in range(0, len(weight), _CHUNK):
            part = slice(start, min(start + _CHUNK, len(weight)))
            wide = weight[part].float()
            _update(group, state, wide, grad[part].float(), part)
            weight[part] = rounded(wide, key, begin + start)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This worker's shard of a tensor that is sharded; others as they are."""
    own: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return own.detach()


def _begin(weight: torch.Tensor) -> int:
    """The place of this worker's first number in the whole weight, row by row."""
    if not isinstance(weight, DTensor) or not weight.ndim:
        return 0
    return shard_offsets(weight)[0] * math.prod(weight.shape[1:])


def _update(
    group: Group,
    state: dict[str, Any],
    weight: torch.Tensor,
    grad: torch.Tensor,
    part: slice,
) -> None:
    """AdamW's step of the numbers `part` of a weight, (n,) in fp32 as their gradient."""
    if not len(weight):
        return
    (beta1, beta2), eps, rate = group["betas"], group["eps"], group["lr"]
    decay, step = group["weight_decay"], state["step"]
    first, second = (state[name].view(-1)[part] for name in ("state1", "state2"))
    if "absmax1" in state:
        blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
        scales = [state[name][blocks] for name in ("absmax1", "absmax2")]
        codes = state["qmap1"], state["qmap2"]
        how = (beta1, beta2, 0.0, 0.0, eps, step, rate, *codes, *scales, decay, 1.0, False)
        torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
            "adam", grad, weight, first, second, *how
        )
    elif first.device != weight.device:
        # pages, which torch takes for host memory
        how = (None, 0.0, 0.0, beta1, beta2, 0.0, 0.0, eps, decay, step, rate, 1.0, False)
        torch.ops.bitsandbytes.optimizer_update_32bit("adam", grad, weight, first, second, *how)
    else:
        done = [torch.full((), step - 1.0, device=weight.device)]
        adamw(
            [weight],
            [grad],
            [first],
            [second],
            [],
            done,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=rate,
            weight_decay=decay,
            eps=eps,
            maximize=False,
        )
