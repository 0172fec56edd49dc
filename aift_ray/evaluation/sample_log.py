"""Samples on disk while an evaluation runs, so that it can be continued after a kill."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aift_ray.errors import ConfigError, Problem
from aift_ray.evaluation.evaluated_models import EvaluatedModel
from aift_ray.evaluation.evaluator import Sample, TaskItems
from aift_ray.evaluation.output_files import SAMPLES
from aift_ray.tasks.task_files import LoadedTask

_PARTIAL = ".samples.partial.jsonl"


def digest(candidate: EvaluatedModel, loaded: LoadedTask, settings: dict[str, Any]) -> str:
    """sha256, in hex, of what a task's samples of a model depend on."""
    # what a judge says of an answer is asked again by itself
    task = loaded.task.model_dump(mode="json", exclude={"scores", "judge"})
    computed = [score for score in loaded.task.computed if score not in loaded.task.judged]
    parts: list[Any] = [candidate.name, settings, task, computed, loaded.harness]
    parts += [repr(item) for item in loaded.items]
    if candidate.place:
        folders = [candidate.place.base, candidate.place.tokenizer, candidate.place.adapter]
        parts += [_stamps(Path(folder)) for folder in folders if folder]
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamps(folder: Path) -> list[Any]:
    if not folder.is_dir():
        return [str(folder)]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


class Record:
    """The samples that are there already, and those that come.

    Args:
        output: the file of the results, beside which the samples are kept.
        digests: of each (model, task); samples of others are not taken.

    Raises:
        ConfigError: another evaluation is writing there.
    """

    def __init__(self, output: Path, digests: dict[tuple[str, str], str]) -> None:
        self._path = output.parent / _PARTIAL
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(output.parent)
        self._digests = digests
        self.samples: dict[tuple[str, str], dict[int, Sample]] = {key: {} for key in digests}
        for digest_, sample in self._read():
            key = (sample["model"], sample["task"])
            if digests.get(key) == digest_:
                self.samples[key][sample["row"]] = sample
        self.resumed = sum(map(len, self.samples.values()))
        whole = [sample for rows in self.samples.values() for sample in rows.values()]
        partial = self._path.with_suffix(".tmp")
        partial.write_text("".join(map(self._line, whole)), encoding="utf-8")
        partial.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def missing(self, model: str, loaded: LoadedTask) -> TaskItems:
        """The items of a task of which there is no sample yet."""
        there = self.samples[model, loaded.task.name]
        missing = [item for item in loaded.items if item.index not in there]
        if loaded.harness and missing:
            # the harness draws its examples for all rows in one go
            return TaskItems(loaded.task, loaded.items, loaded.harness)
        return TaskItems(loaded.task, missing)

    def add(self, samples: Iterable[Sample]) -> None:
        """Keep samples, on disk too."""
        for sample in samples:
            self.samples[sample["model"], sample["task"]][sample["row"]] = sample
            self._file.write(self._line(sample))
        self._file.flush()

    def finish(self, order: Sequence[tuple[str, str]]) -> None:
        """Write samples.jsonl, in the order of models, tasks and rows."""
        self._file.close()
        target = self._path.parent / SAMPLES
        partial = target.with_name(f".{SAMPLES}.tmp")
        with partial.open("w", encoding="utf-8") as file:
            for key in order:
                for _, sample in sorted(self.samples[key].items()):
                    file.write(json.dumps(sample, ensure_ascii=False) + "\n")
        partial.replace(target)
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what there is for another run."""
        self._file.close()
        os.close(self._lock)

    def _line(self, sample: Sample) -> str:
        digest_ = self._digests[sample["model"], sample["task"]]
        return json.dumps([digest_, sample], ensure_ascii=False) + "\n"

    def _read(self) -> Iterator[tuple[str, Sample]]:
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError([Problem("output", f"{self._path} can't be read: {error}")]) from None
        for line in text.splitlines():
            try:
                digest_, sample = json.loads(line)
            except ValueError:
                # the last line of a run that was killed
                continue
            yield digest_, sample


def _locked(folder: Path) -> int:
    """A descriptor that keeps other evaluations out of a folder until it is closed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        what = f"another evaluation is writing to {folder}"
        remedy = "wait until it has ended, or name an --output in another folder"
        raise ConfigError([Problem("output", what, remedy)]) from None
    except OSError:
        # some network file systems have no locks
        pass
    return descriptor
