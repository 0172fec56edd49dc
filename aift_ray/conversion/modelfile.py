"""What Ollama needs beside a GGUF file: its own form of the chat template, and where answers end.

Ollama takes a template of Go's, not of Jinja's. One is made of what the chat template writes around
a turn of each role, and held against it on conversations; a template that is not made of such turns
has no form here, and Ollama falls back on what it finds in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\u2402{}\u2403"
_CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


def text(
    file: str,
    tokenizer: PreTrainedTokenizerBase,
    stops: list[str],
    generation: dict[str, Any],
    bos: bool = False,
) -> str:
    """The content of a Modelfile.

    Args:
        file: name of the GGUF file beside it.
        stops: tokens that end an answer.
        generation: settings of generation_config.json.
        bos: the file has a text begin with the token for it.
    """
    lines = [f"FROM ./{file}"]
    turns = _turns(tokenizer, bos)
    if turns:
        lines.append(f'TEMPLATE """{_go(turns)}"""')
        lines += [f'SYSTEM """{turns.default}"""'] if turns.default else []
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    if generation.get("do_sample"):
        for name in ("temperature", "top_p", "top_k"):
            if generation.get(name) is not None:
                lines.append(f"PARAMETER {name} {generation[name]}")
    if generation.get("repetition_penalty", 1.0) != 1.0:
        lines.append(f"PARAMETER repeat_penalty {generation['repetition_penalty']}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Turns:
    """What stands before and after the words of each role, and before an answer.

    Attributes:
        default: the system prompt of a conversation that has none; None: there is none.
    """

    around: dict[str, tuple[str, str]]
    before_answer: str
    default: str | None

    def said(self, roles: tuple[str, ...]) -> str:
        """A conversation of marks, up to an answer."""
        words = [(role, _MARK.format(number)) for number, role in enumerate(roles)]
        if self.default is not None and "system" not in roles:
            words.insert(0, ("system", self.default))
        turns = [f"{self.around[role][0]}{word}{self.around[role][1]}" for role, word in words]
        return "".join(turns) + self.before_answer


def _turns(tokenizer: PreTrainedTokenizerBase, bos: bool) -> _Turns | None:
    """The turns of a chat template; None: it is not made of such."""
    if not isinstance(tokenizer.chat_template, str):
        return None
    try:
        shown = partial(_rendered, tokenizer, bos)
        found = _taken_apart(shown)
        same = all(found.said(roles) == shown(roles) for roles in _CONVERSATIONS)
    except Exception:
        # a template may refuse a role, or write words otherwise than they are
        return None
    return found if same else None


def _taken_apart(rendered: Callable[..., str]) -> _Turns:
    """ValueError: a part is not where it should be."""
    shown = _pieces(rendered(("system", "user", "assistant", "user")), 4)
    opening, after_user = _pieces(rendered(("user",), False), 1)
    after_answer = _pieces(rendered(("user", "assistant"), False), 2)[2]
    before_user = shown[3].removeprefix(after_answer)
    around = {
        "system": (shown[0], shown[1].removesuffix(before_user)),
        "user": (before_user, after_user),
        "assistant": (shown[2].removeprefix(after_user), after_answer),
    }
    default, (before, after) = opening.removesuffix(before_user), around["system"]
    system = default.removeprefix(before).removesuffix(after) if default else None
    return _Turns(around, shown[4].removeprefix(after_user), system)


def _pieces(rendered: str, marks: int) -> list[str]:
    """What stands between the words of a conversation."""
    found = []
    for number in range(marks):
        piece, rendered = rendered.split(_MARK.format(number))
        found.append(piece)
    return [*found, rendered]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, bos: bool, roles: tuple[str, ...], answered: bool = True
) -> str:
    messages = [
        {"role": role, "content": _MARK.format(number)} for number, role in enumerate(roles)
    ]
    found = str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answered)
    )
    # Ollama writes it before every prompt, as the file says
    return found.removeprefix(tokenizer.bos_token) if bos and tokenizer.bos_token else found


def _go(turns: _Turns) -> str:
    parts = [
        f'{{{{ {"if" if at == 0 else "else if"} eq .Role "{role}" }}}}'
        f"{_quoted(before)}{{{{ .Content }}}}{_quoted(after)}"
        for at, (role, (before, after)) in enumerate(turns.around.items())
    ]
    ended = "{{ end }}{{ end }}"
    return f"{{{{ range .Messages }}}}{''.join(parts)}{ended}{_quoted(turns.before_answer)}"


def _quoted(literal: str) -> str:
    """Words of a template, in which Go's own signs would be read."""
    if "{{" not in literal and '"""' not in literal:
        return literal
    return f"{{{{ {json.dumps(literal, ensure_ascii=False)} }}}}"
