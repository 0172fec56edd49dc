"""Who may speak after whom in a conversation."""

from __future__ import annotations

from aift_ray.data.examples import Message
from aift_ray.data.readers.wrong_row import WrongRow

MEND_CALLS = 'write calls as "tool_calls" (messages) or from "function_call" (conversations)'
_ADD_ANSWER = "add the answer as a last message from assistant (conversations: from gpt)"


def check_order(messages: tuple[Message, ...]) -> None:
    """Raise WrongRow unless user and assistant speak in turn, tools after their calls."""
    roles = [message.role for message in messages]
    if "assistant" not in roles:
        raise WrongRow("no assistant message: nothing to train on", _ADD_ANSWER)
    expected = {"user"}
    for index, message in enumerate(messages):
        role = message.role
        if role == "system" and index == 0:
            continue
        if role not in expected:
            _refuse_place(roles, index, expected)
        if role == "assistant":
            expected = {"tool"} if "tool_calls" in message.further else {"user"}
        else:
            expected = {"assistant", "tool"} if role == "tool" else {"assistant"}
    if roles[-1] != "assistant":
        what = f"the last message is from {roles[-1]}, expected assistant"
        raise WrongRow(what, f"remove that message, or {_ADD_ANSWER}")
    if not any(each.trained for each in messages if each.role == "assistant"):
        raise WrongRow("no answer is trained: each has the weight 0", "remove the row")


def _refuse_place(roles: list[str], index: int, expected: set[str]) -> None:
    if roles[index] == "system":
        what = f"message {index + 1} is a system message, which may only come first"
        raise WrongRow(what, "move its text into the first message, or make a row of each part")
    place = f"after the {roles[index - 1]} message before it" if index else "first"
    wanted = " or ".join(sorted(expected))
    remedy = "user and assistant speak in turn, user first"
    if roles[index] == "tool" or "tool" in expected:
        remedy = f"results of tools follow the calls that they answer; {MEND_CALLS}"
    reason = f"message {index + 1} is from {roles[index]}, expected {wanted} {place}"
    raise WrongRow(reason, remedy)
