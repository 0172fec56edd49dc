"""A configuration is resolved once: nothing changes it afterwards, and all read the same one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from aift_ray.config import RunConfig
from aift_ray.launch import training_run
from aift_ray.runs import run_dir
from aift_ray.runs.prepare import prepare

Configure = Callable[..., RunConfig]

# what machine, model and rows settle
OPEN = {"parallel__strategy": "auto", "method": "lora", "data__sequence_length": 64}


def settings_of(section: BaseModel) -> Iterator[tuple[BaseModel, str]]:
    """Each section with the name of each of its settings."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        yield section, name
        if isinstance(value, BaseModel):
            yield from settings_of(value)


def test_no_setting_of_a_resolved_configuration_can_be_set(
    configure: Configure, tmp_path: Path
) -> None:
    job = prepare(configure(**OPEN), tmp_path, 1, False, None).job
    sent: Any = pickle.loads(pickle.dumps(job))
    for config in (job.config, sent.config):
        found = list(settings_of(config))
        assert len(found) > 100
        for section, name in found:
            with pytest.raises(TypeError, match=f"{name} can't be set: it is resolved"):
                setattr(section, name, getattr(section, name))


def test_the_configuration_of_the_caller_stays_as_it_is(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure(**OPEN)
    before = config.model_dump(), config.training.model_fields_set.copy()
    resolved = prepare(config, tmp_path, 2, False, None).job.config
    assert (config.model_dump(), config.training.model_fields_set) == before
    assert resolved.parallel.strategy == "ddp"
    assert resolved.ray.cpus_per_worker == 1.0
    assert config.parallel.strategy == "auto", "and can still be changed"
    config.parallel.strategy = "fsdp"


def test_dry_run_and_output_folder_hold_what_the_workers_read(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    config = configure(**OPEN, output_dir=str(folder))
    training_run.run(config, dry_run=True)
    shown = yaml.safe_load(capsys.readouterr().out.partition("configuration:\n")[2])
    job = prepare(config, folder, 1, False, None).job
    run_dir.start(job.config, folder)
    written = yaml.safe_load((folder / run_dir.CONFIG).read_text("utf-8"))
    assert shown == job.config.model_dump(mode="json")
    assert {name: shown[name] for name in written} == written
