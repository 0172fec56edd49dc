"""What is wrong with a model's folder, told without the libraries that would open it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aift_ray.errors import Problem

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_INDEX = "model.safetensors.index.json"
# classes of transformers that have no output layer for tokens; the first is that of reward models
SCORER = "ForSequenceClassification"
_CLASSIFIERS = (
    SCORER,
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForImageClassification",
    "ForAudioClassification",
    "ForRewardModel",
)
# the longest header that the format allows
_LONGEST = 100_000_000


def check(name: str, folder: Path, scorer: bool = False) -> list[Problem]:
    """What is missing in a folder, or damaged, or for another task.

    Args:
        name: of the model, as messages call it.
        scorer: the weights may be those of a reward model too.
    """
    where, config = f"model {name}", folder / "config.json"
    if (folder / "adapter_config.json").is_file():
        remedy = f"give its base as --model; to train it further, --lora.init_from {folder} too"
        return [Problem(where, "the folder holds an adapter, no model", remedy)]
    if not config.is_file():
        return [Problem(where, "the folder has no config.json")]
    stored = _object(config)
    if stored is None:
        problems = [_damaged(where, config.name, "it is no JSON object")]
    else:
        problems = other_task(name, stored, scorer)
    problems += _weights(where, folder)
    if not has_tokenizer(folder):
        remedy = "copy tokenizer.json and tokenizer_config.json of the model into it"
        problems.append(Problem(where, "the folder has no tokenizer", remedy))
    elif _cut(folder / TOKENIZERS[0]):
        problems.append(_damaged(where, TOKENIZERS[0], "it ends too early"))
    return problems


def other_task(name: str, config: Mapping[str, Any], scorer: bool) -> list[Problem]:
    """What is wrong where config.json names only classes without an output layer for tokens.

    Args:
        scorer: a reward model is none of these.
    """
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    allowed = (SCORER,) if scorer else ()
    wrong = [one for one in named if str(one).endswith(_CLASSIFIERS)]
    if not wrong or len(wrong) < len(named) or str(wrong[0]).endswith(allowed):
        return []
    what = f"config.json names {wrong[0]}, which classifies texts and writes none"
    remedy = "give the language model that it was made from"
    if str(wrong[0]).endswith(SCORER) and not scorer:
        what = f"config.json names {wrong[0]}, a reward model or classifier, no language model"
        remedy += "; only --objective reward takes a reward model"
    return [Problem(f"model {name}", what, remedy)]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / file).is_file() for file in TOKENIZERS)


def _weights(where: str, folder: Path) -> list[Problem]:
    files = sorted(folder.glob("*.safetensors"))
    pickled = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt*")))
    if not files and pickled:
        what = (
            f"its weights are pickles only ({', '.join(pickled)}), which can run code when opened"
        )
        remedy = "convert them with save_pretrained(..., safe_serialization=True) if you trust them"
        return [Problem(where, what, remedy)]
    if not files:
        return [Problem(where, "the folder has no weights (*.safetensors)")]
    missing = _listed(folder) - {file.name for file in files}
    if missing:
        what = f"the folder lacks {', '.join(sorted(missing))}, which {_INDEX} names"
        return [Problem(where, what, "copy it again")]
    wrong = {file.name: _wrong_weights(file) for file in files}
    return [_damaged(where, file, what) for file, what in wrong.items() if what]


def _listed(folder: Path) -> set[str]:
    """The files that an index of several names; none without an index that can be read."""
    try:
        found = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        return set(found["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return set()


def _wrong_weights(file: Path) -> str:
    """What is wrong with a file of the safetensors format; "" where nothing is.

    It begins with the length of its header, 8 bytes; the header says where each tensor ends.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST):
            return "its header is cut"
        try:
            header = json.loads(stream.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "its header can't be read"
    held = size - 8 - length
    wanted = max(ends, default=0)
    return "" if held == wanted else f"it holds {held:,} bytes of weights, its header {wanted:,}"


def _object(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _cut(file: Path) -> bool:
    """Whether a JSON object does not come to its end; all of it may be large."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 64))
        return not stream.read().rstrip().endswith(b"}")


def _damaged(where: str, file: str, what: str) -> Problem:
    return Problem(where, f"{file} is damaged: {what}", "copy it again")
