"""The model card of a final folder: base, licence, data, settings, scores, versions.

The folder is meant to be uploaded as it is: no path of this machine and no name of a data file is
in the card.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

import aift_ray
from aift_ray.config import SHIPPED_MODEL, RunConfig
from aift_ray.data.tokenize import Counts
from aift_ray.engine.card_licence import licence
from aift_ray.models.hub import load_config
from aift_ray.models.scaled_rope import scaling_of
from aift_ray.tasks.scores import shown as score_shown

FILE = "README.md"
_SCORES = (
    ("held-out reward before", "eval_reward_before"),
    ("held-out reward", "eval_reward"),
    ("held-out loss before", "eval_loss_before"),
    ("held-out loss", "eval_loss"),
    ("margin accuracy before", "eval_accuracy_before"),
    ("margin accuracy", "eval_accuracy"),
    ("exact match before", "exact_match_before"),
    ("exact match", "exact_match"),
    ("training loss, first step", "first_loss"),
    ("training loss, last step", "last_loss"),
)
_SETTINGS = (
    "learning_rate",
    "lr_scheduler",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optimizer",
    "seed",
)
_ADAPTERS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers")


def card(
    config: RunConfig,
    location: str,
    counts: tuple[Counts, Counts],
    held_out: int,
    summary: dict[str, Any],
) -> str:
    """The text of README.md.

    Args:
        location: of the base, resolved.
        counts: of the training and of the evaluation rows.
        held_out: rows of the training files that were evaluated on, and not trained.
        summary: of the run, as summary.json will say.
    """
    name, hub = _named(config.model, location)
    adapters, scores = config.method != "full", config.objective == "reward"
    terms: dict[str, Any] = dict(licence(location))
    data = ModelCardData(
        language="ja",
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-classification" if scores else "text-generation",
        base_model=name if hub else None,
        tags=["aift-ray", config.trained_as, *_tags(config)],
        **terms,
    )
    parts = [
        f"# {name.rsplit('/', 1)[-1]}, {'LoRA adapter' if adapters else 'fine-tuned'}",
        f"Trained from `{name}` by {config.trained_with} with aift_ray."
        + ("" if hub else f" {_no_base(name)}"),
        "## Use\n\n" + _use(name if hub else f"FOLDER OF {name}", adapters, scores, location),
        "## Data\n\n" + _data(counts, held_out),
        "## Training\n\n" + _table(_settings(config, summary)),
        "## Scores\n\n" + _scores(summary),
        "## Versions\n\n" + _table([("aift-ray", aift_ray.__version__), *_versions()]),
        _terms(data),
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    # reads the head as the Hub does
    return str(ModelCard(text))


def _named(model: str, location: str) -> tuple[str, bool]:
    """The base as others know it, and whether the Hub does; of a folder its last part alone."""
    if Path(location).is_absolute():
        return Path(model).name, False
    return location, True


def _no_base(name: str) -> str:
    """Why the card's head names no base: the Hub accepts its own models alone."""
    if name == SHIPPED_MODEL:
        what = f"`{name}` is part of the Python package aift-ray and on no Hub"
        return f"{what}, so that the head of this card names no `base_model`."
    what = f"`{name}` was a folder, so that the head of this card names no `base_model`"
    return f"{what}; if the Hub has it, add its id there."


def _tags(config: RunConfig) -> list[str]:
    return [] if config.objective == "sft" else [config.objective]


def _use(name: str, adapters: bool, scores: bool, location: str) -> str:
    kind = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    if not adapters:
        lines = [f"from transformers import {kind}, AutoTokenizer", ""]
        lines += [f'model = {kind}.from_pretrained("THIS FOLDER OR REPOSITORY")']
    else:
        one = ", num_labels=1" if scores else ""
        changed = _scaled(location)
        config, given = ("AutoConfig, ", ", config=config") if changed else ("", "")
        lines = ["from peft import PeftModel"]
        lines += [f"from transformers import {config}{kind}, AutoTokenizer", ""]
        if changed:
            lines += [f'config = AutoConfig.from_pretrained("{name}")']
            lines += [f"config.{key} = {value}" for key, value in changed.items()]
        lines += [f'base = {kind}.from_pretrained("{name}"{one}{given})']
        lines += ['model = PeftModel.from_pretrained(base, "THIS FOLDER OR REPOSITORY")']
    lines += ['tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER OR REPOSITORY")']
    code = "\n".join(lines)
    return f"```python\n{code}\n```\n\nThe chat template that made the training rows is included."


def _scaled(location: str) -> dict[str, Any]:
    """What of the base's configuration was changed for training; empty: nothing."""
    if scaling_of(location) is None:
        return {}
    found = load_config(location, scorer=True)
    return {key: getattr(found, key) for key in ("rope_parameters", "max_position_embeddings")}


def _data(counts: tuple[Counts, Counts], held_out: int) -> str:
    rows = []
    for name, of in zip(("training", "evaluation"), counts, strict=True):
        if of.rows:
            rows.append((f"{name} rows", f"{of.rows:,}"))
            rows.append((f"{name} tokens", f"{of.tokens:,}, {of.supervised_tokens:,} supervised"))
    if held_out:
        rows.insert(1, ("of them held out for evaluation", f"{held_out:,}"))
    return _table(rows)


def _settings(config: RunConfig, summary: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("method", config.trained_with),
        ("steps", f"{summary['steps']:,}"),
        ("examples a step", f"{summary['global_batch']:,}"),
        ("sequence length", f"{config.data.sequence_length:,}"),
        ("packing", config.data.packing),
        ("precision", str(summary["precision"])),
        ("strategy", f"{summary['strategy']}, {_workers(summary['world_size'])}"),
    ]
    rows += [(name, str(getattr(config.training, name))) for name in _SETTINGS]
    rows += _objective(config)
    if config.method != "full":
        rows += [(f"lora.{name}", _value(getattr(config.lora, name))) for name in _ADAPTERS]
    return rows


def _workers(number: int) -> str:
    return f"{number} worker{'s' if number != 1 else ''}"


def _objective(config: RunConfig) -> list[tuple[str, str]]:
    """How answers were compared; nothing where they were trained."""
    name, how = config.objective, config.preference
    if name == "sft":
        return []
    if name == "grpo":
        return _generation(config)
    values = how.model_dump(exclude_defaults=True, exclude={"beta", "reference"})
    rows: list[tuple[str, str]] = [("objective", name)]
    if name != "reward":
        rows.append(("preference.beta", f"{how.beta_of(name):g}"))
    if how.reference:
        rows.append(("reference", _named(how.reference, how.reference)[0]))
    return rows + [(f"preference.{key}", str(value)) for key, value in values.items()]


def _generation(config: RunConfig) -> list[tuple[str, str]]:
    """How completions were generated and rewarded; of files their last part alone."""
    how = config.grpo
    rewards = [text if "://" in text else text.rsplit("/", 1)[-1] for text in how.reward]
    kept = {"reward", "reward_timeout", "reward_memory", "reward_processes", "beta"}
    values = how.model_dump(exclude_defaults=True, exclude=kept)
    rows = [("objective", "grpo"), ("rewards", ", ".join(rewards)), ("grpo.beta", f"{how.beta:g}")]
    return rows + [(f"grpo.{key}", str(value)) for key, value in values.items()]


def _value(value: object) -> str:
    if value is None:
        return "every linear layer of the decoder blocks"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _scores(summary: dict[str, Any]) -> str:
    generated = summary["objective"] == "grpo"
    rows = [
        (label, summary[key])
        for label, key in _SCORES
        # of generated completions the held-out loss is the reward, negated
        if summary.get(key) is not None and not (generated and key.startswith("eval_loss"))
    ]
    shares = ("exact", "margin")
    words = [(n, f"{v:.1%}" if n.startswith(shares) else f"{v:.4f}") for n, v in rows]
    text = _table(words) if words else "Nothing was measured."
    trained = summary["objective"] == "sft"
    unit = "in nats a supervised token" if trained else "means over comparisons of answers"
    unit = "of the policy objective, in which less is not always better" if generated else unit
    text += f"\n\nLosses are {unit}."
    tasks = _tasks(summary)
    return f"{text}\n\n{tasks}" if tasks else text


def _tasks(summary: dict[str, Any]) -> str:
    """A row for each score of a task; empty where there is none."""
    before, rows = summary.get("tasks_before") or {}, []
    for task, scores in (summary.get("tasks") or {}).items():
        for score, found in scores.items():
            first = before.get(task, {}).get(score)
            cells = [score_shown(score, each["value"]) if each else "" for each in (first, found)]
            ends = [score_shown(score, found[end]) for end in ("low", "high")]
            cells += [f"{ends[0]} to {ends[1]}", f"{found['rows']:,}"]
            rows.append(f"| {task} | {score} | {' | '.join(cells)} |")
    head = ["| task | score | before | after | 95% interval | rows |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else ""


def _versions() -> list[tuple[str, str]]:
    return [(name, version(name)) for name in _PACKAGES]


def _terms(data: ModelCardData) -> str:
    if not data.license:
        text = "The licence of the base is not known here; add `license` to the head of this card"
        return f"## Licence\n\n{text} before you publish it."
    name = getattr(data, "license_name", None) or data.license
    return (
        f"## Licence\n\nThat of the base: {name}. The terms of the training data are yours to add."
    )


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
