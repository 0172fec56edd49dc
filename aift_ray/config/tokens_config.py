"""New tokens of a run: which, and how their embeddings are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aift_ray.config.section import Section, setting
from aift_ray.errors import Problem

if TYPE_CHECKING:
    from aift_ray.config.run_config import RunConfig

# strategies that need to know nothing of the embeddings' rows
_STRATEGIES = ("auto", "ddp", "zero1", "zero2", "zero3", "fsdp")


class TokensConfig(Section):
    """Tokens that a model and its tokenizer get before training; see docs/adapters.md."""

    add: list[str] = setting([], "new tokens, or files ending in .txt with one token a line")
    train: Literal["alone", "whole"] | None = setting(
        None,
        "which rows of the embeddings and the output layer are trained. alone: those of the new "
        "tokens, beside the adapters (PEFT's trainable_token_indices); whole: all. Default: alone "
        "for adapters, whole for method full",
    )

    def contradictions(self, run: RunConfig) -> list[Problem]:
        """Settings of the run that do not go with new tokens."""
        if not self.add:
            what = "acts with tokens.add only"
            return [Problem("tokens.train", what, "leave it out")] if self.train else []
        found = []
        if self.train == "alone" and run.method == "full":
            what = "alone trains rows of the embeddings, and method full trains all weights"
            found.append(Problem("tokens.train", what, "use --method lora, or leave it out"))
        if run.parallel.strategy not in _STRATEGIES:
            what = f"strategy {run.parallel.strategy} lays out the rows that the model has already"
            remedy = f"use --strategy {', '.join(_STRATEGIES[1:-1])} or {_STRATEGIES[-1]}"
            found.append(Problem("tokens.add", what, remedy))
        if run.parallel.by_deepspeed:
            what = "DeepSpeed partitions the rows that the model has already"
            remedy = "leave parallel.backend out"
            found.append(Problem("tokens.add", what, remedy))
        if run.objective in ("reward", "grpo"):
            what = f"new tokens are learned from answers, and objective {run.objective} has none"
            remedy = "add them with objective sft, and train the merged model further"
            found.append(Problem("tokens.add", what, remedy))
        if run.lora.init_from and run.method != "full":
            what = "the adapter of lora.init_from has no place for new tokens"
            found.append(Problem("tokens.add", what, "merge it first and train the merged model"))
        return found
