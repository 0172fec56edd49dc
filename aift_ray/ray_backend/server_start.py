"""The start of a server: its replicas check the model and tell the command that waits for them.

The command itself reads no model. What it takes to read one (torch, transformers, the tokenizer of
a large vocabulary) costs a replica seconds that would be spent twice.
"""

from __future__ import annotations

import os
import pickle
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aift_ray.errors import AiftError, UserError
from aift_ray.ray_backend import ray_compat, serve_compat
from aift_ray.ray_backend.serve_options import NAME

if TYPE_CHECKING:
    from ray.serve import Application

    from aift_ray.config import ServeConfig
    from aift_ray.serving.startup import Checked

_CHECKING, _CHECKED = "checking", "checked"
# between two looks at what the replicas have told
_LOOK_S = 0.2
# a command that has not looked for so long was killed; the clocks of machines differ by less
_GONE_S = 60.0


@dataclass(frozen=True)
class ServerStart:
    """A start that is under way.

    Attributes:
        key: where the cluster keeps what the replicas tell.
    """

    key: str

    @classmethod
    def begin(cls) -> ServerStart:
        """A new one."""
        start = cls(f"aift-ray-start-{uuid.uuid4().hex}")
        start._tell(_CHECKING)
        return start

    def wait_on(self) -> None:
        """Called by the command again and again while it waits."""
        ray_compat.keep(self._waiting, repr(time.time()).encode())

    def under_way(self) -> bool:
        """Whether the command still waits; a replica that starts later replaces another."""
        waiting = ray_compat.kept(self._waiting)
        return waiting is not None and time.time() - float(waiting) < _GONE_S

    def checked(self) -> None:
        """Called by a replica that has found nothing wrong."""
        self._tell(_CHECKED)

    def refused(self, error: UserError) -> None:
        """Called by a replica that can't serve what the settings name."""
        self._tell(error)

    def told(self) -> str | UserError:
        """What a replica has told last."""
        found = ray_compat.kept(self.key)
        told: str | UserError = _CHECKING if found is None else pickle.loads(found)
        return told

    def end(self) -> None:
        """Nobody waits any more."""
        ray_compat.forget(self.key)
        ray_compat.forget(self._waiting)

    @property
    def _waiting(self) -> str:
        return f"{self.key}-waiting"

    def _tell(self, what: str | UserError) -> None:
        ray_compat.keep(self.key, pickle.dumps(what))


def checked(config: ServeConfig, gpu: bool, start: ServerStart | None) -> Checked:
    """What a replica checks: everything at the start of a server, else the base alone.

    Raises:
        UserError: what keeps it from being served.
    """
    from aift_ray.runs import unknown_families
    from aift_ray.serving import startup

    if start is None or not start.under_way():
        return startup.check_base(config, gpu)
    try:
        found = startup.check(config, gpu)
        unknown_families.measure_served(config, found.engine)
    except UserError as error:
        start.refused(error)
        raise
    start.checked()
    return found


def wait_for_controller(started: Future[None]) -> None:
    """Wait until Serve takes applications.

    Args:
        started: done once its proxies have started too.

    Raises:
        AiftError: they did not start.
    """
    while not started.done() and not serve_compat.has_controller():
        time.sleep(_LOOK_S / 4)
    if started.done():
        started.result()


def run(application: Application, start: ServerStart, tell: Callable[[str], None]) -> None:
    """Start the replicas of an application and wait until they answer.

    Args:
        tell: prints a line of progress.

    Raises:
        UserError: a replica can't serve what the settings name.
        AiftError: the replicas don't start.
    """
    from ray import serve

    target = serve.RunTarget(application, name=NAME, route_prefix="/")
    try:
        start.wait_on()
        serve.run_many([target], wait_for_applications_running=False)
        _wait(start, tell)
    except (AiftError, TimeoutError) as error:
        # else it would try again for ever
        if os.environ.get("RAY_ADDRESS"):
            serve.delete(NAME)
        if isinstance(error, AiftError):
            raise
        raise AiftError(f"the server could not be started: {error}") from error
    finally:
        start.end()


def _wait(start: ServerStart, tell: Callable[[str], None]) -> None:
    """Wait until the replicas answer and the proxies pass requests on to them."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    is_checked = False
    while True:
        start.wait_on()
        told = start.told()
        if isinstance(told, UserError):
            raise told
        if told == _CHECKED and not is_checked:
            is_checked = True
            tell("the model is checked")
            tell("loading the model in the replicas")
        found = serve.status().applications[NAME]
        if found.status == ApplicationStatus.RUNNING:
            serve_compat.wait_for_proxies()
            return
        if found.status == ApplicationStatus.DEPLOY_FAILED:
            raise AiftError(f"the server could not be started: {found.message}")
        time.sleep(_LOOK_S)
