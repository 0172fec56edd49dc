"""What a worker's memory is made of, and what it depends on."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
FLOAT32 = 4
# of 4 bits, 64 weights share a scale of 8 bits, 256 scales one in fp32
SCALE_BITS = 8 / 64 + 32 / (64 * 256)
# bits of a quantized weight with its scales
_HELD_BITS = {4: 4 + SCALE_BITS, 8: 8.0}
# where matrices are split, the scales of 4 bits are in fp32
_SPLIT_BITS = 4 + 32 / 64
# bytes of two moments of 8 bits: 256 weights share a scale in fp32 for each
_MOMENTS_8BIT = 2 + 2 * FLOAT32 / 256
# what is in host memory, and what only GPUs have
_IN_HOST = ("host", "copied")


def moments(trained: int, optimizer: str, full: bool = True) -> tuple[int, int]:
    """Bytes of AdamW's two moments of `trained` weights on the device, and in host memory.

    Paged moments are counted in the host, where they lie when the device is full. Matrices under
    100,000 weights are never paged, so those of adapters are counted on the device.

    Args:
        optimizer: as the configuration names it.
        full: whether whole matrices are trained.
    """
    size = round(trained * (_MOMENTS_8BIT if optimizer.endswith("8bit") else 2 * FLOAT32))
    return (0, size) if optimizer.startswith("paged") and full else (size, 0)


def logit_bytes(width: int) -> int:
    """Bytes of a position's logits by token of the vocabulary: they and their gradient in fp32,
    and both in a narrower `width` of the computation."""
    return 2 * (FLOAT32 + (width if width < FLOAT32 else 0))


def held_bytes(weights: int, width: int, bits: int | None) -> int:
    """Bytes of weights that are not trained, `width` each, or quantized to `bits` bits."""
    return round(weights * _HELD_BITS[bits] / 8) if bits else weights * width


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker by part, computed for training with AdamW.

    Attributes:
        weights: with the scales of those that are quantized.
        gathered: weights of other workers, while they are used.
        buffers: what FSDP gathers weights into, and reduces gradients from, before they are copied
            to and from where they belong.
        cache: keys and values of answers, in an evaluation.
        engine: weights of an engine that generates beside the model that is trained.
        context: of CUDA and its libraries.
        communication: NCCL's buffers.
        slack: what the caching allocator, or a CPU's C library, holds and can't use.
        process: libraries and tokenizer, where the device is the host itself.
        host: held in host memory instead of the device.
        copied: in host memory, the copy of a checkpoint that is written while training goes on.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int = 0
    buffers: int = 0
    cache: int = 0
    engine: int = 0
    context: int = 0
    communication: int = 0
    slack: int = 0
    process: int = 0
    host: int = 0
    copied: int = 0

    @property
    def total(self) -> int:
        """Sum of the parts on the device; where that is a CPU, of all."""
        apart = () if self.process else _IN_HOST
        return int(sum(size for name, size in vars(self).items() if name not in apart))

    @property
    def tensors(self) -> int:
        """The same without what torch's counter of allocated memory does not see."""
        return self.total - self.context - self.communication - self.slack

    @property
    def parts(self) -> str:
        """The parts in words."""
        sizes = {name: size for name, size in vars(self).items() if size or name == "weights"}
        return ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in sizes.items())


@dataclass(frozen=True)
class Workload:
    """What a worker does, as far as its memory depends on it.

    Attributes:
        method: full, or lora for what only trains adapters.
        rank: of LoRA; unused for method full.
        tokens: of the longest micro-batch.
        frozen_bytes: bytes of a weight that is not trained (2 in bf16, 4 in fp32); activations
            have the same width.
        checkpointing: whether activations are recomputed block by block.
        base_bits: bits of a weight of the blocks' linear layers, 4 or 8; None: not quantized.
        strategy, workers: what is shared out over how many.
        whole: weights trained as a whole beside the adapters, a copy of those of the base.
        model_parallel_size: stages of a pipeline, devices that the layers are placed on, or workers
            that split each matrix.
        offload: shares of weights, gradients and optimizer state lie in host memory.
        optimizer: as the configuration names it.
        dropout: whether the inputs of adapters are dropped out.
        gpu: whether it computes on a GPU, whose context, communication and allocator take some.
        copies: whether a checkpoint is copied to host memory before it is written.
        saves_beside: whether steps are computed while one is written; on a GPU that is no matter.
        answer_tokens: of prompts and answers that are generated at once.
        asked_tokens: of the prompts among them, which are read in one pass.
        answers: number of these answers, where they are greedy.
        completions: generated at once and sampled, where generated completions are trained.
        engine: bytes of weights of an engine that does so beside the model; 0: the model does.
        process: bytes that a worker on a CPU holds before it has a model; 0 on a GPU.
        targets: supervised tokens of a micro-batch at most, where that is known.
        forwards: forward passes over each row beside those of its step; they take time alone.
        row_tokens: of the rows of the longest micro-batch, where workers divide them, and `tokens`
            are those of one; 0: rows are whole.
        reference: the model as it was is held beside the one that is trained, spread alike.
        by_deepspeed: whether DeepSpeed shares the model out, and not FSDP.
        devices: where its file keeps the optimizer state and the weights: none, cpu or nvme; None:
            where `offload` does.
        bucket: gradients that it reduces at once (reduce_bucket_size); None: hidden size squared.
        live: weights that its stage 3 keeps gathered at most (stage3_max_live_parameters).
        rounded: trained weights and gradients are in bf16, rounded stochastically.
        selective: of what is recomputed, outputs of attention and of every other product are kept.
        activations_in_host: what is recomputed from is kept in host memory.
    """

    method: str
    rank: int
    tokens: int
    frozen_bytes: int
    checkpointing: bool
    base_bits: int | None = None
    strategy: str = "ddp"
    workers: int = 1
    whole: int = 0
    model_parallel_size: int = 1
    offload: bool = False
    optimizer: str = "adamw"
    dropout: bool = False
    gpu: bool = False
    copies: bool = False
    saves_beside: bool = True
    answer_tokens: int = 0
    asked_tokens: int = 0
    answers: int = 0
    completions: int = 0
    engine: int = 0
    process: int = 0
    targets: int | None = None
    forwards: int = 0
    row_tokens: int = 0
    reference: bool = False
    by_deepspeed: bool = False
    devices: tuple[str, str] | None = None
    bucket: float | None = None
    live: int = 1_000_000_000
    rounded: bool = False
    selective: bool = False
    activations_in_host: bool = False

    @property
    def trained_bytes(self) -> int:
        """Bytes of a weight that is trained, and of its gradient."""
        return 2 if self.rounded else FLOAT32

    @property
    def narrowed_bytes(self) -> int:
        """Bytes of the copy of a trained weight in the width of the computation."""
        return self.frozen_bytes if self.frozen_bytes < self.trained_bytes else 0

    def inputs_in_host(self, hidden: int, blocks: int) -> int:
        """Bytes of the inputs of blocks, (tokens, hidden), that are kept in host memory."""
        if not (self.activations_in_host and self.checkpointing):
            return 0
        return blocks * self.tokens * self.stream_bytes * hidden

    def copied_of(self, size: int) -> int:
        """Bytes of the copy of a checkpoint of `size`: worker 0's, for those that hold the same."""
        # each worker on a CPU is held against what it needs itself
        holders = 1 if self.process else self.workers // max(self.model_parallel_size, 1) or 1
        return self.copies * (size // holders)

    @property
    def full(self) -> bool:
        """Whether the base is trained."""
        return self.method == "full"

    @property
    def split(self) -> int:
        """Workers that have a part of each matrix."""
        return self.model_parallel_size if self.strategy == "tensor" else 1

    @property
    def shares(self) -> int:
        """Workers among whom weights, gradients or moments are shared out."""
        return self.workers if self.strategy in ("fsdp", "zero1", "zero2", "zero3") else 1

    @property
    def gathers(self) -> bool:
        """Whether FSDP gathers weights before they are used."""
        return self.shares > 1 or self.offload

    @property
    def stream_bytes(self) -> int:
        """Bytes of a number of the residual stream.

        Embeddings that are trained are looked up in fp32, and autocast leaves what is added to
        them so; FSDP gathers them in the width of the computation.
        """
        narrow = self.gathers and not self.by_deepspeed
        wide = self.full and not narrow and not self.rounded
        return FLOAT32 if wide else self.frozen_bytes

    @property
    def held(self) -> float:
        """Bytes of a weight of the blocks' linear layers while it is not in use."""
        if self.base_bits == 4 and self.split > 1:
            return _SPLIT_BITS / 8
        return _HELD_BITS[self.base_bits] / 8 if self.base_bits else self.frozen_bytes

    @property
    def expert_held(self) -> float:
        """The same of a weight of the experts, which bitsandbytes has no 8 bits for."""
        return _HELD_BITS[4] / 8 if self.base_bits == 4 else self.frozen_bytes
