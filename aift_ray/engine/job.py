"""What a worker is told: plain data that travels to another machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aift_ray.config import RunConfig
from aift_ray.engine.tokenizer_files import TokenizerFiles
from aift_ray.models import hub
from aift_ray.models.added_tokens import AddedTokens
from aift_ray.models.families.family_support import Support
from aift_ray.planning.flops import Flops
from aift_ray.planning.memory_estimate import Memory
from aift_ray.tasks.task_files import LoadedTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """One run, as its workers see it.

    Attributes:
        config: the resolved configuration.
        location: folder or Hub id of the model.
        output: the run's folder, seen by rank 0 and by whoever started the run.
        cache: the token cache, seen by all workers.
        stop_ids: tokens that end an answer.
        chat_template: the template that made the rows; saved with the model.
        global_batch: units a step.
        started: time.time() of the command's start.
        support: how the model's family is computed.
        memory: computed need of a worker; None for an architecture of another kind.
        answered: rows that an evaluation answers, and tokens of the longest of them.
        resume: checkpoint folder to start from, if no newer one of this run is there.
        changed: settings that differ from the checkpoint's, a line each.
        why: lines that say why the strategy was chosen; none where the user chose.
        flops: operations that a step needs; None for an architecture of another kind.
        pad_id: token of padding of a model that scores texts.
        reference: folder or Hub id of another model that answers are held against.
        events: write down for callbacks what happens.
        added: tokens that the model does not have as it was published; None: none.
        tasks: that the model is scored on.
        layout: {piece of the model: device or stage that holds it}; None: the strategy has none.
    """

    config: RunConfig
    location: str
    output: Path
    cache: Path
    stop_ids: list[int]
    chat_template: str | None
    global_batch: int
    started: float
    support: Support
    memory: Memory | None = None
    answered: tuple[int, int] = (0, 0)
    resume: Path | None = None
    changed: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    layout: dict[str, int] | None = None
    flops: Flops | None = None
    events: bool = False
    reference: str | None = None
    pad_id: int = 0
    added: AddedTokens | None = None
    tasks: Sequence[LoadedTask] = ()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model, with the tokens and the chat template of the run."""
        tokenizer = hub.load_tokenizer(self.location)
        tokenizer.chat_template = self.chat_template
        if self.added:
            self.added.extend(tokenizer)
        return tokenizer

    @property
    def tokenizer_files(self) -> TokenizerFiles:
        """The tokenizer for saved models, which worker 0 writes before it loads the weights."""
        return TokenizerFiles(self.output / ".tokenizer")

    @property
    def padded(self) -> bool:
        """Whether documents are padded side by side, instead of packed end to end in a row."""
        return self.support.pads(self.config.data.packing)

    @property
    def checkpoints(self) -> Path:
        """Where this run's checkpoints lie."""
        return self.output / "checkpoints"
