"""What is wrong that can be told at once, without torch, Ray or the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from aift_ray.commandline import Draft, ParsedSettings, without
from aift_ray.config import (
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    MergeConfig,
    QuantizeConfig,
    RunConfig,
    ServeConfig,
    SweepConfig,
)
from aift_ray.config.preference_config import answers_of
from aift_ray.data.readers.row_schema import check_columns
from aift_ray.data.readers.sources import expand_files
from aift_ray.errors import ConfigError, DataError, ModelError, Problem, UserError
from aift_ray.launch.early_rows import wrong_rows
from aift_ray.models import folder_check
from aift_ray.models.catalog import CATALOG, is_hub_id, unknown
from aift_ray.runs import run_dir_check
from aift_ray.sweep.space import drafted_trials, separate
from aift_ray.utils import deepspeed_check


def check_drafted(draft: Draft[RunConfig], problems: list[Problem]) -> RunConfig:
    """The settings of a run, with its files, its model's name and its output folder looked at.

    Args:
        problems: what is wrong with the command line.

    Raises:
        UserError: with everything that is wrong, with the settings too.
    """
    known = [*problems, *draft.problems]
    if draft.config is None:
        raise ConfigError(known)
    try:
        check_run(draft.config, bool(known))
    except UserError as error:
        if not known:
            raise
        raise ConfigError(dict.fromkeys([*known, *draft.unnamed(error.problems)])) from None
    if known:
        raise ConfigError(known)
    return draft.config


def check_run(config: RunConfig, failing: bool = False) -> None:
    """Look at the files, the model's name and the output folder of a run.

    Args:
        failing: something is wrong already.

    Raises:
        UserError: with everything that is wrong.
    """
    data = config.data
    problems = _libraries(config) + run_dir_check.check(config, run_dir_check.output_folder(config))
    if not data.train_files and not data.mixture:
        remedy = "name some with --train-file"
        problems.append(Problem("data.train_files", "no training file is given", remedy))
    reading = _data(data)
    problems += reading + _rewards(config)
    mixed = [pattern for each in data.mixture for pattern in each.files]
    files = _files(data.train_files + mixed) + _files(data.eval_files)
    files += _files(data.contamination_files) + _tasks(config)
    problems += run_dir_check.resume(config.resume)
    adapter = config.lora.init_from
    scorer = config.objective == "reward"
    models = _model(config.model, scorer) + (_adapter("lora.init_from", adapter) if adapter else [])
    reference = config.preference.reference
    models += _named("preference.reference", _model(reference)) if reference else []
    # of columns that are wrongly named every row would be wrong
    if not any(problem.where == "data.columns" for problem in reading):
        failing = failing or bool(files or models or problems)
        files += wrong_rows(data, answers_of(config.objective), config.model, failing)
    _refuse(files, models, problems)


def _libraries(config: RunConfig) -> list[Problem]:
    """Libraries of an extra that are not installed, and what they need of the machine."""
    found = deepspeed_check.check(config)
    if config.objective == "grpo" and config.grpo.engine == "vllm" and not find_spec("vllm"):
        remedy = "pip install 'aift-ray[vllm]'"
        found.append(Problem("grpo.engine", "vllm is not installed", remedy))
    if config.training.kernels == "liger" and not (
        find_spec("liger_kernel") and find_spec("triton")
    ):
        remedy = "pip install 'aift-ray[liger]', or leave it out"
        found.append(Problem("training.kernels", "liger-kernel is not installed", remedy))
    return found


def _data(data: DataConfig) -> list[Problem]:
    """What is wrong with how files are to be read, and with a chat template."""
    problems = []
    checks: list[Callable[[DataConfig], None]] = [check_columns, _check_template]
    for check in checks:
        try:
            check(data)
        except ConfigError as error:
            problems += error.problems
    return problems


def _rewards(config: RunConfig) -> list[Problem]:
    """What is wrong with the rewards of generated completions."""
    from aift_ray.rewards import parse
    from aift_ray.rewards.environment import parse_environment

    problems = []
    for text in config.grpo.reward if config.objective == "grpo" else ():
        try:
            parse(text)
        except ConfigError as error:
            problems += error.problems
    if config.objective == "grpo" and config.grpo.environment is not None:
        try:
            parse_environment(config.grpo.environment)
        except ConfigError as error:
            problems += error.problems
    return problems


def _tasks(config: RunConfig) -> list[Problem]:
    """What is wrong with the tasks that the model is scored on."""
    if not config.evaluation.tasks:
        return []
    from aift_ray.tasks import in_training

    try:
        in_training.load(config.evaluation)
    except DataError as error:
        return error.problems
    return []


def _check_template(data: DataConfig) -> None:
    if data.chat_template:
        from aift_ray.data.prompts.template_file import read_template

        read_template(data.chat_template)


def check_sweep(given: ParsedSettings) -> None:
    """The same for the first trial of a sweep; and what any trial needs of this machine.

    Raises:
        UserError: with everything that is wrong, with settings and spaces too.
    """
    known = list[Problem]()
    try:
        separate(given.values, given.problems)
    except ConfigError as error:
        known = error.problems
    drafts, further = list(_trials(given)), list[Problem]()
    for draft in drafts:
        known += draft.problems
        further += draft.unnamed(_libraries(draft.config)) if draft.config else []
    try:
        if drafts and drafts[0].config:
            check_run(drafts[0].config)
    except UserError as error:
        if not known and set(further) <= set(error.problems):
            raise
        further += drafts[0].unnamed(error.problems)
    if known or further:
        raise ConfigError(dict.fromkeys([*known, *further]))


def _trials(given: ParsedSettings) -> Iterator[Draft[SweepConfig]]:
    """Trials at the ends of a sweep's space, as far as they are right; none where none is."""
    try:
        yield from drafted_trials(given.values)[1]
    except ConfigError as error:
        # without the malformed spaces
        names = [each.where for each in error.problems]
        wrong = frozenset(name.rpartition(".")[2] for name in names)
        with suppress(ConfigError):
            for draft in drafted_trials(without(given.values, names))[1]:
                problems = replace(draft, wrong=wrong).unnamed(draft.problems)
                yield replace(draft, problems=problems, wrong=draft.wrong | wrong)


def check_quantization(config: QuantizeConfig, occupied: list[Problem]) -> None:
    """The same for the model, the adapter and the rows to measure on.

    Args:
        occupied: what speaks against writing the result where it is asked for.
    """
    adapters = _adapter("adapter", config.adapter) if config.adapter else []
    _refuse(_files(config.eval_files), _model(config.model) + adapters, occupied)


def check_export(config: ExportConfig) -> None:
    """The same for the model and the adapter."""
    adapters = _adapter("adapter", config.adapter) if config.adapter else []
    _refuse([], _model(config.model) + adapters, [])


def check_merge(config: MergeConfig, problems: list[Problem]) -> list[str]:
    """The same for the models; the names of those with which nothing is wrong.

    Args:
        problems: of the settings; those of the models are added.

    Raises:
        ConfigError: with all of them, where no two models are left to be held together.
    """
    named = [name for name in (*config.models, config.base, config.prompts_from) if name]
    wrong = {name: _model(name) for name in named}
    problems += [problem for several in wrong.values() for problem in several]
    usable = [name for name, several in wrong.items() if not several]
    if problems and len(usable) < 2:
        raise ConfigError(problems)
    return usable


def check_server(config: ServeConfig) -> None:
    """The same for the model and its adapters."""
    folders = config.adapter_folders().items()
    adapters = [each for name, folder in folders for each in _adapter(f"adapter {name}", folder)]
    _refuse([], _model_or_adapter(config.model) + adapters, [])


def check_evaluation(config: EvaluateConfig, problems: list[Problem]) -> None:
    """The same for the models and their adapters.

    Args:
        problems: of the settings and tasks, told with those of the models.
    """
    from aift_ray.tasks.task_yaml import by_place

    named = [] if config.base_url else config.candidates()
    models = [problem for name in named for problem in _model_or_adapter(name)]
    folders = config.adapter_folders().items()
    adapters = [each for name, folder in folders for each in _adapter(f"adapter {name}", folder)]
    if models or adapters:
        raise UserError(by_place([*problems, *models, *adapters]))


def _refuse(data: list[Problem], model: list[Problem], settings: list[Problem]) -> None:
    problems = list(dict.fromkeys((*data, *model, *settings)))
    if settings or (data and model):
        raise ConfigError(problems)
    if problems:
        raise (DataError if data else ModelError)(problems)


def _files(patterns: list[str]) -> list[Problem]:
    try:
        # those of a bucket are known to the network alone
        expand_files([pattern for pattern in patterns if "://" not in pattern])
    except DataError as error:
        return error.problems
    return []


def _model(name: str, scorer: bool = False) -> list[Problem]:
    """What is wrong with a model's name, or in its folder; `scorer`: it may be a reward model."""
    folder = Path(name).expanduser()
    if name not in CATALOG and folder.is_dir():
        return folder_check.check(name, folder, scorer)
    if name in CATALOG or is_hub_id(name):
        return []
    return [unknown(name)]


def _named(setting: str, problems: list[Problem]) -> list[Problem]:
    """The same problems, told under the setting that names the model."""
    return [Problem(setting, str(Problem(each.where, each.what)), each.remedy) for each in problems]


def _model_or_adapter(name: str) -> list[Problem]:
    """The same; an adapter's own folder stands for its base, with the adapter on it."""
    alone = (Path(name).expanduser() / "adapter_config.json").is_file()
    return [] if alone else _model(name)


def _adapter(where: str, name: str) -> list[Problem]:
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        return []
    what = f"{folder} holds no adapter_config.json"
    what = what if folder.is_dir() else f"no such folder: {folder}"
    remedy = "give the folder that training or PEFT wrote, such as RUN/model"
    return [Problem(where, what, remedy)]
