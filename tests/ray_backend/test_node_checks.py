"""What a machine of a cluster lacks for DeepSpeed is told before anything starts."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from tests.conftest import KEITAI
from tests.helpers.command import Cluster, Command, flags

pytestmark = pytest.mark.ray


def test_a_machine_without_a_compiler_is_named_before_the_start(
    small_cluster: Cluster, tmp_path: Path
) -> None:
    small_cluster.add_node(CXX="/nowhere/g++")
    (tmp_path / "file").touch()
    file = tmp_path / "ds_config.json"

    def told(path: Path) -> str:
        offload = {"device": "nvme", "nvme_path": str(path)}
        file.write_text(json.dumps({"zero_optimization": {"offload_optimizer": offload}}), "utf-8")
        how = {"strategy": "zero3", "parallel__backend": "deepspeed"}
        how |= {"parallel__deepspeed_config": str(file), "training__max_steps": 1}
        argv = flags(Path("hina-4m"), KEITAI / "train.jsonl", tmp_path / "run", **how)
        status, output = Command(argv, small_cluster.environment).done(120)
        assert status == 2, output
        return output

    output = told(tmp_path / "nvme")
    assert f"on {platform.node()}: needs a C++ compiler for DeepSpeed's async_io" in output
    assert "no file can be written" not in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
    assert f"on {platform.node()}: zero_optimization.offload_optimizer.nvme_path" in told(
        tmp_path / "file" / "nvme"
    )
