"""Examples to token rows of the right length, counting what becomes of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from aift_ray.config import DataConfig
from aift_ray.config.preference_config import Answers
from aift_ray.data import memory_rows
from aift_ray.data.decontamination import Screen
from aift_ray.data.duplicates import Digests, digests
from aift_ray.data.examples import Example, Fault
from aift_ray.data.prompts.preference_pairs import fit_answers, pair_steps, with_mismatched
from aift_ray.data.prompts.prompt_encoder import PromptEncoder, RowError
from aift_ray.data.readers.reader_options import reading_of
from aift_ray.data.readers.sources import read_examples
from aift_ray.data.row_groups import Documents
from aift_ray.data.token_types import Encoded, EncodedRow
from aift_ray.data.truncation import fit, split_text

_SHOWN_NOTES = 20
# different keys of each kind that are counted
_COUNTED_KEYS = 100
# rows that one thread encodes before others do, and rows that a thread gets at once
FIRST, _BATCH = 128, 64


@dataclass
class Counts:
    """What became of the rows of a set; tokens are counted as they are trained.

    Attributes:
        split_rows: conversations that became one row an answer.
        not_shown: for each key that changes what is trained, how many rows hold it without
            effect, or has a call that its tools do not offer.
        ignored: for each other key that nothing reads, how many rows hold it.
    """

    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated_rows: int = 0
    dropped_rows: int = 0
    skipped_rows: int = 0
    split_documents: int = 0
    split_rows: int = 0
    not_shown: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    # what was found out about the files, and not given
    remarks: list[str] = field(default_factory=list)


# an example with its tokens, or with what is wrong with it; a fault of the file with nothing
Encodings = Iterator[tuple[Example | Fault, EncodedRow | RowError | None]]
Encode = Callable[[PromptEncoder, Iterator[Example | Fault]], Encodings]


def encode_here(encoder: PromptEncoder, items: Iterable[Example | Fault]) -> Encodings:
    """Tokenize examples in this process and thread, some at a time."""
    items = iter(items)
    while batch := list(islice(items, _BATCH)):
        rows = [
            pair_steps(encoder, item) if item.compared else encoder.steps(item)
            for item in batch
            if isinstance(item, Example)
        ]
        found = iter(encoder.finish(rows))
        for item in batch:
            yield item, next(found) if isinstance(item, Example) else None


def encode_in_threads(encoder: PromptEncoder, items: Iterator[Example | Fault]) -> Encodings:
    """As `encode_here`, on all CPUs that this process may use, in order and in constant memory.

    A tokenizer runs without Python's lock, and takes most of the time. The first rows are encoded
    by one thread, as `encoder` keeps of them what the user is to be warned of.
    """
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    first = islice(items, FIRST if threads and threads > 1 else None)
    yield from encode_here(encoder, first)

    def encoded(batch: list[Example | Fault]) -> list[Any]:
        return list(encode_here(encoder, batch))

    waiting = 2 * (threads or 1)
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Any] = deque()
        while batch := list(islice(items, _BATCH)):
            under_way.append(pool.submit(encoded, batch))
            if len(under_way) == waiting:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()


class Encoding:
    """Examples to token rows, counting what happens to them.

    Where answers are compared, each example becomes two token rows, one after the other.
    """

    def __init__(
        self,
        config: DataConfig,
        encode: Callable[[Iterator[Example | Fault]], Encodings],
        sequence_length: int,
        note: Callable[[Example, Digests], None],
        answers: Answers = "one",
        documents: Documents | None = None,
        screen: Screen | None = None,
    ) -> None:
        self.documents, self.screen = documents, screen
        self.config, self.encode, self.length, self.note = config, encode, sequence_length, note
        self.counts, self.faults = Counts(), list[Fault]()
        self.reading = reading_of(config, answers, self.counts.remarks.append)

    def rows(self, files: Sequence[Path]) -> Iterator[tuple[Encoded, Example]]:
        """The token rows of files, each with its example."""
        rows = self._rows(files)
        return with_mismatched(rows, self.length) if self.reading.answers == "label" else rows

    def _rows(self, files: Sequence[Path]) -> Iterator[tuple[Encoded, Example]]:
        items = read_examples(files, self.reading)
        if self.screen:
            items = self.screen.kept(items)
        encode = memory_rows.tokens(files) or self.encode
        for item, encoded in encode(items):
            if isinstance(item, Fault):
                self._fault(item)
                continue
            if isinstance(encoded, RowError):
                self._fault(Fault(item.file, item.line, str(encoded), encoded.remedy))
                continue
            assert encoded is not None
            marks = encoded.digests or digests(item)
            self.note(item, marks)
            self.counts.split_rows += encoded.split
            self._note_keys(item.ignored, encoded.not_shown)
            if item.compared:
                pieces = self._answers(encoded.pieces, item)
            else:
                pieces = [piece for whole in encoded.pieces for piece in self._pieces(whole, item)]
            if self.documents and pieces:
                self.documents.add(item, 2 if item.compared else len(pieces), marks)
            self.counts.rows += bool(pieces) if item.compared else len(pieces)
            for number, piece in enumerate(pieces):
                self._count(piece)
                yield piece, item.without_score() if item.rejected and number else item

    def _note_keys(self, ignored: Sequence[str], not_shown: Sequence[str]) -> None:
        for found, counted in ((not_shown, self.counts.not_shown), (ignored, self.counts.ignored)):
            for key in found:
                # keys, and names of functions, may be made up row by row
                if key in counted or len(counted) < _COUNTED_KEYS:
                    counted[key] = counted.get(key, 0) + 1

    def _answers(self, pieces: list[Encoded], example: Example) -> list[Encoded]:
        """The answers to one prompt, of which none is cut."""
        longest = max(map(len, pieces))
        if longest <= self.length or self._refused(longest, example):
            return pieces if longest <= self.length else []
        fitted = fit_answers(pieces, self.length)
        if fitted is None:
            self._drop(example)
            return []
        self.counts.truncated_rows += 1
        return fitted

    def _pieces(self, encoded: Encoded, example: Example) -> list[Encoded]:
        if len(encoded) <= self.length:
            return [encoded]
        if self._refused(len(encoded), example):
            return []
        if example.row:
            # a prompt is asked as it stands, or not at all
            self._drop(example, "the prompt is too long")
            return []
        if example.kind == "text":
            self.counts.split_documents += 1
            return split_text(encoded, self.length)
        fitted = fit(encoded, self.length)
        if fitted is None:
            self._drop(example)
            return []
        self.counts.truncated_rows += 1
        return [fitted]

    def _refused(self, tokens: int, example: Example) -> bool:
        """Whether a row that is too long is a wrong one."""
        if self.config.on_long_row != "error":
            return False
        reason = f"{tokens} tokens, at most {self.length} are allowed"
        remedy = "raise --data.sequence_length"
        self.faults.append(Fault(example.file, example.line, reason, remedy))
        return True

    def _drop(self, example: Example, why: str = "the answer alone is too long") -> None:
        self.counts.dropped_rows += 1
        where = memory_rows.place(example.file, example.line)
        self._note(f"{where}: dropped, {why}")

    def _fault(self, fault: Fault) -> None:
        self.faults.append(fault)
        self.counts.skipped_rows += 1
        if fault.line is not None:
            self._note(f"{memory_rows.place(fault.file, fault.line)}: skipped, {fault.reason}")

    def _note(self, text: str) -> None:
        if len(self.counts.notes) < _SHOWN_NOTES:
            self.counts.notes.append(text)

    def _count(self, encoded: Encoded) -> None:
        self.counts.tokens += len(encoded)
        self.counts.supervised_tokens += sum(encoded.supervised[1:])
