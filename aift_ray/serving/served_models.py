"""The base and the adapters that the settings of a server name, without what would load them."""

from __future__ import annotations

from pathlib import Path

from aift_ray.config import ServeConfig
from aift_ray.errors import ConfigError, ModelError, Problem
from aift_ray.models.lora.adapter_config import CONFIG, adapter_config
from aift_ray.models.model_location import base_of_adapter, resolve
from aift_ray.serving.adapter_record import AdapterRecord, record


def on_base(config: ServeConfig) -> ServeConfig:
    """The same where `model` is the folder of an adapter: its base, with that adapter on it.

    One that trains embeddings or whole layers is merged while it is loaded: it can't be mixed with
    others in a batch.

    Raises:
        UserError: the base is not there, or two models get the same name.
    """
    if not (Path(config.model).expanduser() / CONFIG).is_file():
        return config
    adapter = Path(config.model).expanduser().resolve()
    name = config.served_model_name or adapter.name
    settings = adapter_config(adapter, f"adapter {name}")
    if settings.get("trainable_token_indices") or settings.get("modules_to_save"):
        base = base_of_adapter(config.model, adapter)[1]
        problems = _refused_with_merged(config, base)
        if problems:
            raise ConfigError(problems)
        return config.with_merged(base, str(adapter), name)
    changes = {
        "model": base_of_adapter(config.model, adapter)[1],
        "adapters": [f"{name}={adapter}", *config.adapters],
        "served_model_name": None,
    }
    changed = config.model_copy(update=changes)
    problems = changed.contradictions()
    if problems:
        raise ConfigError(problems)
    return changed


def _refused_with_merged(config: ServeConfig, base: str) -> list[Problem]:
    """What does not go with an adapter that is merged when it is loaded."""
    remedy = (
        f"aift-ray export --model {base} --adapter {config.model} --format hf --output FOLDER, "
    )
    remedy += "and serve FOLDER"
    what = f"does not go with {config.model}: it trains embeddings or whole layers, and is merged "
    what += "while it is loaded"
    given = {
        "adapters": config.adapters,
        "load_in": config.load_in,
        "serving.adapter_folder": config.serving.adapter_folder,
        "engine": config.engine == "vllm",
    }
    return [Problem(name, what, remedy) for name, value in given.items() if value]


def check_reach(config: ServeConfig) -> None:
    """ModelError for a model that is neither on this machine nor on a Hub that answers."""
    location = resolve(config.model)
    if not Path(location).is_dir():
        from aift_ray.models import hub

        hub.check_reach(location, "weights", "tokenizer")


def check_dtype(config: ServeConfig, gpu: bool) -> None:
    """ConfigError for a dtype that a CPU does not compute in."""
    if config.dtype == "fp16" and not gpu:
        raise ConfigError([Problem("dtype", "fp16 needs a GPU", "use bf16, fp32 or auto")])


def recorded(config: ServeConfig) -> dict[str, AdapterRecord]:
    """The adapters of the settings as they are now.

    Raises:
        ModelError: a file of one can't be read.
    """
    found, problems = {}, []
    for name, folder in config.adapter_folders().items():
        try:
            found[name] = record(folder)
        except OSError as error:
            what = f"{error.filename} can't be read: {error.strerror}"
            problems.append(Problem(f"adapter {name}", what))
    if problems:
        raise ModelError(problems)
    return found
