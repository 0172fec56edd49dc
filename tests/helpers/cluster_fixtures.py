"""One Ray cluster for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.command import Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with four CPUs."""
    # Ray's sockets need a short path
    started = Cluster(tmp_path_factory.mktemp("ray"))
    yield started
    started.stop()
