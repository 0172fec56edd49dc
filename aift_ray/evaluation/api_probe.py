"""Whether models behind URLs answer: asked for one token each before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from aift_ray.config import EvaluateConfig
from aift_ray.data.examples import Example
from aift_ray.errors import ConfigError, Problem
from aift_ray.tasks.task_files import LoadedTask
from aift_ray.utils.api_client import Api, Unanswered, read_key

CHAT, PLAIN = "/chat/completions", "/completions"
_JUDGE_KEYS = ("JUDGE_API_KEY", "OPENAI_API_KEY")
_TURN = {"messages": [{"role": "user", "content": "a"}]}
_ECHO = {"prompt": "a b", "echo": True, "logprobs": 1}


def judge_api(config: EvaluateConfig) -> Api:
    """The model that judges."""
    key = read_key("judge_key_file", config.judge_key_file, _JUDGE_KEYS)
    return Api(str(config.judge_url), str(config.judge_model), key)


def model_api(config: EvaluateConfig, model: str) -> Api:
    """A model of base_url."""
    key = read_key("api_key_file", config.api_key_file, ("OPENAI_API_KEY",))
    return Api(str(config.base_url), model, key)


def judge(config: EvaluateConfig) -> list[Problem]:
    """Why the judge does not answer."""
    if not config.judge_model or not _is_address(config.judge_url):
        return []
    names = {"address": "judge_url", "key": "judge_key_file", "model": "judge_model"}
    return _asked(partial(judge_api, config), CHAT, _TURN, names, _JUDGE_KEYS[0])


def models(config: EvaluateConfig, tasks: Sequence[LoadedTask]) -> list[Problem]:
    """Why models of base_url do not answer what the tasks ask of them."""
    if not _is_address(config.base_url):
        return []
    names = {"address": "base_url", "key": "api_key_file", "model": "models"}
    found: list[Problem] = []
    for model in config.models:
        for route, body in _requests(tasks):
            api = partial(model_api, config, model)
            found += _asked(api, route, body, names, "OPENAI_API_KEY")
    return list(dict.fromkeys(found))


def _requests(tasks: Sequence[LoadedTask]) -> list[tuple[str, dict[str, Any]]]:
    """One request of each kind that the tasks make."""
    found: list[tuple[str, dict[str, Any]]] = []
    written = [each.items[0] for each in tasks if each.items and each.task.kind == "generate"]
    if any(each.task.kind == "choice" for each in tasks):
        found.append((PLAIN, _ECHO))
    elif any(isinstance(item.prompt, str) for item in written):
        found.append((PLAIN, {"prompt": "a"}))
    if any(isinstance(item.prompt, Example) for item in written):
        found.append((CHAT, _TURN))
    return found


def _is_address(value: str | None) -> bool:
    return bool(value) and str(value).startswith(("http://", "https://"))


def _asked(
    api: Callable[[], Api], route: str, body: dict[str, Any], names: dict[str, str], variable: str
) -> list[Problem]:
    flags = {kind: f"--{name.replace('_', '-')}" for kind, name in names.items()}
    flags["model"] = flags["model"].removesuffix("s")
    remedies = {
        "address": f"start the server, or give its address up to /v1: {flags['address']}",
        "key": f"give {flags['key']} FILE, or set {variable}",
        "model": f"give {flags['model']} the name of a model that it serves",
    }
    try:
        choice = api().probe(route, body)
    except Unanswered as error:
        return [Problem(names[error.kind], str(error), remedies[error.kind])]
    except ConfigError as error:
        return error.problems
    if "echo" in body and choice and not (choice.get("logprobs") or {}).get("text_offset"):
        what = "gives no logprobs of the prompt (echo), which tasks of kind choice need"
        return [Problem(names["address"], what, "give a model folder, or leave these tasks out")]
    return []
