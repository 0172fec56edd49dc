"""What memory holds beside a worker's tensors. Figures of experience; those of GPUs are not
measured here.

A run says at its end what was allocated, what the allocator reserved and what the device's memory
held: that is to be held against these.
"""

from __future__ import annotations

from dataclasses import replace

from aift_ray.planning.memory_parts import GIB, Memory, Workload

# CUDA's context with the kernels of torch, cuBLAS and its workspaces
CONTEXT = round(0.4 * GIB)
# NCCL's buffers by communicator
COMMUNICATOR = round(0.2 * GIB)
# communicators that a strategy opens: of all workers; of a mesh's rows and columns; of a pipeline
# its neighbours' in both directions besides
COMMUNICATORS = {"tensor": 2, "pipeline": 5, "model_parallel": 0}
# of what stays for the whole run, and of activations that come and go in all sizes: what is lost to
# rounding and to holes, with expandable segments
SLACK_HELD, SLACK_MOVING = 0.02, 0.10
# on a CPU: of the activations of all blocks, kept or not, what glibc's heap holds after they are
# freed, and the most of it; glibc 2.36 with tensors of 1 to 10 MB (docs/benchmarks.md)
HEAP_SHARE, HEAP_MOST = 0.3, round(0.4 * GIB)


def heap_slack(activations: int) -> int:
    """Bytes that the C library holds between pieces of memory that live long.

    Args:
        activations: bytes of those of all blocks.
    """
    return min(round(HEAP_SHARE * activations), HEAP_MOST)


def with_copies(phases: dict[str, Memory], work: Workload) -> dict[str, Memory]:
    """`phases` where a CPU's memory holds the copy of a checkpoint too: while it is written."""
    step = phases["step"]
    if not (work.process and step.copied):
        return phases
    save = phases.get("save", replace(step, gradients=0, activations=0, logits=0, slack=0))
    found = {name: replace(need, copied=0) for name, need in phases.items()}
    if work.saves_beside:
        found["step"] = step
    return found | {"save": save}


def with_overheads(need: Memory, work: Workload) -> Memory:
    """`need` with what only a GPU's memory holds; as it is where workers compute on CPUs."""
    if not work.gpu:
        return need
    alone = work.workers == 1
    # those who divide rows have one of their own
    number = 0 if alone else COMMUNICATORS.get(work.strategy, 1) + (work.row_tokens > 0)
    held = need.weights + need.gradients + need.optimizer
    moving = need.activations + need.logits + need.cache
    return replace(
        need,
        context=CONTEXT,
        communication=number * COMMUNICATOR,
        slack=round(SLACK_HELD * held + SLACK_MOVING * moving),
    )
