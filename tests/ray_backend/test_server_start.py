"""The record of a server's start, kept by the cluster."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers.command import Cluster

PROGRAM = """
import ray, time
from aift_ray.ray_backend import server_start

ray.init(log_to_driver=False)
start = server_start.ServerStart.begin()
found = [start.under_way()]
start.wait_on()
found.append(start.under_way())
# the command was killed
server_start._GONE_S = 0.1
time.sleep(0.2)
found.append(start.under_way())
start.wait_on()
found.append(start.under_way())
start.end()
found.append(start.under_way())
print(found)
"""


def test_a_start_whose_command_was_killed_is_not_under_way(cluster: Cluster) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | cluster.environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[False, True, False, True, False]"), done.stdout
