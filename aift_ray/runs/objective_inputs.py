"""What a run that compares answers needs beside its own model, settled before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aift_ray.config import RunConfig
from aift_ray.config.grpo_rules import divisible
from aift_ray.data.readers.prompt_rows import asked_prompt, columns_of
from aift_ray.errors import ConfigError, ModelError, Problem
from aift_ray.models import hub
from aift_ray.runs.row_layout import global_batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from aift_ray.data.token_rows import TokenRows

# rows whose prompts are looked at
_ROWS = 100


def settled(
    config: RunConfig, model_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What the workers are told of it: `pad_id` of a Job.

    Raises:
        ConfigError: no model of the family can be trained by the objective.
    """
    if config.objective == "reward":
        # needs the modelling code
        from aift_ray.models import load
        from aift_ray.models.families import sequence_classifier

        problems = sequence_classifier.unfit(model_config)
        layers = [*(config.lora.target_modules or []), *(config.lora.modules_to_save or [])]
        if layers and config.method != "full" and not problems:
            outline = load.skeleton(hub.resolve(config.model))
            problems = sequence_classifier.without_output(outline, layers)
        if problems:
            raise ConfigError(problems)
    padding = tokenizer.pad_token_id
    return {
        # what a model that scores texts is saved with
        "pad_id": int(tokenizer.eos_token_id if padding is None else padding),
    }


def prompt_room(config: RunConfig, model_config: PreTrainedConfig, workers: int) -> int | None:
    """Tokens that a prompt may have, where completions are generated; None: they are not.

    Raises:
        ConfigError: completions leave no room, or a step holds no whole number of prompts.
        ModelError: the engine does not generate with such a model.
    """
    if config.objective != "grpo":
        return None
    # needs transformers
    from aift_ray.serving.engines.transformers.kv_cache import RowsCache
    from aift_ray.serving.engines.vllm import vllm_families

    try:
        RowsCache(model_config)
    except ModelError as error:
        what = f"grpo does not generate with this model: {error.problems[0].what}"
        remedy = "use a model whose layers keep keys and values by token"
        raise ModelError([Problem("objective", what, remedy)]) from None
    how, length = config.grpo, config.data.sequence_length
    if how.engine == "vllm":
        adapted = config.method != "full"
        refused = [each.what for each in vllm_families.refused(model_config, adapted)]
        if not refused and not adapted:
            refused = _other_names(hub.resolve(config.model))
        if refused:
            what = f"vllm does not generate with this model: {refused[0]}"
            raise ModelError([Problem("grpo.engine", what, "use --grpo.engine transformers")])
    room, completions = length - how.max_completion_length, global_batch(config, workers)
    problems = []
    if room < 2:
        what = f"{how.max_completion_length} leaves no room for a prompt in the {length} tokens of "
        what += "data.sequence_length, or that the model takes"
        remedy = f"give less than {length - 2}"
        problems.append(Problem("grpo.max_completion_length", what, remedy))
    if completions % how.num_generations:
        problems.append(divisible(completions, how.num_generations))
    if problems:
        raise ConfigError(problems)
    return room


def _other_names(location: str) -> list[str]:
    """Why the trained weights can't replace those of a model's files; nothing where they can."""
    # needs the modelling code
    from aift_ray.models import fingerprint, load

    folder = fingerprint.on_disk(location)
    if folder is None:
        return ["its weights are not on this machine"]
    stored = {n for file in fingerprint.weight_files(folder) for n in fingerprint.header(file)[1]}
    model = load.skeleton(location)
    # those that are tied to others too
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if stored <= trained and {name for name, _ in model.named_parameters()} <= stored:
        return []
    other = next(iter(stored ^ trained))
    return [f"full fine-tuning gives it weights by other names than its files have, as {other}"]


def check_rewards(config: RunConfig, rows: TokenRows) -> None:
    """Import the rewards of generated completions, and look for the columns that they need.

    Raises:
        ConfigError: with every reward that could not score the rows.
    """
    if config.objective != "grpo" or not len(rows):
        return
    # starts a process
    from aift_ray.rewards import parse
    from aift_ray.rewards.early_check import problems_with
    from aift_ray.rewards.environment import parse_environment
    from aift_ray.rewards.environments import Environments
    from aift_ray.rewards.memory_limit import memory_limit

    how = config.grpo
    kinds: dict[tuple[str, ...], list[str]] = {}
    for row in range(len(rows)):
        kinds.setdefault(tuple(columns_of(rows.source(row))), []).append(rows.place(row))
    specs = [parse(text) for text in how.reward]
    timeout, memory = how.reward_timeout, memory_limit(how)
    problems = problems_with(specs, kinds, timeout=timeout, memory=memory)
    if how.environment is not None:
        prompts = [asked_prompt(rows.source(row)) for row in range(min(len(rows), _ROWS))]
        if any(isinstance(prompt, str) for prompt in prompts):
            what = "replies to turns of a conversation, and rows have plain texts as prompts"
            remedy = 'give prompts as messages: [{"role": "user", "content": ...}]'
            problems.append(Problem("grpo.environment", what, remedy))
        try:
            environment = parse_environment(how.environment)
            with Environments(environment, timeout=timeout, memory=memory, processes=1) as held:
                problems += held.check(rows.source(0))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)


def reference(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Where the reference model lies; None: it is the model itself.

    Raises:
        ConfigError: it has another vocabulary.
        ModelError: it is not there, damaged, or no language model.
    """
    name = config.preference.reference
    if name is None:
        return None
    if not name:
        what = "'' is not allowed: name a model folder, a Hub id or a catalog name"
        raise ConfigError([Problem("preference.reference", what)])
    try:
        location = hub.resolve(name)
        hub.load_config(location)
        other = hub.load_tokenizer(location)
    except ModelError as error:
        # its remedies speak of the model that is trained
        remedy = "name a model folder, a Hub id or a catalog name; merge an adapter first"
        said = [str(Problem(each.where, each.what)) for each in error.problems]
        problems = [Problem("preference.reference", what, remedy) for what in said]
        raise ModelError(problems) from None
    if other.get_vocab() != tokenizer.get_vocab():
        what = f"{name} has another vocabulary than {config.model}: its log-probabilities are of "
        what += "other tokens"
        remedy = "name a model of the same tokenizer, such as the one that was fine-tuned"
        raise ConfigError([Problem("preference.reference", what, remedy)])
    return location
