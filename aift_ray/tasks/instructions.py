"""IFEval's instructions: whether an answer follows those of its row.

Zhou et al. 2023, arXiv:2311.07911. English ones are checked by lm-evaluation-harness's own code,
the Japanese ones of M-IFEval (`ja:...`) here. Strict is the answer as it is, loose the best of the
answer without its first line, its last line, and its asterisks.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from aift_ray.tasks import instructions_ja

_JAPANESE = "ja:"
_FOR_JAPANESE = ("janome", "ja_sentence_segmenter", "langdetect")
_FOR_ENGLISH = ("lm_eval", "langdetect", "nltk", "immutabledict")
# these split English into words or sentences, by data that nltk downloads
_SPLITTING = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
_SPLITTER = "tokenizers/punkt_tab/english/"
# of a row: names of its instructions, and the arguments of each
NAMES, ARGUMENTS = "instruction_id_list", "kwargs"


class WrongInstruction(ValueError):
    """A row's instructions that can't be checked."""


@dataclass(frozen=True)
class Instructions:
    """What a row tells a model to do.

    Attributes:
        names: such as `ja:punctuation:no_comma`; those without a language are IFEval's.
        arguments: of each.
    """

    prompt: str
    names: tuple[str, ...]
    arguments: tuple[Mapping[str, Any], ...]

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Instructions:
        """The instructions of a row.

        Raises:
            WrongInstruction: they are none, or not known.
        """
        names, arguments = row.get(NAMES), row.get(ARGUMENTS)
        if not isinstance(names, list) or not isinstance(arguments, list) or not names:
            raise WrongInstruction(f"{NAMES} and {ARGUMENTS} are not two lists")
        if len(names) != len(arguments):
            what = f"{NAMES} holds {len(names)} instructions, {ARGUMENTS} {len(arguments)}"
            raise WrongInstruction(what)
        for name in names:
            if name not in _checks(name):
                raise WrongInstruction(f"there is no instruction {name}")
        # null stands for what is not given, as in a Parquet file
        given = [{key: v for key, v in each.items() if v is not None} for each in arguments]
        return cls(str(row.get("prompt", "")), tuple(names), tuple(given))

    def followed(self, answer: str) -> list[bool]:
        """Of each instruction, whether the answer follows it."""
        each = zip(self.names, self.arguments, strict=True)
        return [bool(answer.strip()) and self._follows(answer, *one) for one in each]

    def followed_loosely(self, answer: str) -> list[bool]:
        """The same, where what stands around the answer may be left out."""
        tried = [self.followed(each) for each in _variants(answer)]
        return [any(column) for column in zip(*tried, strict=True)]

    def _follows(self, answer: str, name: str, given: Mapping[str, Any]) -> bool:
        if name.startswith(_JAPANESE):
            return instructions_ja.CHECKS[name.removeprefix(_JAPANESE)](answer, **given)
        checked = _harness()[name](name)
        # as the harness does: what is false is not given
        checked.build_description(**{key: value for key, value in given.items() if value})
        if "prompt" in (checked.get_instruction_args() or {}):
            checked.build_description(prompt=self.prompt)
        return bool(checked.check_following(answer))


def missing(rows: Iterable[Mapping[str, Any]]) -> tuple[str, str] | None:
    """What the rows' instructions need and is not installed, and how to install it."""
    names = [str(name) for row in rows for name in row.get(NAMES) or ()]
    if packages := _missing_packages(names):
        return f"{', '.join(packages)}, not installed", 'pip install "aift-ray[ifeval]"'
    named = next((name for name in names if name in _SPLITTING), None)
    if named is None or _has_splitter():
        return None
    remedy = "python -m nltk.downloader punkt_tab, where there is a network, and copy ~/nltk_data"
    return f"nltk's data punkt_tab for {named}, which could not be downloaded", remedy


def _has_splitter() -> bool:
    # downloads it where there is a network
    _harness()
    try:
        import_module("nltk").data.find(_SPLITTER)
    except LookupError:
        return False
    return True


def _missing_packages(names: Sequence[str]) -> list[str]:
    needed = dict.fromkeys(
        package
        for name in names
        for package in (_FOR_JAPANESE if name.startswith(_JAPANESE) else _FOR_ENGLISH)
    )
    return [package for package in needed if not find_spec(package)]


def _checks(name: str) -> Collection[str]:
    if name.startswith(_JAPANESE):
        return {_JAPANESE + each for each in instructions_ja.CHECKS}
    return _harness()


def _harness() -> Mapping[str, Any]:
    # nltk says that it downloads, and that it could not
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        from lm_eval.tasks.ifeval import instructions_registry

    found: Mapping[str, Any] = instructions_registry.INSTRUCTION_DICT
    return found


def _variants(answer: str) -> Sequence[str]:
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(each.replace("*", "") for each in cut)]
