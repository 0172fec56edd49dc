"""The side of the worker process that has the environments of episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aift_ray.rewards import user_function
from aift_ray.rewards.environment import BUILTIN, METHODS, Environment, Reply
from aift_ray.rewards.spec import RewardSpec
from aift_ray.rewards.user_function import Refused


class Episodes:
    """The episodes of one environment that this process has.

    Raises:
        Refused: the environment can't be loaded, or has no `reset` and `step`.
    """

    def __init__(self, spec: RewardSpec) -> None:
        self._file = spec.target
        self._make: Callable[[], Environment]
        if spec.target in BUILTIN:
            self._make = BUILTIN[spec.target]
        else:
            self._make = user_function.attribute(spec.target, spec.function)
        made = self._guarded(self._make)
        for name in ("reset", "step"):
            if not callable(getattr(made, name, None)):
                what = (
                    f"{spec.target}: {spec.function} has no method {name}, expected reset and step"
                )
                raise Refused(what, remedy=METHODS)
        self._batch = 0
        self._open: dict[int, tuple[Environment, list[str], Reply]] = {}

    def reply(self, key: tuple[int, int], row: Mapping[str, Any], answers: Sequence[str]) -> Reply:
        """What an episode replies to its last answer, begun anew where this process lacks it.

        Raises:
            Refused: the environment raised an exception, or replied with something else.
        """
        batch, number = key
        if batch != self._batch:
            self._batch, self._open = batch, {}
        held = self._open.get(number)
        if held is None or held[1] != list(answers[:-1]):
            if held and held[1] == list(answers):
                return held[2]
            environment = self._guarded(self._make)
            reply = self._guarded(environment.reset, row)
            done: list[str] = []
        else:
            environment, done, reply = held
        for answer in answers[len(done) :]:
            reply = self._guarded(environment.step, answer)
            done = [*done, answer]
        checked = _checked(reply, bool(answers))
        self._open[number] = (environment, done, checked)
        return checked

    def _guarded(self, function: Callable[..., Any], *given: object) -> Any:
        return user_function.guarded(self._file, function, *given)


def _checked(reply: object, turns: bool) -> Reply:
    if reply is None or isinstance(reply, str):
        return reply
    if not turns:
        raise Refused(f"reset returned a {type(reply).__name__}, expected a text or None")
    messages = []
    for each in reply if isinstance(reply, (list, tuple)) else [None]:
        if not isinstance(each, Mapping) or not {"role", "content"} <= set(each):
            what = "step returned something else than a text, None, or messages"
            raise Refused(what, remedy="a message has role and content")
        messages.append({"role": str(each["role"]), "content": str(each["content"])})
    return messages
