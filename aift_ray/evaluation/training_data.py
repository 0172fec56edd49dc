"""The texts of a training set: of data files, of a run's token cache, or of a token cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from aift_ray.commandline import validated
from aift_ray.config import RunConfig
from aift_ray.data import token_cache
from aift_ray.data.cache_location import cache_folder
from aift_ray.data.duplicates import whole_text
from aift_ray.data.examples import Example
from aift_ray.data.readers.reader_options import Reading
from aift_ray.data.readers.sources import expand_files, read_examples
from aift_ray.engine import checkpoint
from aift_ray.errors import ConfigError, DataError, Problem, UserError
from aift_ray.evaluation.evaluated_models import EvaluatedModel
from aift_ray.models import hub

_COUNTS = "counts.json"


class TrainingData:
    """What was trained on.

    Args:
        names: data files, globs, folders of runs and of token caches.
        first: the model whose tokenizer reads a token cache that no run is known of.

    Raises:
        ConfigError: everything that is wrong with the names.
    """

    def __init__(self, names: Sequence[str], first: EvaluatedModel | None) -> None:
        problems: list[Problem] = []
        self._files: list[Path] = []
        # token caches with what loads their tokenizer
        self._caches: list[tuple[Path, str]] = []
        for name in names:
            try:
                self._add(name, first)
            except UserError as error:
                problems += [
                    Problem("training_data", f"{name}: {each.what}", each.remedy)
                    for each in error.problems
                ]
        if problems:
            raise ConfigError(problems)

    def texts(self) -> Iterator[str]:
        """The text of each row; of a row without a known form all its fields.

        Raises:
            DataError: a file can't be read.
        """
        reading = Reading(encoding="auto", any_row=True)
        for item in read_examples(self._files, reading):
            if isinstance(item, Example):
                yield whole_text(item)
            elif item.line is None:
                raise DataError([Problem(item.file, item.reason, item.remedy)])
        for folder, location in self._caches:
            tokenizer = hub.load_tokenizer(location)
            rows = token_cache.load(folder).rows("train")
            for at in range(len(rows)):
                text = tokenizer.decode(rows.row(at)[0].tolist(), skip_special_tokens=True)
                yield str(text)

    def _add(self, name: str, first: EvaluatedModel | None) -> None:
        folder = Path(name).expanduser()
        if (folder / _COUNTS).is_file():
            if first is None or first.place is None:
                what = "is a token cache, which a tokenizer of a model folder must read"
                remedy = "name the training files, or the folder of the run"
                raise ConfigError([Problem("training_data", what, remedy)])
            self._caches.append((folder, first.place.tokenizer))
        elif (folder / "config.yaml").is_file():
            self._caches.append(_of_run(folder))
        else:
            self._files += expand_files([name])


def _of_run(folder: Path) -> tuple[Path, str]:
    """The token cache of a run, and the model that it was made for."""
    config: RunConfig = validated(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))
    steps = checkpoint.steps(folder / "checkpoints")
    remedy = "name the training files"
    if not steps:
        what = "holds no checkpoint, which would name its token cache"
        raise ConfigError([Problem("training_data", what, remedy)])
    state = checkpoint.read_state(folder / "checkpoints" / f"step-{steps[-1]}")
    found = cache_folder(config.data) / state.data
    if not (found / _COUNTS).is_file():
        what = f"its token cache is no longer at {found}"
        raise ConfigError([Problem("training_data", what, remedy)])
    return found, hub.resolve(config.model)
