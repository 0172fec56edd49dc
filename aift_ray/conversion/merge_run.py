"""`aift-ray merge` from its configuration to its folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aift_ray.config import MergeConfig
from aift_ray.conversion import merge_folder, merge_methods
from aift_ray.conversion.merge_folder import Weights
from aift_ray.engine.metrics import write_json
from aift_ray.errors import AiftError, ConfigError, ModelError, Problem, UserError
from aift_ray.models import fingerprint, hub, provenance
from aift_ray.models.hub import out_of_reach
from aift_ray.quantization import output_folder as output
from aift_ray.quantization import quantizer
from aift_ray.runs import terminal
from aift_ray.runs.run_dir import check_space

REPORT = "merge.json"
# keys of config.json that change no number of a forward pass
_FREE = frozenset(
    (
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "label2id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
    )
)


@dataclass(frozen=True)
class MergePlan:
    """A merge that could start.

    Attributes:
        output: folder, absolute.
        models, base: weights of each.
        prompts: folder whose tokenizer, chat template and generation settings are taken.
        notes: settings in which the models differ.
    """

    config: MergeConfig
    output: Path
    models: list[Weights]
    base: Weights | None
    source: Path
    prompts: Path
    notes: list[str]


def run(
    config: MergeConfig, dry_run: bool, problems: Sequence[Problem], usable: Sequence[str]
) -> dict[str, Any]:
    """Merge as `config` says; returns the report.

    Args:
        problems: what is wrong with the settings and with models that are not among `usable`.

    Raises:
        UserError: the input is wrong.
        AiftError: the disk is full; like after any error, nothing is left behind.
    """
    plan = prepare(config, problems, usable)
    weights = config.weights or [1.0] * len(plan.models)
    lines: list[tuple[str, str]] = [("method", config.method)]
    lines += [("base", config.base)] if config.base else []
    lines += [("model", f"{m}, weight {w:g}") for m, w in zip(config.models, weights, strict=False)]
    lines.append(("prompts of", str(plan.prompts)))
    lines += [("not the same", note) for note in plan.notes]
    terminal.table("plan", [*lines, ("output", str(plan.output))])
    if dry_run:
        return {}
    report = {"settings": config.model_dump(mode="json", exclude={"output_dir", "overwrite"})}
    merge = partial(merge_methods.merge, config)
    shape = plan.base or plan.models[0]
    try:
        with output.beside(plan.output, config.overwrite, REPORT) as folder:
            merge_folder.write(folder, shape, plan.models, plan.base, merge)
            _companions(plan, folder)
            write_json(folder / REPORT, report)
    except OSError as error:
        raise AiftError(f"{plan.output} could not be written: {error}") from error
    terminal.table("result", [("written", str(plan.output))])
    return report


def prepare(config: MergeConfig, problems: Sequence[Problem], usable: Sequence[str]) -> MergePlan:
    """Check everything before a weight is read; for the arguments see `run`.

    Raises:
        UserError: with every mistake that was found.
    """
    path = _output(config)
    problems = [*problems, *output.check(path, config.overwrite, REPORT)]
    found: dict[str, Path] = {}
    for name in usable:
        try:
            found[name] = _folder(name)
        except UserError as error:
            problems += error.problems
    problems += _repeated([name for name in dict.fromkeys(config.models) if name in found], found)
    names = [name for name in (config.base, *config.models) if name in found]
    weights = {name: Weights.of(name, found[name]) for name in dict.fromkeys(names) if name}
    problems += _differing(config, found, weights)
    if weights:
        first = next(iter(weights.values()))
        size = sum(file.stat().st_size for file in set(first.files.values()))
        problems += check_space(path, size, "the weights")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    others = [each for each in weights.values() if each is not first]
    notes = [n for each in others for n in _settings(found, first.name, each.name)]
    talking = filter(partial(_talks, found), config.models)
    prompts = config.prompts_from or next(talking, first.name)
    models = [weights[name] for name in config.models]
    base = weights[config.base] if config.base else None
    return MergePlan(config, path, models, base, found[first.name], found[prompts], notes)


def _repeated(names: Sequence[str], found: dict[str, Path]) -> list[Problem]:
    """Models that are one under two names."""
    first: dict[Path, str] = {}
    for name in names:
        first.setdefault(found[name].resolve(), name)
    same = [(name, first[found[name].resolve()]) for name in names]
    return [
        Problem("models", f"{name} is {one}, which is given already", "give it once")
        for name, one in same
        if name != one
    ]


def _differing(
    config: MergeConfig, found: dict[str, Path], weights: dict[str, Weights]
) -> list[Problem]:
    """What keeps models from being merged with the first of them, and with its tokenizer."""
    problems = [p for each in weights.values() for p in merge_folder.unreadable(each)]
    if not weights:
        return problems
    first, *others = weights.values()
    problems += [p for each in others for p in merge_folder.differences(first, each)]
    tokenizers = [each.name for each in others]
    if config.prompts_from in found and config.prompts_from not in weights:
        tokenizers.append(config.prompts_from)
    for name in tokenizers:
        try:
            problems += _vocabularies(found, first.name, name)
        except UserError as error:
            problems += error.problems
    return problems


def _output(config: MergeConfig) -> Path:
    default = Path("outputs", time.strftime("%Y%m%d-%H%M%S-merge"))
    return (Path(config.output_dir).expanduser() if config.output_dir else default).absolute()


def _folder(name: str) -> Path:
    """The folder of a model whose weights are on this machine."""
    folder = fingerprint.on_disk(quantizer.source(name))
    if folder is None or not fingerprint.weight_files(folder):
        raise ModelError([out_of_reach(name)])
    return folder


def _talks(found: dict[str, Path], name: str) -> bool:
    return bool(hub.load_tokenizer(str(found[name])).chat_template)


def _vocabularies(found: dict[str, Path], first: str, other: str) -> list[Problem]:
    """What speaks against two tokenizers giving a row of the embeddings one meaning."""
    pair = [hub.load_tokenizer(str(found[name])).get_vocab() for name in (first, other)]
    differing = sorted((number, token) for token, number in pair[0].items() ^ pair[1].items())
    if not differing:
        return []
    number, token = differing[0]
    what = f"its tokenizer is not that of {first}: {len(differing)} tokens differ, such as "
    what += f"{token!r}, id {number}"
    remedy = "merge models of one tokenizer: ids of another mean other words"
    return [Problem(f"model {other}", what, remedy)]


def _settings(found: dict[str, Path], first: str, other: str) -> list[str]:
    """Settings of the network in which two models differ; those of the first are kept."""
    pair = [hub.load_config(str(found[name])).to_dict() for name in (first, other)]
    names = sorted(
        name for name in pair[0].keys() | pair[1].keys() if pair[0].get(name) != pair[1].get(name)
    )
    return [
        f"{name} of {other} is {pair[1].get(name)}; the result has {pair[0].get(name)}, of {first}"
        for name in names
        if name not in _FREE
    ]


def _companions(plan: MergePlan, folder: Path) -> None:
    for name in ("config.json", fingerprint.INDEX):
        if (plan.source / name).is_file():
            shutil.copyfile(plan.source / name, folder / name)
    for source in (plan.source, plan.prompts):
        if source is plan.prompts:
            # of one template, not a mixture of two
            for name in ("chat_template.jinja", "generation_config.json"):
                (folder / name).unlink(missing_ok=True)
        output.copy_companions(source, folder)
    provenance.record(folder)
