"""The engine on vLLM, which is imported when one is started."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aift_ray.errors import AiftError, ModelError, Problem
from aift_ray.serving.engines.adapter_store import Kept, KeptAdapters
from aift_ray.serving.engines.interface import (
    EngineError,
    Figures,
    QueueFull,
    Request,
    SamplingParams,
    Token,
)
from aift_ray.serving.engines.vllm.scoring_turns import Turns
from aift_ray.serving.engines.vllm.vllm_requests import parameters, scored, tokens
from aift_ray.serving.engines.vllm.vllm_statistics import Statistics

if TYPE_CHECKING:
    from vllm import AsyncLLMEngine
    from vllm.outputs import RequestOutput

log = logging.getLogger(__name__)

# OpenAI's limit
_TOP_LOGPROBS = 20
# what vLLM's processes get to end by themselves
_GRACE_S = 5.0
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # a replica has its CPUs from Ray, and its number of threads with them
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def arguments(**given: object) -> dict[str, Any]:
    """What `start` hands to vLLM: what the caller gives, and what every server has."""
    return {
        "load_format": "safetensors",
        "trust_remote_code": False,
        "enable_prefix_caching": True,
        "structured_outputs_config": {"backend": "guidance"},
        "max_logprobs": _TOP_LOGPROBS,
        # what the model's folder recommends is not what a request asks for
        "generation_config": "vllm",
        "disable_log_stats": True,
        "seed": 0,
    } | given


async def start(location: str, slots: int, max_queue: int, given: dict[str, Any]) -> VllmEngine:
    """Load a model.

    Args:
        location: of the base.
        given: AsyncEngineArgs by name.

    Raises:
        AiftError: vLLM can't serve it.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import AsyncEngineArgs, AsyncLLMEngine

    statistics = Statistics()
    try:
        options = AsyncEngineArgs(
            model=location, tokenizer=location, max_num_seqs=slots, **arguments(**given)
        )
        llm = AsyncLLMEngine.from_engine_args(options, stat_loggers=[statistics.logger()])
    except Exception as error:
        raise AiftError(f"vLLM can't serve {location}: {error}") from error
    engine = VllmEngine(llm, location, slots, max_queue, statistics)
    await _warm_up(engine)
    return engine


async def _warm_up(engine: VllmEngine) -> None:
    """Have vLLM compile what it compiles at the first request of a kind, which takes seconds."""
    for sampling in (
        SamplingParams(temperature=0),
        SamplingParams(top_p=0.9, top_k=5, presence_penalty=1, seed=0),
    ):
        request = Request([engine._eos], 2, frozenset(), sampling, top_logprobs=1)
        async for _ in engine.submit(request):
            pass


@dataclass(eq=False)
class _Stream:
    """The tokens of one request.

    Attributes:
        alone: it must be alone until the probabilities of its prompt are there.
        begun: gives the queue in which vLLM puts what it has made.
        entered: it has its turn, and must give it back.
        over: nothing more is told.
        answered: vLLM has ended it by itself.
        left: vLLM was told to end it.
    """

    engine: VllmEngine
    request: Request
    alone: bool
    begun: asyncio.Task[Any] = field(init=False)
    entered: bool = False
    over: bool = False
    answered: bool = False
    left: bool = False

    async def __aiter__(self) -> AsyncIterator[Token]:
        try:
            made = await self.begun
            while not self.over:
                output = made.get_nowait() or await made.get()
                if self.over:
                    return
                for token in self._tokens(output):
                    self.over = self.answered = token.finish is not None
                    yield token
        except asyncio.CancelledError:
            raise
        except Exception as error:
            raise EngineError(f"the engine failed: {error}") from error
        finally:
            self.over = True
            self.engine._leave(self)

    def _tokens(self, output: RequestOutput) -> list[Token]:
        found = tokens(output.outputs[0], self.request.top_logprobs or 0)
        if self.request.scores and output.prompt_logprobs and found:
            before = scored(self.request, output.prompt_logprobs)
            found[0] = replace(found[0], prompt=before)
        if self.alone and found:
            self.alone = False
            self.engine._turns.share()
        return found

    def cancel(self) -> None:
        """Stop working on it and free its slot."""
        self.over = True
        self.engine._leave(self)


class VllmEngine:
    """vLLM's AsyncLLM: the scheduler and the model are in a process of their own.

    Args:
        llm: an AsyncLLM that nobody else uses.
        location: of the base.
        slots: requests that are worked on at a time.
        max_queue: requests that may wait for a slot.
    """

    # vLLM is given schemas, and holds all of an answer to them
    holds_thoughts = False

    def __init__(
        self,
        llm: AsyncLLMEngine,
        location: str,
        slots: int,
        max_queue: int,
        statistics: Statistics,
    ) -> None:
        config = llm.vllm_config
        self.vocabulary: int = config.model_config.get_vocab_size()
        self.context: int = config.model_config.max_model_len
        self._llm, self._statistics = llm, statistics
        self._slots, self._max_queue = slots, max_queue
        self._eos: int = llm.get_tokenizer().eos_token_id
        self._cache_tokens = (config.cache_config.num_gpu_blocks or 0) * (
            config.cache_config.block_size
        )
        self._adapters = KeptAdapters(location)
        self._has_adapters = config.lora_config is not None
        self._turns = Turns()
        self._streams: set[_Stream] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._keys = itertools.count()
        self._closed = False

    def submit(self, request: Request) -> _Stream:
        """Queue a request.

        Raises:
            QueueFull: too many wait.
        """
        if len(self._streams) >= self._slots + self._max_queue:
            raise QueueFull(f"{self._max_queue} requests wait already")
        stream = _Stream(self, request, alone=request.scores and self._has_adapters)
        stream.begun = asyncio.get_running_loop().create_task(self._begin(stream))
        self._streams.add(stream)
        return stream

    async def load(self, name: str, folder: str) -> None:
        """Make the adapter of a folder usable under a name; ModelError where it can't be."""
        adapter = await asyncio.to_thread(self._adapters.keep, name, folder)
        try:
            await self._llm.add_lora(_asked(adapter))
        except Exception as error:
            self._adapters.drop(name)
            raise ModelError([Problem(f"adapter {name}", f"vLLM refuses it: {error}")]) from error

    async def unload(self, name: str) -> None:
        """Forget an adapter, once no request uses it any more."""
        while any(stream.request.adapter == name for stream in self._streams):
            await asyncio.sleep(0.05)
        number = self._adapters.drop(name)
        if number is not None:
            await self._llm.remove_lora(number)

    def figures(self) -> Figures:
        """The present state."""
        known = len(self._streams)
        running = min(known, self._slots)
        # vLLM tells no figures while nothing runs
        cached = round(self._statistics.usage * self._cache_tokens) if known else 0
        reused = self._statistics.reused
        return Figures(running, known - running, cached, self._cache_tokens, reused)

    def alive(self) -> bool:
        """Whether it can answer."""
        return not self._closed and not self._llm.errored

    def close(self) -> None:
        """Stop; requests that are under way fail."""
        if not self._closed:
            self._closed = True
            self._llm.output_processor.propagate_error(RuntimeError("it was stopped"))
            self._llm.shutdown(timeout=_GRACE_S)
            self._adapters.close()

    async def _begin(self, stream: _Stream) -> Any:
        await self._turns.enter(stream.alone)
        stream.entered = True
        request = stream.request
        if self._closed:
            raise RuntimeError("it is stopped")
        from vllm.inputs import tokens_input

        adapter = _asked(self._adapters[request.adapter]) if request.adapter else None
        return await self._llm.add_request(
            str(next(self._keys)),
            tokens_input(request.prompt),
            parameters(request, self.vocabulary, self._eos),
            lora_request=adapter,
        )

    def _leave(self, stream: _Stream) -> None:
        """Forget a request; what vLLM still does for it ends at its next step."""
        if stream.answered:
            self._forget(stream)
        if stream.left or stream.answered:
            return
        stream.left = True
        task = asyncio.get_running_loop().create_task(self._abort(stream))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _abort(self, stream: _Stream) -> None:
        try:
            made = await stream.begun
            if not self._closed:
                await self._llm.abort(made.request_id, internal=True)
        except Exception as error:
            log.debug("a request could not be aborted: %s", error)
        finally:
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        self._streams.discard(stream)
        if stream.entered:
            stream.entered = False
            self._turns.leave()


def _asked(adapter: Kept) -> Any:
    from vllm.lora.request import LoRARequest

    # vLLM's prefix cache goes by name and path, its weights by number: all three by the content
    return LoRARequest(adapter.digest, adapter.number, str(adapter.folder))
