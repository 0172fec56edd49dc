"""A saved LoRA adapter: whether it belongs to a base, and every way its folder can be wrong."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from aift_ray.errors import ModelError, Problem
from aift_ray.models import hub, provenance, scaled_rope
from aift_ray.models.added_tokens import embedding_rows, grow
from aift_ray.models.families.towers import absent
from aift_ray.models.folder_check import TOKENIZERS
from aift_ray.models.lora.adapter_config import CONFIG, adapter_config
from aift_ray.models.lora.adapter_weights import (
    WEIGHTS,
    Shapes,
    first_of,
    stored_shapes,
    wrong_ranks,
)
from aift_ray.models.lora.embedding_rows import needed_rows
from aift_ray.models.model_location import named_base
from aift_ray.models.vocab_check import check_vocabulary

_PREFIX = "base_model.model."


def check_adapter(
    folder: str | Path,
    base: str,
    location: str,
    skeleton: PreTrainedModel,
    name: str | None = None,
    merging: bool = False,
) -> Path:
    """The adapter's folder, where it is whole and belongs to the model.

    What it adapts of towers that are not loaded makes no difference to text, and is passed over.

    Args:
        folder: as the user named it.
        base: the model as the user named it.
        location: that model, resolved.
        skeleton: the same without weights; it stays as it is.
        name: of the adapter; None: its folder.
        merging: it is to be merged, which must lose nothing.

    Raises:
        ModelError: no adapter, a damaged one, or one for another base, which is named.
    """
    path, where = Path(folder).expanduser(), f"adapter {name or folder}"
    config = adapter_config(path, where)
    beside = tuple(f"{_PREFIX}{tower}." for tower in absent(skeleton))
    every = stored_shapes(path, where)
    stored = {key: shape for key, shape in every.items() if not key.startswith(beside)}
    problems = wrong_ranks(config, stored, path, where)
    problems = problems or _other_base(config, path, where, base, location)
    if not problems:
        skeleton = _grown(skeleton, path, where)
        wanted = str(config.get("base_model_name_or_path") or "")
        expected = _expected(path, where, skeleton)
        problems = _misfits(stored, expected, skeleton, path, where, wanted, base)
    if merging and len(stored) < len(every):
        what = f"it adapts {first_of([key for key in every if key not in stored])}, beside the "
        what += "language model, which alone is merged"
        problems.append(Problem(where, what, "merge it with plain PEFT"))
    problems += check_prompts(path, where, skeleton.config)
    if problems:
        raise ModelError(problems)
    return path.resolve()


def _grown(skeleton: PreTrainedModel, folder: Path, where: str) -> PreTrainedModel:
    """The skeleton with the rows of tokens that an adapter has added to its base."""
    try:
        rows = needed_rows(folder, skeleton)
    except (AttributeError, TypeError, ValueError) as error:
        what = f"{folder / CONFIG} has trainable_token_indices or modules_to_save that are wrong: "
        raise ModelError([Problem(where, f"{what}{error}", "copy it again")]) from None
    if rows > embedding_rows(skeleton):
        skeleton = copy.deepcopy(skeleton)
        grow(skeleton, rows)
    return skeleton


def _other_base(
    config: dict[str, Any], folder: Path, where: str, base: str, location: str
) -> list[Problem]:
    """What speaks against the adapter having been trained on the weights of `location`."""
    try:
        recorded = provenance.remembered(folder).get("base") or {}
    except ValueError:
        # told with the prompts, which are in the same file
        return []
    try:
        wanted = str(config.get("base_model_name_or_path") or recorded.get("name") or "")
        trained_on = recorded.get("weights")
        same = _same_weights(wanted, trained_on, location)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Problem(where, f"{base} can't be compared with its base: {error}")]
    if same:
        return _other_settings(folder, where, base, location)
    what = f"it was made for another base: {wanted}, not {base}"
    if same is None:
        what = f"it was trained on {wanted}, and whether {base} is the same can't be told here"
    if same is False and Path(wanted).is_dir() and Path(wanted).resolve() == Path(location):
        what = f"it was made for another base: {base} holds other weights by now"
        return [Problem(where, what, "bring back those it was trained on, or train it again")]
    if same is None and trained_on:
        return [Problem(where, what, f"download {base} first, or give its folder")]
    remedy = f"give --model {wanted}, or, if {base} holds the same weights, "
    if trained_on:
        remedy += f"remove {folder / provenance.FILE}"
    else:
        remedy += f"name it as base_model_name_or_path in {folder / CONFIG}"
    return [Problem(where, what, remedy)]


def _other_settings(folder: Path, where: str, base: str, location: str) -> list[Problem]:
    """Settings of the base's config.json that were others when the adapter was trained."""
    changed = provenance.changed_base(folder, location)
    if not changed:
        return []
    recorded = provenance.remembered(folder).get("base") or {}
    told = (recorded.get(scaled_rope.FIELD), scaled_rope.scaling_of(location))
    if told[0] != told[1]:
        was, now = (each or "none" for each in told)
        what = f"it was trained on {base} with rope_scaling {was}, and {base} is opened with {now}"
        remedy = "use adapters of one scaling together; a run that starts from it: "
        remedy += f"--rope-scaling {was}" if told[0] else "leave --rope-scaling out"
        return [Problem(where, what, remedy)]
    what = f"it was trained on {base} with other settings in its config.json: {'; '.join(changed)}"
    return [Problem(where, what, "restore them, or train the adapter again")]


def _same_weights(wanted: str, trained_on: str | None, location: str) -> bool | None:
    """Whether an adapter was trained on the weights of a location; None: it can't be told.

    Args:
        wanted: the base that its configuration names.
        trained_on: the fingerprint that training has recorded; None: others have trained it.
    """
    named = named_base(wanted)
    if trained_on:
        held = provenance.identity(location)
        # of a Hub id that is yet to be downloaded only the name is known
        return held == trained_on if held else (named == location or None)
    if not wanted or named == location:
        # the shapes alone can speak against a base that is not named
        return True
    if not Path(location).is_dir() and not Path(named).is_dir():
        return False
    mine, given = provenance.identity(named), provenance.identity(location)
    return mine == given if mine and given else None


def _expected(folder: Path, where: str, skeleton: PreTrainedModel) -> Shapes:
    """The weights that PEFT asks for, which its configuration makes of the model."""
    # it takes two seconds, and not every model has an adapter
    from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
            if not isinstance(config, LoraConfig):
                raise TypeError(f"PEFT reads it as {type(config).__name__}")
            # the start of training would compute with weights that are not there
            config.init_lora_weights = True
            model = PeftModel(copy.deepcopy(skeleton), config, low_cpu_mem_usage=True)
            found = get_peft_model_state_dict(model, save_embedding_layers=False)
    except Exception as error:
        what = f"PEFT can't use {folder / CONFIG} on the model: {_line(error)}"
        raise ModelError([Problem(where, what)]) from error
    return {key: tuple(tensor.shape) for key, tensor in found.items()}


def _misfits(
    stored: Shapes,
    expected: Shapes,
    skeleton: PreTrainedModel,
    folder: Path,
    where: str,
    wanted: str,
    base: str,
) -> list[Problem]:
    """Weights that the model has no place for, has in another size, or that are missing."""
    # tables of a vocabulary that PEFT has saved with an adapter
    own = {f"{_PREFIX}{key}": tuple(t.shape) for key, t in skeleton.state_dict().items()}
    found = []
    for key, shape in stored.items():
        # of a table that is adapted too, PEFT stores what its adapters are on
        fits = expected.get(key) or own.get(key.replace(".base_layer.", "."))
        layer = key.removeprefix(_PREFIX).rpartition(".lora_")[0] or key.removeprefix(_PREFIX)
        if fits is None:
            found.append(f"{layer}, which {base} does not have or {CONFIG} does not name")
        elif fits != shape:
            found.append(f"{layer} in another size")
    if found and _is_recorded(folder):
        what = f"{folder / WEIGHTS} or {CONFIG} was changed: it adapts {first_of(found)}"
        return [Problem(where, what, "copy it again")]
    if found:
        what = f"it was made for another base ({wanted or 'not named'}): "
        what += f"{folder / WEIGHTS} adapts {first_of(found)}"
        return [Problem(where, what, f"give --model {wanted}" if wanted else "")]
    missing = [key.removeprefix(_PREFIX) for key in expected if key not in stored]
    if missing:
        what = f"{folder / WEIGHTS} lacks weights that {CONFIG} asks for: {first_of(missing)}"
        return [Problem(where, what, "copy it again")]
    return []


def _is_recorded(folder: Path) -> bool:
    """Whether training has recorded the weights of the base, which were compared."""
    try:
        return bool((provenance.remembered(folder).get("base") or {}).get("weights"))
    except ValueError:
        return False


def check_prompts(folder: Path, where: str, model_config: PreTrainedConfig) -> list[Problem]:
    """What is wrong with the tokenizer and the chat template of a folder, where it has them.

    Args:
        model_config: of the base.
    """
    try:
        if not provenance.prompts(folder):
            return provenance.changed_prompts(where, folder)
        tokenizer = hub.load_tokenizer(str(folder))
    except ValueError as error:
        return [Problem(where, str(error), "copy it again")]
    except ModelError as error:
        file = next(folder / name for name in TOKENIZERS if (folder / name).is_file())
        reasons = "; ".join(problem.what for problem in error.problems)
        return [Problem(where, f"{file} is damaged: {reasons}", "copy it again")]
    changed = provenance.changed_prompts(where, folder)
    try:
        check_vocabulary(str(folder), tokenizer, model_config)
    except ModelError as error:
        return changed or [Problem(where, each.what, each.remedy) for each in error.problems]
    return changed


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
