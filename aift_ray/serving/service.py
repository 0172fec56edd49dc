"""What stands between HTTP and the engine: names, prompts, limits, time-outs, figures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prometheus_client import Metric

from aift_ray.data.examples import Example, Message
from aift_ray.data.prompts.prompt_encoder import PromptEncoder, RowError
from aift_ray.data.prompts.tool_support import takes_tools
from aift_ray.errors import ModelError, Problem
from aift_ray.serving.adapter_record import AdapterRecord, digest, same_name
from aift_ray.serving.answer import USUAL, Answer, Limits
from aift_ray.serving.api_errors import ApiError
from aift_ray.serving.conversation import ChatMessage
from aift_ray.serving.detokenizer import TextMaker
from aift_ray.serving.engines.interface import BASE, Engine, QueueFull, Request
from aift_ray.serving.engines.transformers import lora_manager
from aift_ray.serving.grammar import Grammars
from aift_ray.serving.reasoning_select import thinking_of
from aift_ray.serving.server_metrics import Meter
from aift_ray.serving.template_kwargs import TemplateOptions
from aift_ray.serving.token_bytes import TokenBytes

log = logging.getLogger(__name__)

# characters that are tokenized whatever the context is
_CHECKED = 65_536


class Service:
    """One model with its adapters, as the routes use it.

    Args:
        location: of the base.
        name: of the base, as clients say it.
        replica: what tells it from other replicas of the same server.

    Attributes:
        adapters: names of the adapters that can be asked for.
    """

    def __init__(
        self,
        engine: Engine,
        encoder: PromptEncoder,
        location: str,
        name: str,
        limits: Limits = USUAL,
        replica: str = "",
    ) -> None:
        self.engine, self.encoder, self.location = engine, encoder, location
        self.name, self.limits = name, limits
        self.adapters: list[str] = []
        self._changing = asyncio.Lock()
        self._takes_tools = takes_tools(encoder.tokenizer)
        self.template = TemplateOptions(encoder.tokenizer)
        self.created = int(time.time())
        self.grammars = Grammars(encoder.tokenizer, engine.vocabulary, encoder.stop_ids)
        self.meter = Meter(engine, replica)
        self.token_bytes = TokenBytes(encoder.tokenizer)
        self.thinking = thinking_of(encoder.tokenizer, self.token_bytes)

    def adapter(self, model: str) -> str:
        """Maps the `model` of a request to an adapter; ApiError 404 if it is unknown."""
        name = same_name(model)
        if name == self.name:
            return BASE
        if name in self.adapters:
            return name
        raise ApiError(404, f"there is no model {model!r} here", "model", "model_not_found")

    async def load_adapter(self, name: str, wanted: AdapterRecord) -> list[Problem]:
        """Load an adapter; what keeps it from being served, whatever that is."""
        async with self._changing:
            if name in self.adapters:
                return []
            problems = await asyncio.to_thread(self.check_adapter, name, wanted.folder, wanted)
            if problems:
                return problems
            try:
                await self.engine.load(name, wanted.folder)
            except Exception as error:
                return _problems_of(error, name, wanted.folder)
            self.adapters.append(name)
        return []

    def check_adapter(
        self, name: str, folder: str, wanted: AdapterRecord | None = None
    ) -> list[Problem]:
        """What keeps the adapter of a folder from being served.

        Args:
            wanted: what it held when other replicas loaded it.
        """
        try:
            found = lora_manager.check(name, folder, self.location, self.encoder)
            if not found and wanted and digest(Path(folder)) != wanted.digest:
                what = f"the files of {folder} have changed since the server loaded it"
                found = [Problem(f"adapter {name}", what, "unload it and load it again")]
        except Exception as error:
            return _problems_of(error, name, folder)
        return found

    async def load_recorded(self, wanted: Mapping[str, AdapterRecord]) -> None:
        """Load the adapters that the other replicas have; what can't be loaded is left out."""
        for name, each in wanted.items():
            problems = await self.load_adapter(name, each)
            if problems:
                reasons = "; ".join(f"{problem.where} {problem.what}" for problem in problems)
                log.error("started without the adapter %s: %s", name, reasons)
                self.meter.left_out(name)

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter, and forget it once the last is answered."""
        async with self._changing:
            if name in self.adapters:
                self.adapters.remove(name)
                await self.engine.unload(name)
            self.meter.forgotten(name)

    async def families(self) -> list[Metric]:
        """The figures of this replica."""
        return self.meter.families()

    def chat_prompt(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[dict[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of a conversation; ApiError 400 where the template refuses it.

        Args:
            options: further variables of the template.
        """
        thinks = self.template.thought is not None
        turns = [
            Message(
                "system" if each.role == "developer" else each.role,
                each.text(),
                each.further(),
                each.thought() if thinks else "",
            )
            for each in messages
        ]
        if turns[-1].role == "assistant":
            raise ApiError(400, "the last message has to be the user's or a tool's", "messages")
        if not self._takes_tools:
            message = "this model's chat template knows no tools"
            if tools:
                raise ApiError(400, message, "tools")
            if any(each.role == "tool" or each.tool_calls for each in messages):
                raise ApiError(400, message, "messages")
        self._bound(sum(len(turn.content) for turn in turns), "messages")
        try:
            return self.encoder.chat_ids(turns, tools, options)
        except RowError as error:
            raise ApiError(400, str(error), "messages") from None

    def prompt(self, given: str | list[int]) -> list[int]:
        """Ids of a prompt that may be given as ids, at least one.

        Raises:
            ApiError: 400, the model has no such id.
        """
        if not given:
            tokenizer = self.encoder.tokenizer
            starts = (tokenizer.bos_token_id, tokenizer.eos_token_id)
            return [token for token in starts if token is not None][:1]
        if isinstance(given, str):
            return self.text_prompt(given)
        if any(token >= self.engine.vocabulary for token in given):
            message = f"the model has tokens 0 to {self.engine.vocabulary - 1}"
            raise ApiError(400, message, "prompt")
        return given

    def text_prompt(self, text: str) -> list[int]:
        """Ids of a plain text to go on from."""
        self._bound(len(text), "prompt")
        try:
            return self.encoder.prompt_ids(Example("prompt", "", 0, instruction=text))
        except RowError as error:
            raise ApiError(400, str(error), "prompt") from None

    def instruction_prompt(self, instruction: str, further: str | None) -> list[int]:
        """Ids of an instruction in the form that it has in training."""
        self._bound(len(instruction) + len(further or ""), "instruction")
        row = Example("instruction", "", 0, instruction=instruction, input=further or "")
        try:
            return self.encoder.prompt_ids(row)
        except RowError as error:
            raise ApiError(400, str(error), "instruction") from None

    def _bound(self, characters: int, param: str) -> None:
        """Refuse a text that can't fit the context before it is tokenized, for seconds.

        Raises:
            ApiError: 400.
        """
        if characters <= _CHECKED:
            return
        # normalizing makes one character of a few, as of a letter and its marks
        most = 4 * self.engine.context * self._longest_token
        if characters > most:
            message = (
                f"the prompt has {characters:,} characters; the context of {self.engine.context} "
                f"tokens holds {most:,} at most"
            )
            raise ApiError(400, message, param, "context_length_exceeded")

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.encoder.tokenizer.get_vocab()))

    def room(self, prompt: list[int], asked: int | None, param: str, default: int | None) -> int:
        """Tokens that the answer may have; ApiError 400 where they don't fit the context."""
        context = self.engine.context
        room = context - len(prompt)
        wanted = asked if asked is not None else min(room, default or room)
        if not prompt:
            raise ApiError(400, "the prompt is empty", param)
        if room < 1 or wanted > room:
            message = (
                f"the prompt has {len(prompt)} tokens and the answer may have {max(wanted, 1)}; "
                f"together they have to fit the context of {context}"
            )
            raise ApiError(400, message, param, "context_length_exceeded")
        return wanted

    def start(
        self, request: Request, stops: Sequence[str], number: int = 1, thinks: bool = False
    ) -> list[Answer]:
        """Queue `number` answers to a request; ApiError 429 where there is no room for all.

        Args:
            thinks: whether a thought is told apart from the answer.
        """
        model = request.adapter or self.name
        answers: list[Answer] = []
        for index in range(number):
            seed = request.sampling.seed
            sampling = replace(request.sampling, seed=None if seed is None else seed + index)
            one = replace(request, sampling=sampling)
            try:
                stream = self.engine.submit(one)
            except QueueFull as error:
                for answer in answers:
                    answer.cancel()
                self.meter.refused(model)
                headers = {"Retry-After": "1"}
                raise ApiError(429, str(error), None, "queue_full", headers) from None
            if thinks and self.thinking:
                text = self.thinking.reader(request.prompt, stops)
            else:
                text = TextMaker(self.encoder.tokenizer.backend_tokenizer, stops)
            answers.append(Answer(stream, text, self.limits, self.meter, model, one))
        return answers


def _problems_of(error: Exception, name: str, folder: str) -> list[Problem]:
    """An adapter is a user's files: whatever they make fail is told, and nothing else fails."""
    if isinstance(error, ModelError):
        return error.problems
    log.error("the adapter %s can't be used", name, exc_info=error)
    return [Problem(f"adapter {name}", f"{folder} can't be used: {error}")]
