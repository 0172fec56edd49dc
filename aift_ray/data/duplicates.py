"""Counts rows that repeat, contradict each other, or stand in both training and evaluation.

In constant memory: what is kept of each row goes to files, cut by its digest, so that rows that are
alike meet in one of them, and the files are looked through one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from aift_ray.data import memory_rows
from aift_ray.data.examples import Example

_SHOWN_PLACES = 3
# digests of row and prompt, whether it is for evaluation, how many came before, file, line
_RECORD = struct.Struct("<16s16s?qii")
_NO_PROMPT = bytes(16)
# of a row and of its prompt
Digests = tuple[bytes, bytes]
_PARTS = 256
# records in memory at most, some 4 MB
_HELD = 65536


class DuplicateCounter:
    """Fed with all training examples, then with all evaluation examples.

    Args:
        folder: gets files of 49 bytes a row where there are many; the caller removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, dict[str, int]()
        self._parts = [bytearray() for _ in range(_PARTS)]
        self._count = 0

    def add_train(self, example: Example, marks: Digests | None = None) -> None:
        """Keep a training row, whose `digests` may be known already."""
        self._add(example, marks or digests(example), evaluation=False)

    def add_eval(self, example: Example, marks: Digests | None = None) -> None:
        """Keep an evaluation row, to be held against those before it and all training rows."""
        self._add(example, marks or digests(example), evaluation=True)

    def warnings(self) -> list[str]:
        """One sentence for each thing found, with its count and the first places."""
        findings = _Findings()
        for number, part in enumerate(self._parts):
            path = self._path(number)
            spilled = path.read_bytes() if path.is_file() else b""
            findings.look_through(_RECORD.iter_unpack(spilled + part))
        return findings.sentences(list(self._files))

    def _add(self, example: Example, marks: Digests, evaluation: bool) -> None:
        row, of_prompt = marks
        if example.compared:
            # answers of a prompt that are compared do not contradict each other
            of_prompt = _NO_PROMPT
        file = self._files.setdefault(example.file, len(self._files))
        # equal rows have equal prompts
        part = (row if of_prompt == _NO_PROMPT else of_prompt)[0]
        record = _RECORD.pack(row, of_prompt, evaluation, self._count, file, example.line)
        self._parts[part] += record
        self._count += 1
        if self._count % _HELD == 0:
            self._spill()

    def _spill(self) -> None:
        self._folder.mkdir(exist_ok=True)
        for number, part in enumerate(self._parts):
            with self._path(number).open("ab") as file:
                file.write(part)
            part.clear()

    def _path(self, number: int) -> Path:
        return self._folder / str(number)


_Place = tuple[int, int]
_Record = tuple[bytes, bytes, bool, int, int, int]


@dataclass
class _Seen:
    """The first place of each row and of each prompt, by digest."""

    rows: dict[bytes, _Place] = field(default_factory=dict)
    prompts: dict[bytes, _Place] = field(default_factory=dict)


@dataclass
class _Finding:
    """One thing to warn of: how often, and where first."""

    rows: str
    several: str
    one: str
    count: int = 0
    places: list[tuple[int, _Place, _Place]] = field(default_factory=list)

    def note(self, order: int, place: _Place, earlier: _Place) -> None:
        self.count += 1
        self.places = sorted([*self.places, (order, place, earlier)])[:_SHOWN_PLACES]

    def sentence(self, files: list[str]) -> str:
        what = f"row {self.one}" if self.count == 1 else f"rows {self.several}"
        place = memory_rows.place
        shown = ", ".join(
            f"{place(files[file], line)} (see {place(files[old_file], old_line)})"
            for _, (file, line), (old_file, old_line) in self.places
        )
        more = ", ..." if self.count > _SHOWN_PLACES else ""
        return f"{self.count} {self.rows} {what}: {shown}{more}"


class _Findings:
    """All that there is to warn of."""

    def __init__(self) -> None:
        repeats = ("repeat an earlier row", "repeats an earlier row")
        self._train_repeats = _Finding("training", *repeats)
        self._train_contradictions = _contradictions("training")
        self._eval_repeats = _Finding("evaluation", *repeats)
        self._eval_contradictions = _contradictions("evaluation")
        self._in_train = _Finding(
            "evaluation", "are also in the training data", "is also in the training data"
        )
        self._prompt_in_train = _Finding(
            "evaluation",
            "have a prompt of the training data, with another answer",
            "has a prompt of the training data, with another answer",
        )

    def look_through(self, records: Iterator[_Record]) -> None:
        """Look through some rows, in their order, among which are all that are like one of them."""
        train, held_out = _Seen(), _Seen()
        for row, prompt, evaluation, order, *place in records:
            at = (place[0], place[1])
            if not evaluation:
                repeats, contradictions = self._train_repeats, self._train_contradictions
                self._compare(train, (row, prompt), (order, at), repeats, contradictions)
                continue
            repeats, contradictions = self._eval_repeats, self._eval_contradictions
            self._compare(held_out, (row, prompt), (order, at), repeats, contradictions)
            if row in train.rows:
                self._in_train.note(order, at, train.rows[row])
            elif prompt in train.prompts:
                self._prompt_in_train.note(order, at, train.prompts[prompt])

    def sentences(self, files: list[str]) -> list[str]:
        """A sentence for each thing that was found."""
        findings = (
            self._train_repeats,
            self._train_contradictions,
            self._eval_repeats,
            self._eval_contradictions,
            self._in_train,
            self._prompt_in_train,
        )
        return [finding.sentence(files) for finding in findings if finding.count]

    @staticmethod
    def _compare(
        seen: _Seen,
        digests: tuple[bytes, bytes],
        found: tuple[int, _Place],
        repeats: _Finding,
        contradictions: _Finding,
    ) -> None:
        row, prompt = digests
        if row in seen.rows:
            repeats.note(*found, seen.rows[row])
        elif prompt in seen.prompts:
            contradictions.note(*found, seen.prompts[prompt])
        seen.rows.setdefault(row, found[1])
        if prompt != _NO_PROMPT:
            seen.prompts.setdefault(prompt, found[1])


def _contradictions(rows: str) -> _Finding:
    return _Finding(
        rows,
        "give another answer to an earlier prompt",
        "gives another answer to an earlier prompt",
    )


def digests(example: Example) -> Digests:
    """16 bytes each of the whole row and of its prompt; zeros where it has none."""
    prompt, answer = _parts(example)
    # a text has no prompt: without this, all texts would contradict each other
    if example.rejected:
        answer += "\0" + _parts(example.rejected)[1]
    return _digest([*prompt, "", answer]), _digest(prompt) if len(prompt) > 1 else _NO_PROMPT


def whole_text(example: Example) -> str:
    """All that a row says."""
    return "\n".join(text for text in (prompt_text(example), _parts(example)[1]) if text)


def prompt_text(example: Example) -> str:
    """What stands before the last answer of a row; "" of a plain text."""
    if example.messages:
        return "\n".join(each.content for each in example.messages[:-1])
    return "\n".join(text for text in (example.instruction, example.input) if text)


def _parts(example: Example) -> tuple[list[str], str]:
    """The prompt, in parts that begin with the kind, and the answer."""
    turns = list(example.messages)
    own = [example.kind, *filter(None, (example.tools, example.options))]
    if example.kind == "messages":
        last = turns.pop()
        answer = [last.content, last.thought, last.further]
    else:
        answer = [example.output, example.thought]
    for turn in turns:
        own += [turn.role, turn.content, *filter(None, (turn.thought, turn.further))]
    if example.kind in ("instruction", "prompt"):
        own += [example.instruction, example.input]
    return own, "\0".join(filter(None, answer))


def _digest(parts: list[str]) -> bytes:
    state = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.digest()
