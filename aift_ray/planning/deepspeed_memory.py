"""Memory of a worker of DeepSpeed's ZeRO, by the buffers that its optimizers hold (0.19.8)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aift_ray.planning.memory_parts import FLOAT32, Memory, Workload

# weights that stage 3 keeps gathered at most (stage3_max_live_parameters)
_LIVE = 1_000_000_000
# copies in fp32 of what a worker trains, in host memory: the partition, the one that is stepped,
# its gradient, the gradient that is accumulated, and two moments
_IN_HOST = 6


@dataclass(frozen=True)
class PartitionedModel:
    """Of a model.

    Attributes:
        layers, hidden: its blocks, and their width.
        inside: bytes of the weights of all blocks, in which they are computed with.
        outside: of all else.
        scales: of 4-bit weights, which are whole on each worker.
        trained: weights that are trained.
    """

    layers: int
    hidden: int
    inside: float
    outside: float
    scales: int
    trained: int


def partitioned(need: Memory, work: Workload, model: PartitionedModel) -> Memory:
    """The need of one of several workers.

    Args:
        need: of a worker that holds everything.
    """
    stage, workers = int(work.strategy[-1]), work.workers
    # trained weights are gathered as they are held, in fp32
    wide = FLOAT32 / work.frozen_bytes if work.full else 1
    own = FLOAT32 * model.trained // workers
    bucket = FLOAT32 * model.hidden**2
    if stage == 3:
        inside, outside = model.inside * wide, model.outside * wide
        each = FLOAT32 if work.full else work.held
        frozen = need.weights - model.scales - FLOAT32 * model.trained
        weights = frozen // workers + model.scales + own
        gathered = round(min(inside, _LIVE * each) + outside)
        # a block's gradients, until they are reduced
        reducing = round(inside / model.layers + outside) if work.full else 0
        gradients, buffers = own, reducing + 2 * bucket
    else:
        # the whole weights, and a copy of the partition, which is stepped
        weights, gathered = need.weights + own, 0
        gradients = own + (FLOAT32 * model.trained if stage == 1 else own)
        buffers = 2 * bucket
    optimizer = need.optimizer // workers
    # worker 0 gathers all that a checkpoint holds: the sum is counted evenly
    saved = (FLOAT32 * model.trained + need.optimizer) // workers
    need = replace(need, gathered=gathered, buffers=buffers, copied=0, host=saved)
    if not work.offload:
        return replace(need, weights=weights, gradients=gradients, optimizer=optimizer)
    # of stage 3 what is frozen moves to the host too
    on_card = model.scales if stage == 3 else weights - own
    host = saved + own * _IN_HOST + weights - own - on_card
    return replace(need, weights=on_card, gradients=0, optimizer=0, host=host)
