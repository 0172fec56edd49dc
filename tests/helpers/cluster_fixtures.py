"""Ray clusters of tests."""

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


@pytest.fixture
def small_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one test, with one CPU, which loses and gets nodes."""
    started = Cluster(tmp_path_factory.mktemp("ray"), cpus=1)
    yield started
    started.stop()
