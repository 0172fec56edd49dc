"""A model's chat template, asked about rows before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aift_ray.config import DataConfig
from aift_ray.data.examples import Example, Fault
from aift_ray.errors import UserError
from aift_ray.models.catalog import CATALOG
from aift_ray.models.model_location import stop_ids

if TYPE_CHECKING:
    from aift_ray.data.prompts.prompt_encoder import PromptEncoder

# bytes of a tokenizer's file that is read within a second
_LARGEST = 8 * 2**20

Ask = Callable[[Example], Fault | None]


def is_asked(example: Example) -> bool:
    """Whether a template may refuse a row: a question and its answer it does not."""
    turns = example.messages or example.tools or example.options or example.thought
    return example.kind in ("messages", "instruction") and bool(turns)


def ask_template(name: str, data: DataConfig) -> Ask | None:
    """What tells why the template of a model refuses a row; None where it is not to be had at once.

    Args:
        name: of the model.

    Raises:
        UserError: the template can't be trained on.
    """
    entry = CATALOG.get(name)
    folder = Path(entry.location if entry else name).expanduser()
    file = folder / "tokenizer.json"
    if not file.is_file() or file.stat().st_size > _LARGEST:
        return None
    try:
        encoder = _encoder(folder, entry.template if entry else "", data)
    except UserError:
        raise
    except Exception:
        # a damaged tokenizer is told of when the model is read
        return None

    def ask(example: Example) -> Fault | None:
        from aift_ray.data.prompts.prompt_encoder import RowError

        try:
            for each in filter(None, (example, example.rejected)):
                if each.row:
                    encoder.prompt_ids(each)
                else:
                    # rendered, and not tokenized
                    next(encoder.steps(each))
        except RowError as error:
            return Fault(example.file, example.line, str(error), error.remedy)
        return None

    return ask


def _encoder(folder: Path, template: str, data: DataConfig) -> PromptEncoder:
    from transformers import PreTrainedTokenizerFast

    from aift_ray.data.prompts.alpaca import KNOWN
    from aift_ray.data.prompts.prompt_encoder import PromptEncoder
    from aift_ray.data.prompts.supervision import Supervision
    from aift_ray.data.prompts.template_file import read_template

    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    if data.chat_template:
        tokenizer.chat_template = read_template(data.chat_template)
    elif not tokenizer.chat_template:
        tokenizer.chat_template = KNOWN.get(template)
    return PromptEncoder(
        tokenizer,
        data.system_prompt,
        extra_stop_ids=stop_ids(str(folder)),
        supervision=Supervision.of(data),
    )
