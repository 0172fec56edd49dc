"""Tells callbacks what a run's worker 0 has written down, and the run what they want."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aift_ray.engine.metrics import END, EVENTS, STOP
from aift_ray.errors import ConfigError, Problem

METHODS = {"step": "on_step", "evaluate": "on_evaluate", "save": "on_save"}


class Listener:
    """Calls callbacks with what is new in a run's folder; does nothing without callbacks.

    Raises:
        ConfigError: a callback without any of the methods.
    """

    def __init__(self, folder: Path, callbacks: Sequence[Any]) -> None:
        self._folder, self._callbacks = folder, list(callbacks)
        self._position = 0
        self._error: Exception | None = None
        wrong = [
            Problem(
                f"callbacks[{index}]",
                f"{each.__name__} is a class, expected an object of it",
                f"give {each.__name__}()",
            )
            if isinstance(each, type)
            else Problem(
                f"callbacks[{index}]",
                f"{type(each).__name__} has none of {', '.join(METHODS.values())}",
                "derive it from aift_ray.Callback",
            )
            for index, each in enumerate(self._callbacks)
            if isinstance(each, type) or not any(hasattr(each, name) for name in METHODS.values())
        ]
        if wrong:
            raise ConfigError(wrong)

    @property
    def listens(self) -> bool:
        """Whether the run has to write down what happens."""
        return bool(self._callbacks)

    def poll(self) -> None:
        """Tell what has happened since the last call."""
        if not self._callbacks or self._error:
            return
        for event in self._new():
            try:
                self._tell(event)
            except Exception as error:
                # the run ends first, with a checkpoint
                self._error = error
                (self._folder / STOP).touch()
                return

    def close(self) -> None:
        """Tell what is left; raises what a callback has raised."""
        self.poll()
        if self._error:
            raise self._error

    def _new(self) -> list[dict[str, Any]]:
        try:
            with (self._folder / EVENTS).open("rb") as file:
                file.seek(self._position)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _tell(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "save":
            arguments: tuple[Any, ...] = (event["step"], Path(event["folder"]))
        else:
            arguments = (event,)
        for callback in self._callbacks:
            method = getattr(callback, METHODS[kind], None)
            if method is not None and method(*arguments):
                (self._folder / END).touch()
