"""All that is settled before a GGUF file is begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aift_ray.config import ExportConfig
from aift_ray.conversion import (
    format_support,
    gguf_adapter,
    gguf_families,
    gguf_file,
    gguf_tensors,
    gguf_types,
    modelfile,
)
from aift_ray.conversion import gguf_vocab as vocabulary
from aift_ray.conversion.gguf_families import Family
from aift_ray.conversion.gguf_tensors import Target
from aift_ray.conversion.gguf_vocab import Vocabulary
from aift_ray.conversion.pre_tokenizers import PROBES
from aift_ray.errors import ModelError, Problem, UserError
from aift_ray.models import fingerprint, hub
from aift_ray.models.hub import out_of_reach
from aift_ray.models.scaled_rope import scaling_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class GgufPlan:
    """A GGUF file that could be written.

    Attributes:
        config: of the language model.
        prompts: folder or Hub id of the tokenizer.
        vocabulary: None: the file of an adapter alone, which has none.
        targets: the tensors: of the model before an adapter is merged, or of the adapter.
        outtype: of the matrices.
        needed: bytes of the tensors.
        unheld: of an adapter alone, what its file has no place for and its answers need.
    """

    config: Any
    family: Family
    prompts: str
    tokenizer: Any
    vocabulary: Vocabulary | None
    targets: list[Target]
    outtype: str
    needed: int
    unheld: Sequence[str] = ()

    @property
    def notes(self) -> list[str]:
        """What is not the same in the file as in the model."""
        if self.vocabulary is None:
            return list(self.unheld)
        found = list(self.vocabulary.notes)
        if self.vocabulary.differing:
            number, most = self.vocabulary.differing, len(PROBES)
            found.append(f"llama.cpp splits {number} of {most} sample texts into other tokens")
        return found


def prepare(
    config: ExportConfig, location: str, adapter: Path | None, dtype: object, rows: int = 0
) -> GgufPlan:
    """Look at the configuration, the names of the weights and the tokenizer.

    Args:
        rows: of the embeddings, that the adapter needs at least.

    Raises:
        UserError: with everything that a GGUF file can't hold.
    """
    text = hub.load_config(location).get_text_config(decoder=True)
    text.vocab_size = max(text.vocab_size, rows)
    problems = gguf_types.missing(config.outtype, "outtype")
    found = gguf_families.family(text)
    if isinstance(found, str):
        raise ModelError([format_support.refused(config, location, found)])
    outtype = config.outtype
    if outtype == "auto":
        outtype = "bf16" if str(dtype) == "torch.bfloat16" else "f16"
    targets: list[Target] = []
    try:
        targets = _targets(config, location, adapter, text, found)
    except UserError as error:
        problems += error.problems
    # the template that an adapter was trained with lies beside it
    own = adapter if adapter and (adapter / "tokenizer_config.json").is_file() else location
    tokenizer = hub.load_tokenizer(str(own))
    alone = adapter is not None and not config.merge_adapter
    words = None
    try:
        if not alone:
            words = vocabulary.read(tokenizer, text.vocab_size, hub.stop_ids(location))
            problems += _differing(config, words)
    except UserError as error:
        problems += error.problems
    if problems:
        raise ModelError(problems)
    kinds = gguf_types.types(targets, outtype)
    needed = gguf_file.size(targets, kinds)
    unheld = _unheld(location, adapter, tokenizer) if adapter and alone else []
    return GgufPlan(text, found, str(own), tokenizer, words, targets, outtype, needed, unheld)


def _unheld(location: str, adapter: Path, tokenizer: Any) -> list[str]:
    """Where the base's file makes other prompts than the adapter was trained with."""
    if tokenizer.chat_template == hub.load_tokenizer(location).chat_template:
        return []
    how = f"llama-server --jinja --chat-template-file {adapter / 'chat_template.jinja'}"
    return [f"the base's file has another chat template than the adapter: give {how}"]


def _targets(
    config: ExportConfig, location: str, adapter: Path | None, text: PreTrainedConfig, found: Family
) -> list[Target]:
    scaling = scaling_of(location)
    if adapter and not config.merge_adapter and scaling:
        what = f"its base was trained with rope_scaling {scaling}, which a GGUF file of an adapter "
        what += "has no place for"
        raise ModelError([Problem(f"adapter {adapter}", what, "give --merge-adapter true")])
    if adapter and not config.merge_adapter:
        return gguf_adapter.targets(adapter, text, found)
    folder = fingerprint.on_disk(location)
    if folder is None or not fingerprint.weight_files(folder):
        raise ModelError([out_of_reach(config.model)])
    try:
        return gguf_tensors.targets(folder, text, found)
    except gguf_tensors.NoPlace as error:
        raise ModelError([format_support.refused(config, location, str(error))]) from None


def _differing(config: ExportConfig, words: Vocabulary) -> list[Problem]:
    if not words.differing or config.tokenizer == "nearest":
        return []
    what = "llama.cpp has no tokenizer that splits texts as this one does: the nearest, "
    what += f"{words.pre if words.model == 'gpt2' else 'merging by scores'}, makes other tokens of "
    what += f"{words.differing} of {len(PROBES)} sample texts"
    remedy = "give --tokenizer nearest to write the file all the same; answers may be worse"
    return [Problem("tokenizer", what, remedy)]


def write(plan: GgufPlan, file: Path, final: Path, model: str, weights: Path | None) -> None:
    """Write the file of a model, and the Modelfile beside it.

    Args:
        final: the name that the file will have.
        model: its name for people.
        weights: folder of the model with the adapter merged; None: as planned.

    Raises:
        OSError: it could not be written.
        ModelError: a weight does not fit into the type.
    """
    targets, words = plan.targets, plan.vocabulary
    assert words, "the file of an adapter alone is written by gguf_adapter"
    if weights:
        targets = gguf_tensors.targets(weights, plan.config, plan.family)
    gguf_file.write_model(file, model, plan.config, plan.family, words, targets, plan.outtype)
    special = words.special
    ends = [special[name] for name in ("eos", "eot") if name in special]
    stops = [words.tokens[number] for number in ends]
    path = Path(plan.prompts) / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = modelfile.text(final.name, plan.tokenizer, stops, generation, words.adds["bos"])
    beside(final).write_text(text, encoding="utf-8")


def beside(file: Path) -> Path:
    """The Modelfile of a GGUF file."""
    return file.with_suffix(".Modelfile")
