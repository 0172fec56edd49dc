"""The tokenizer as the models that a run saves hold it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizerFiles:
    """Written once, before the weights are loaded, and copied into each saved model.

    So no process keeps a vocabulary for that: Gemma's 262,144 tokens take 110 MB, and 110 more
    while they are written.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the files anew."""
        self.remove()
        tokenizer.save_pretrained(self._folder)

    def copy(self, folder: Path) -> None:
        """Put the tokenizer and its chat template into a model's folder."""
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)

    def remove(self) -> None:
        """Remove the files, after the last model was saved."""
        shutil.rmtree(self._folder, ignore_errors=True)
