"""Ray's own validation takes the cluster files, alone and with an overlay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.conftest import ROOT

CLUSTER = ROOT / "cluster"
FILES = ("a5000x2.yaml", "a5000x2-multi.yaml", "aws-g5.yaml")
# workers at least and at most, over all types of nodes
WORKERS = {"a5000x2.yaml": (0, 0), "a5000x2-multi.yaml": (2, 2), "aws-g5.yaml": (0, 2)}


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """The file as Ray fills it out; fails where Ray refuses it."""
    result: dict[str, Any] = prepare_config(config)
    validate_config(result)
    return result


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_every_file(name: str) -> None:
    filled = checked(read(CLUSTER / name))
    kinds = [k for k in filled["available_node_types"].values() if k.get("max_workers")]
    least, most = (sum(k.get(f"{end}_workers", 0) for k in kinds) for end in ("min", "max"))
    assert (least, min(most, filled["max_workers"])) == WORKERS[name]


@pytest.mark.parametrize("name", FILES)
def test_every_file_asks_for_the_token_and_shares_enough_memory(name: str) -> None:
    config = read(CLUSTER / name)
    options = config["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    assert [o for o in options if o.startswith("--shm-size=")]
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "0.0.0.0" not in " ".join(config["head_start_ray_commands"])


def test_several_workstations_differ_from_one_in_their_number_only() -> None:
    one, several = (read(CLUSTER / name) for name in FILES[:2])
    differing = {key for key in one | several if one.get(key) != several.get(key)}
    assert differing == {"cluster_name", "provider"}


@pytest.mark.parametrize("name", FILES[:2])
def test_an_overlay_changes_addresses_and_takes_the_gpus_away(name: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("provider: {worker_ips: [h2]}\n", "utf-8")
    command = [sys.executable, "overlay.py", name, "no-gpu.yaml", str(own)]
    text = subprocess.run(command, cwd=CLUSTER, capture_output=True, check=True).stdout
    config = checked(yaml.safe_load(text))
    assert (config["provider"]["head_ip"], config["provider"]["worker_ips"]) == ("h1", ["h2"])
    assert "--gpus=all" not in config["docker"]["run_options"]
    assert config["head_start_ray_commands"] == read(CLUSTER / name)["head_start_ray_commands"]
