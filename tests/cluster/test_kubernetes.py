"""The Kubernetes manifests are what KubeRay's schema and this project's own settings allow."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
import yaml

from aift_ray.commandline import parse, validated
from aift_ray.config import RunConfig, ServeConfig
from tests.conftest import ROOT, SHARED

FOLDER = ROOT / "cluster" / "kubernetes"
CHECK = SHARED / "containers" / "check_manifests.py"
OVERLAYS = sorted(path.parent.name for path in FOLDER.glob("*/kustomization.yaml"))


def rendered(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl kustomize` gives for these files: their resources, with their patches."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    found: list[dict[str, Any]] = []
    for name in content["resources"]:
        place = (folder / name).resolve()
        if place.is_dir():
            found += rendered(place)
        else:
            found += yaml.safe_load_all(place.read_text("utf-8"))
    for entry in content.get("patches", ()):
        kind, name = entry["target"]["kind"], entry["target"]["name"]
        (at,) = (
            index
            for index, each in enumerate(found)
            if (each["kind"], each["metadata"]["name"]) == (kind, name)
        )
        found[at] = jsonpatch.apply_patch(found[at], yaml.safe_load(entry["patch"]))
    return found


def only(kind: str, folder: str) -> dict[str, Any]:
    (found,) = (each for each in rendered(FOLDER / folder) if each["kind"] == kind)
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_is_what_the_schema_allows(name: str, tmp_path: Path) -> None:
    if not CHECK.is_file():
        pytest.skip("needs the schema of KubeRay in shared/containers")
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(rendered(FOLDER / name)), "utf-8")
    command = [sys.executable, str(CHECK), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_misspelt_field_is_found(tmp_path: Path) -> None:
    if not CHECK.is_file():
        pytest.skip("needs the schema of KubeRay in shared/containers")
    job = only("RayJob", "train")
    job["spec"]["shutdownAfterJobFinish"] = True
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job), "utf-8")
    command = [sys.executable, str(CHECK), str(tmp_path / "job.yaml")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


def test_the_job_trains_with_flags_that_exist() -> None:
    words = shlex.split(only("RayJob", "train")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "aift_ray.train"]
    assert parse(words[3:], RunConfig, "train", "").config.resume == "latest"


def test_the_service_serves_with_settings_that_exist() -> None:
    service = yaml.safe_load(only("RayService", "serve")["spec"]["serveConfigV2"])
    (application,) = service["applications"]
    config = validated(application["args"], ServeConfig)
    assert config.serving.api_key_file
    assert application["import_path"] == "aift_ray.launch.serving:build"


@pytest.mark.parametrize(
    ("kind", "folder", "spec"),
    [
        ("RayCluster", "cluster", ()),
        ("RayJob", "train", ("rayClusterSpec",)),
        ("RayService", "serve", ("rayClusterConfig",)),
    ],
)
def test_every_cluster_is_made_alike(kind: str, folder: str, spec: tuple[str, ...]) -> None:
    found = only(kind, folder)["spec"]
    for name in spec:
        found = found[name]
    assert found["authOptions"] == {"mode": "token"}
    (group,) = found["workerGroupSpecs"]
    for template in (found["headGroupSpec"]["template"], group["template"]):
        (container,) = template["spec"]["containers"]
        assert template["spec"]["securityContext"]["runAsUser"] == 1000
        assert container["securityContext"]["readOnlyRootFilesystem"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts >= {"/models", "/outputs", "/tmp"}
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2


def test_the_overlay_without_gpus_asks_for_none() -> None:
    assert "nvidia" not in yaml.safe_dump(only("RayJob", "no-gpu"))
