"""Memory of a worker of DeepSpeed's ZeRO, by the buffers that its optimizers hold (0.19.8)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aift_ray.planning.memory_parts import FLOAT32, Memory, Workload

# copies in fp32 of what a worker trains, of its optimizer: the partition that is stepped, its
# gradient, the gradient that is accumulated, and two moments; with stages 1 and 2 one more
_IN_HOST = 5
# of files: the gradient that is accumulated, and buffers of so many groups of weights
_WITH_FILES, _BUFFERS, _GROUP = 1, 4, 1_000_000_000
# buffers for weights in files, and weights that each takes
_PARAM_BUFFERS, _PARAM_BUFFER = 5, 100_000_000


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
    # as the engine is configured, where the file says nothing
    bucket = round(FLOAT32 * (model.hidden**2 if work.bucket is None else work.bucket))
    if stage == 3:
        inside, outside = model.inside * wide, model.outside * wide
        each = FLOAT32 if work.full else work.held
        frozen = need.weights - model.scales - FLOAT32 * model.trained
        weights = frozen // workers + model.scales + own
        gathered = round(min(inside, work.live * each) + outside)
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
    first, second = work.devices or ("cpu", "cpu" if stage == 3 else "none")
    host = saved
    if first == "cpu":
        host += own * (_IN_HOST + (stage < 3))
    elif first == "nvme":
        host += own * _WITH_FILES + _BUFFERS * min(own, FLOAT32 * _GROUP)
    if first != "none":
        # of stages 1 and 2 the copy that is stepped
        weights -= own if stage < 3 else 0
        gradients = optimizer = 0
    if second != "none" and stage == 3:
        moved = weights - model.scales
        host += moved if second == "cpu" else FLOAT32 * _PARAM_BUFFERS * _PARAM_BUFFER
        weights = model.scales
    return replace(need, weights=weights, gradients=gradients, optimizer=optimizer, host=host)
