"""Counts rows that repeat, contradict each other, or stand in both training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from aift_ray.data.examples import Example

_SHOWN_PLACES = 3


class DuplicateCounter:
    """Fed with all training examples, then with all evaluation examples.

    Holds two 16-byte digests and a number a row, not the rows.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._train, self._eval = _Seen(), _Seen()
        self._train_repeats = _Finding(
            "training", "repeat an earlier row", "repeats an earlier row"
        )
        self._train_contradictions = _contradictions("training")
        self._eval_repeats = _Finding(
            "evaluation", "repeat an earlier row", "repeats an earlier row"
        )
        self._eval_contradictions = _contradictions("evaluation")
        self._in_train = _Finding(
            "evaluation", "also stand in the training data", "also stands in the training data"
        )
        self._prompt_in_train = _Finding(
            "evaluation",
            "have a prompt of the training data, with another answer",
            "has a prompt of the training data, with another answer",
        )

    def add_train(self, example: Example) -> None:
        """Count a training row."""
        row, prompt, place = self._digests(example)
        self._add(self._train, row, prompt, place, self._train_repeats, self._train_contradictions)

    def add_eval(self, example: Example) -> None:
        """Count an evaluation row against those before it and against all training rows."""
        row, prompt, place = self._digests(example)
        self._add(self._eval, row, prompt, place, self._eval_repeats, self._eval_contradictions)
        if row in self._train.rows:
            self._in_train.note(place, self._train.rows[row])
        elif prompt in self._train.prompts:
            self._prompt_in_train.note(place, self._train.prompts[prompt])

    def warnings(self) -> list[str]:
        """One sentence for each thing found, with its count and the first places."""
        findings = (
            self._train_repeats,
            self._train_contradictions,
            self._eval_repeats,
            self._eval_contradictions,
            self._in_train,
            self._prompt_in_train,
        )
        files = list(self._files)
        return [finding.sentence(files) for finding in findings if finding.count]

    def _digests(self, example: Example) -> tuple[bytes, bytes, _Place]:
        place = (self._files.setdefault(example.file, len(self._files)), example.line)
        prompt, answer = _parts(example)
        of_prompt = _digest(prompt)
        # a text has no prompt: without this, all texts would contradict each other
        return _digest([*prompt, "", answer]), of_prompt if len(prompt) > 1 else b"", place

    @staticmethod
    def _add(
        seen: _Seen,
        row: bytes,
        prompt: bytes,
        place: _Place,
        repeats: _Finding,
        contradictions: _Finding,
    ) -> None:
        if row in seen.rows:
            repeats.note(place, seen.rows[row])
        elif prompt in seen.prompts:
            contradictions.note(place, seen.prompts[prompt])
        seen.rows.setdefault(row, place)
        if prompt:
            seen.prompts.setdefault(prompt, place)


_Place = tuple[int, int]


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
    places: list[tuple[_Place, _Place]] = field(default_factory=list)

    def note(self, place: _Place, earlier: _Place) -> None:
        self.count += 1
        if self.count <= _SHOWN_PLACES:
            self.places.append((place, earlier))

    def sentence(self, files: list[str]) -> str:
        what = f"row {self.one}" if self.count == 1 else f"rows {self.several}"
        shown = ", ".join(
            f"{files[file]}:{line} (see {files[old_file]}:{old_line})"
            for (file, line), (old_file, old_line) in self.places
        )
        more = ", ..." if self.count > _SHOWN_PLACES else ""
        return f"{self.count} {self.rows} {what}: {shown}{more}"


def _contradictions(rows: str) -> _Finding:
    return _Finding(
        rows,
        "give another answer to an earlier prompt",
        "gives another answer to an earlier prompt",
    )


def _parts(example: Example) -> tuple[list[str], str]:
    """The prompt, in parts that begin with the kind, and the answer."""
    if example.messages:
        *turns, last = example.messages
        prompt = [text for turn in turns for text in (turn.role, turn.content)]
        return [example.kind, *prompt], last.content
    if example.kind == "text":
        return [example.kind], example.output
    return [example.kind, example.instruction, example.input], example.output


def _digest(parts: list[str]) -> bytes:
    state = blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.digest()
