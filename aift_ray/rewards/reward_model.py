"""Completions scored by a reward model, as `--objective reward` trains it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence

from aift_ray.data.examples import Example
from aift_ray.data.prompts.preference_pairs import fit_answers
from aift_ray.data.prompts.prompt_encoder import PromptEncoder, RowError
from aift_ray.data.readers.turns import read_turns
from aift_ray.data.readers.wrong_row import WrongRow
from aift_ray.errors import ModelError
from aift_ray.models.families.sequence_classifier import RewardHead
from aift_ray.models.hub import context, load_config, load_tokenizer, resolve, stop_ids
from aift_ray.models.load import load_model
from aift_ray.rewards.completion_text import Completion
from aift_ray.rewards.spec import RewardSpec
from aift_ray.rewards.user_function import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADAPTER = "adapter_config.json"


class RewardModel:
    """A decoder with one output a text, or an adapter of one.

    Args:
        spec: its target is the folder.

    Raises:
        Refused: the folder can't be used.
    """

    def __init__(self, spec: RewardSpec) -> None:
        folder = Path(spec.target)
        self._batch_size = int(spec.options.get("batch_size", 1))
        self._device = torch.device(spec.options.get("device", "cpu"))
        adapter = folder / _ADAPTER
        try:
            base = str(folder)
            if adapter.is_file():
                base = json.loads(adapter.read_text("utf-8"))["base_model_name_or_path"]
            location = resolve(base)
            self._tokenizer = load_tokenizer(str(folder))
            pad_id = _pad_id(self._tokenizer)
            dtype = torch.float32 if self._device.type == "cpu" else None
            model: Any = load_model(location, dtype, None, scored=RewardHead(0, pad_id))
            if adapter.is_file():
                model = PeftModel.from_pretrained(model, str(folder))
            self._limit = context(load_config(location, scorer=True))
            self._encoder = PromptEncoder(self._tokenizer, extra_stop_ids=stop_ids(location))
            self._model = model.eval().to(self._device)
        except ModelError as error:
            what = "; ".join(problem.what for problem in error.problems)
            raise Refused(what, remedy=error.problems[0].remedy) from error
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        self._pad_id = pad_id

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], further: Mapping[str, Any]
    ) -> list[float | None]:
        """The scores of some completions.

        Raises:
            Refused: a row can't be encoded as those of the training were.
        """
        rows = range(len(completions))
        tools = further.get("tools") or [None] * len(completions)
        ids = [self._ids(row, prompts[row], completions[row], tools[row]) for row in rows]
        found: list[float | None] = []
        for start in range(0, len(ids), self._batch_size):
            found += self._scores(ids[start : start + self._batch_size])
        return found

    def _scores(self, ids: list[list[int]]) -> list[float]:
        rows = [torch.tensor(each) for each in ids]
        padded = pad_sequence(rows, batch_first=True, padding_value=self._pad_id)
        mask = pad_sequence([torch.ones_like(each) for each in rows], batch_first=True)
        given = {"input_ids": padded.to(self._device), "attention_mask": mask.to(self._device)}
        scores: list[float] = self._model(**given).logits[:, 0].float().tolist()
        return scores

    def _ids(
        self, row: int, prompt: Completion, completion: Completion, tools: object
    ) -> list[int]:
        try:
            encoded = self._encoder.encode(_example(prompt, completion, tools))
        except (RowError, WrongRow) as error:
            raise Refused(f"it can't be encoded: {error}", row) from None
        if not any(encoded.supervised):
            raise Refused("the completion has no token", row)
        if len(encoded) <= (self._limit or len(encoded)):
            return list(encoded.ids)
        # as in training, the middle of a long prompt is left out
        fitted = fit_answers([encoded], self._limit or 0)
        if fitted is None:
            what = f"the completion has more tokens than the model takes, {self._limit}"
            raise Refused(what, row)
        return list(fitted[0].ids)


def _example(prompt: Completion, completion: Completion, tools: object) -> Example:
    if isinstance(prompt, str):
        said = completion if isinstance(completion, str) else str(completion[-1]["content"])
        return Example("prompt", "", 0, instruction=prompt, output=said)
    said_turns = completion
    if isinstance(completion, str):
        said_turns = [{"role": "assistant", "content": completion}]
    turns = read_turns("messages", [*prompt, *said_turns])
    shown = json.dumps(tools, ensure_ascii=False) if tools else ""
    return Example("messages", "", 0, messages=turns, tools=shown)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    found = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if found is None else found)
