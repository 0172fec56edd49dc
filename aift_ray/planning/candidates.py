"""Which ways to spread a model over workers fit into their memory, and which of them is best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aift_ray.config import RunConfig
from aift_ray.planning.memory_estimate import GIB, Memory

METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Candidate:
    """What is trained, and how it is spread.

    Attributes:
        offload: weights, gradients and optimizer state lie in host memory.
        stages: workers that hold a model together, of strategy pipeline.
    """

    method: str
    strategy: str
    offload: bool = False
    stages: int = 0

    @property
    def flags(self) -> str:
        """As a command line has it."""
        more = " --parallel.offload true" if self.offload else ""
        if self.stages:
            more = f" --parallel.pipeline_parallel_size {self.stages}"
        return f"--method {self.method} --strategy {self.strategy}{more}"


Need = Callable[[Candidate], Memory]


@dataclass(frozen=True)
class Room:
    """Bytes that a worker may use on its device and in host memory; None: not known."""

    device: int | None = None
    host: int | None = None

    def holds(self, need: Memory) -> bool:
        """Whether a worker fits, as far as is known."""
        fits = self.device is None or need.total <= self.device
        return fits and (self.host is None or need.host <= self.host)


def candidates(method: str, workers: int, bits: int | None, offloads: bool) -> list[Candidate]:
    """The ways to train by `method`, those first that send the least.

    Args:
        offloads: weights may be in host memory.
    """
    if bits == 8:
        return [Candidate(method, "ddp")]
    shared = ("zero2", "fsdp") if workers > 1 else ()
    offloaded = [Candidate(method, "fsdp", offload=True)] if offloads and not bits else []
    return [Candidate(method, name) for name in ("ddp", *shared)] + offloaded


def choose(among: list[Candidate], need: Need, room: Room) -> tuple[Candidate, list[str]]:
    """The first way that fits into a worker's `room`, and why, in two lines; or the smallest."""
    needs = {way: need(way) for way in among}
    small = min(among, key=lambda way: needs[way].total)
    fits = [way for way in among if room.holds(needs[way])]
    chosen = fits[0] if fits else small
    there = "unknown memory" if room.device is None else f"{room.device / GIB:.1f} GiB"
    verdict = "is the first that fits" if fits else "needs the least, and does not fit"
    first = f"{_name(chosen)} {verdict}: {_size(needs[chosen])} of {there} a worker (computed)"
    others = ", ".join(f"{_name(way)} {_size(needs[way])}" for way in among if way != chosen)
    return chosen, [first, f"the others, computed: {others or 'none for a single worker'}"]


def fitting(
    method: str,
    workers: int,
    need: Need,
    room: Room,
    offloads: bool = True,
    generates: bool = False,
    rounded: bool = False,
) -> list[str]:
    """What fits into a worker's `room`, the method's own ways first, in words.

    Args:
        offloads: as of `candidates`.
        generates: each worker has all weights on its device, to generate with them.
        rounded: weights are in bf16, which method full alone can have, and no pipeline.
    """
    found = []
    # never chosen: it changes what a step holds, and wants micro-batches
    for other in METHODS[METHODS.index(method) :]:
        bits = 4 if other == "qlora" else None
        among = candidates(other, workers, bits, offloads and not generates)
        wide = rounded and other != "full"
        if workers > 1 and not generates and (wide or not rounded):
            among.append(Candidate(other, "pipeline", stages=workers))
        fits = [way for way in among if room.holds(need(way))]
        more = " --training.bf16_stochastic_round false" if wide else ""
        found += [f"{way.flags}{more} ({_size(need(way))})" for way in fits[:1]]
    return found


def remedy(config: RunConfig) -> str:
    """The nearest setting that needs less; batch x accumulation stays equal where it can."""
    training = config.training
    if not training.gradient_checkpointing:
        return "--training.gradient_checkpointing true"
    if config.data.tokens_per_micro_batch:
        return f"--data.tokens_per_micro_batch {config.data.tokens_per_micro_batch // 2}"
    if training.batch_size > 1:
        size = next(
            n for n in range(training.batch_size // 2, 0, -1) if not training.batch_size % n
        )
        steps = training.gradient_accumulation_steps * training.batch_size // size
        return f"--training.batch_size {size} --training.gradient_accumulation_steps {steps}"
    smaller = _smaller_states(config) if config.method == "full" else ""
    if smaller:
        return smaller
    if config.method == "full":
        return "--method lora"
    if config.trained_as == "lora":
        return "--method qlora"
    return f"--data.sequence_length {config.data.sequence_length // 2}"


def fewer_answers(config: RunConfig) -> str:
    """The setting with which half as many answers are generated at once, or as few as can be."""
    if config.objective == "grpo":
        grpo = config.grpo
        fewer = max(grpo.rollout_batch_size // 2, grpo.num_generations)
        return f"--grpo.rollout_batch_size {fewer}"
    training, evaluation = config.training, config.evaluation
    if training.exact_match_rows:
        return f"--training.exact_match_batch_size {max(training.exact_match_batch_size // 2, 1)}"
    return f"--evaluation.batch_size {max(evaluation.batch_size // 2, 1)}"


def _smaller_states(config: RunConfig) -> str:
    """Moments in 8 bits, or weights in bf16, where the strategy can have them; "": it can't."""
    training, parallel = config.training, config.parallel
    if training.optimizer == "adamw":
        return (
            ""
            if parallel.refused_optimizer("adamw_8bit", False)
            else "--training.optimizer adamw_8bit"
        )
    narrow = training.precision in ("auto", "bf16") and training.fp16
    if training.bf16_stochastic_round or not narrow or parallel.refused_optimizer("adamw", True):
        return ""
    return "--training.bf16_stochastic_round true"


def _name(way: Candidate) -> str:
    return f"{way.strategy} with offload" if way.offload else way.strategy


def _size(need: Memory) -> str:
    host = f" and {need.host / GIB:.1f} GiB of host memory" if need.host else ""
    return f"{need.total / GIB:.1f} GiB{host}"
