"""The engine on transformers: a thread of its own that steps over a batch of requests."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from transformers import PreTrainedModel

from aift_ray.models.hub import batched_context
from aift_ray.serving.engines.interface import Figures, QueueFull, Request
from aift_ray.serving.engines.transformers.admission import read_together
from aift_ray.serving.engines.transformers.kv_cache import AHEAD
from aift_ray.serving.engines.transformers.kv_memory import budget, is_out_of_memory
from aift_ray.serving.engines.transformers.lora_manager import Adapters
from aift_ray.serving.engines.transformers.prefix_cache import Prefixes
from aift_ray.serving.engines.transformers.prompt_logprobs import score
from aift_ray.serving.engines.transformers.sampler import Chooser
from aift_ray.serving.engines.transformers.scheduler import Row, Scheduler, Told
from aift_ray.serving.engines.transformers.token_stream import TokenStream
from aift_ray.utils import malloc_trim

log = logging.getLogger(__name__)

# seconds of work after which freed memory is given back
TRIM = 60.0


class TransformersEngine:
    """Continuous batching over `slots` rows.

    Args:
        model: in evaluation mode, on its device.
        slots: requests that are worked on at a time.
        max_queue: requests that may wait for a slot.
        prefix_memory: bytes of the prefix cache: keys and values of earlier requests.
        kv_memory: bytes for those of the requests that are worked on; None: what the device has.

    Attributes:
        budget: tokens whose keys and values may be held at once.

    Raises:
        ConfigError: that memory holds no request.
    """

    holds_thoughts = True

    def __init__(
        self,
        model: PreTrainedModel,
        slots: int,
        max_queue: int,
        prefix_memory: int = 0,
        kv_memory: int | None = None,
    ) -> None:
        config: Any = model.config.get_text_config(decoder=True)
        self.vocabulary: int = config.vocab_size
        self.budget = self._limit = budget(model, kv_memory, prefix_memory)
        # a request larger than that is refused before it is queued
        context = batched_context(model.config) or 2**31
        self.context: int = min(context, self.budget - AHEAD - 1)
        self._slots, self._max_queue = slots, max_queue
        self._model, self._device = model, model.device
        self._adapters = Adapters(model)
        self._prefixes = Prefixes(prefix_memory)
        self._batch = Scheduler(model, self._adapters, self._prefixes)
        self._waiting: deque[TokenStream] = deque()
        self._working: dict[int, TokenStream] = {}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._keys = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> TokenStream:
        """Queue a request.

        Raises:
            QueueFull: too many wait.
        """
        with self._changed:
            free = self._slots - len(self._working)
            if len(self._waiting) >= self._max_queue + max(0, free):
                raise QueueFull(f"{self._max_queue} requests wait already")
            stream = TokenStream(
                next(self._keys), request, self._cancel, asyncio.get_running_loop()
            )
            if not self.alive():
                stream.put(RuntimeError("it is stopped"))
                return stream
            self._waiting.append(stream)
            self._changed.notify()
        return stream

    async def load(self, name: str, folder: str) -> None:
        """Make the adapter of a folder usable under a name; ModelError where it can't be."""
        await self._between_steps(lambda: self._adapters.load(name, folder))

    async def unload(self, name: str) -> None:
        """Forget an adapter, once no request uses it any more."""
        while any(stream.request.adapter == name for stream in self._streams()):
            await asyncio.sleep(0.05)
        await self._between_steps(lambda: self._adapters.unload(name))

    def figures(self) -> Figures:
        """The present state."""
        return Figures(
            len(self._working),
            len(self._waiting),
            self._batch.cached_tokens,
            reused_tokens=self._prefixes.reused_tokens,
        )

    def alive(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """Stop; requests that are under way fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(60)

    def _streams(self) -> list[TokenStream]:
        with self._changed:
            return [*self._waiting, *self._working.values()]

    async def _between_steps(self, call: Callable[[], Any]) -> None:
        done: Future[Any] = Future()
        with self._changed:
            self._calls.append((call, done))
            self._changed.notify()
        await asyncio.wrap_future(done)

    def _cancel(self, key: int) -> None:
        with self._changed:
            self._waiting = deque(stream for stream in self._waiting if stream.key != key)
            if key not in self._working:
                return
        done: Future[Any] = Future()
        with self._changed:
            self._calls.append((lambda: self._drop(key), done))
            self._changed.notify()

    def _drop(self, key: int) -> None:
        self._batch.drop(key)
        self._working.pop(key, None)

    def _run(self) -> None:
        trimmed = time.monotonic()
        with torch.inference_mode():
            while self._wait():
                try:
                    self._turn()
                except Exception as error:
                    # the rows share one cache, so none of them can be trusted any more
                    if not (is_out_of_memory(error) and self._start_again()):
                        log.exception("a step failed")
                        self._fail(error)
                if time.monotonic() - trimmed >= TRIM:
                    malloc_trim.trim()
                    self._limit = min(self.budget, self._limit * 5 // 4)
                    trimmed = time.monotonic()
        self._fail(RuntimeError("it was stopped"))

    def _wait(self) -> bool:
        with self._changed:
            while not (self._closed or self._calls or self._waiting or self._working):
                self._changed.wait()
            return not self._closed

    def _turn(self) -> None:
        # of a burst the first prompt is read alone: the others need not wait for a step as well
        for _ in range(2):
            self._call()
            self._admit()
            if self._batch.reading:
                self._tell(self._batch.read())
            if self._batch.reading:
                break
        self._make_room()
        if self._batch.rows:
            self._tell(self._batch.step())

    def _call(self) -> None:
        while self._calls:
            call, done = self._calls.popleft()
            try:
                done.set_result(call())
            except Exception as error:
                done.set_exception(error)

    def _admit(self) -> None:
        if self._batch.reading:
            return
        rows: list[Row] = []
        for stream in self._next_ones():
            try:
                if stream.request.scores and not stream.row:
                    stream.scored = score(self._model, self._adapters, stream.request)
                if not stream.row:
                    chooser = Chooser(stream.request, self._device)
                    stream.row = Row(stream.key, stream.request, chooser)
                rows.append(stream.row)
            except Exception as error:
                del self._working[stream.key]
                stream.put(error)
        if rows:
            self._batch.begin(rows)

    def _next_ones(self) -> list[TokenStream]:
        """Those whose turn it is and whose prompts can be read together."""
        with self._changed:
            # a client that has left comes before those that ask after it
            free = 0 if self._calls else self._slots - len(self._working)
            first = [*itertools.islice(self._waiting, free)]
            found = read_together(first, self._batch, self._limit, bool(self._working))
            for stream in found:
                self._waiting.remove(stream)
                self._working[stream.key] = stream
        return found

    def _make_room(self) -> None:
        """Have the newest requests wait where all together would not fit the memory any more."""
        while len(self._working) > 1 and self._batch.tokens_with() > self._limit:
            newest = max(self._working)
            self._batch.drop(newest)
            self._wait_again([newest])

    def _wait_again(self, keys: list[int]) -> None:
        """Put requests before all others that wait; they are read again, and go on."""
        with self._changed:
            for key in sorted(keys, reverse=True):
                stream = self._working.pop(key)
                if stream.row:
                    stream.row.length = 0
                self._waiting.appendleft(stream)

    def _start_again(self) -> bool:
        """After an error of memory: drop all keys and values, and hold fewer from now on.

        Whether it was of use: not to a single request.
        """
        if len(self._working) <= 1:
            # whatever it was that did not fit is gone with it
            self._limit = self.budget
            return False
        used = min(self._limit, self._batch.tokens_with())
        self._limit = used * 4 // 5
        log.warning("memory is full: %d tokens are too many, %d are tried", used, self._limit)
        self._prefixes.clear()
        self._batch = Scheduler(self._model, self._adapters, self._prefixes)
        self._wait_again([*self._working])
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _tell(self, told: list[Told]) -> None:
        try:
            # what is kept of an answer is there when its client is told its end
            self._batch.settle()
        finally:
            for row, each in told:
                stream = self._working.get(row.key)
                if isinstance(each, Exception) or each.finish:
                    self._working.pop(row.key, None)
                if stream:
                    stream.put(each)

    def _fail(self, error: Exception) -> None:
        self._prefixes.clear()
        self._batch = Scheduler(self._model, self._adapters, self._prefixes)
        with self._changed:
            failed = [*self._working.values()]
            self._working.clear()
            if self._closed:
                failed += self._waiting
                self._waiting.clear()
        for stream in failed:
            stream.put(error)
