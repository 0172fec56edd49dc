"""What a row of a data file becomes: an Example, or a Fault that says why it can't be one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any, Literal

Kind = Literal["instruction", "messages", "prompt", "text"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: the text; "" for a turn that only calls tools.
        further: an object in JSON: what else a template may read of the turn (tool_calls,
            tool_call_id, name).
        thought: what an assistant thinks before the answer, without tags; "" where the row has
            none, or has it in `content` (`<think>...</think>`).
        trained: for an assistant's turn, whether it is a training target.
    """

    role: str
    content: str
    further: str = ""
    thought: str = ""
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One row, told apart by its keys.

    Attributes:
        kind: instruction (instruction, input, output); messages (a chat, also made from
            `conversations`); prompt (prompt and completion, both raw text); text (raw text).
        file: the file as the user named it.
        line: physical line from 1 (Parquet: row from 1; a row over several lines: its first line).
        messages: for kind messages, the turns; for kind instruction, the turns before the
            instruction (`system`, `history`); else empty.
        instruction, input, output: for kind instruction; `input` is "" where the row has none.
            For kind prompt, `instruction` is the prompt and `output` the completion.
            For kind text, `output` is the text.
        thought: for kind instruction, what is thought before the output.
        tools: a list in JSON, "" where there are none: the functions that can be called, as
            templates read them.
        options: an object in JSON, "" where there is none: further variables of the template
            (`chat_template_kwargs`).
        unused: keys of the row that would change how a conversation is trained, and that this
            kind of row has no place for.
        ignored: the other keys of the row with a value that is not read; `messages.KEY` of turns.
        rejected: the worse answer to the same prompt, where the row has two.
        score: 1 or 0 for the label of a row, or by how much the answer is better than `rejected`;
            None where the row does not say.
        labelled: the row has a label.
        row: the whole row in JSON, where its completions are generated and scored; else "".
    """

    kind: Kind
    file: str
    line: int
    messages: tuple[Message, ...] = ()
    instruction: str = ""
    input: str = ""
    output: str = ""
    thought: str = ""
    tools: str = ""
    options: str = ""
    unused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = field(default=(), compare=False)
    rejected: Example | None = None
    score: float | None = None
    labelled: bool = False
    row: str = ""

    @property
    def compared(self) -> bool:
        """Whether the answer is held against another one, or judged by a label."""
        return self.rejected is not None or self.labelled

    def without_score(self) -> Example:
        """The same row, of which nothing is said."""
        return replace(self, score=None)

    def __reduce__(self) -> tuple[type[Example], tuple[Any, ...]]:
        # rows travel to other processes: a third of the time that dataclasses take
        return Example, _values(self)


_values = attrgetter(*(each.name for each in fields(Example)))


@dataclass(frozen=True, slots=True)
class Fault:
    """A wrong row, or with `line` None a wrong file."""

    file: str
    line: int | None
    reason: str
    remedy: str = ""
