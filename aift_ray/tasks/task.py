"""What a task is: its rows, how they become prompts, and how answers are scored."""

from __future__ import annotations

import re
from typing import Literal

import jinja2
import jinja2.meta

from aift_ray.config.section import NotNegative, Positive, Section, setting
from aift_ray.errors import Problem
from aift_ray.tasks.row_templates import ENVIRONMENT, compiled, expression

# what a model writes is run
CODE = "pass_at_1"
# in the template of a program, what a model has written
ANSWER_NAME = "answer"
# of each kind, the first is the one that models are compared by
SCORES: dict[str, tuple[str, ...]] = {
    "choice": ("accuracy", "accuracy_per_token", "accuracy_per_character", "accuracy_normalized"),
    "generate": (
        "exact_match",
        "character_f1",
        "numeric_match",
        "rouge_l",
        "chrf",
        "bleu",
        "json_valid",
        "pearson",
        CODE,
        "ifeval_prompt_strict",
        "ifeval_prompt_loose",
        "ifeval_instruction_strict",
        "ifeval_instruction_loose",
        "judge_win_rate",
        "judge_grade",
    ),
    "text": ("bits_per_character", "perplexity"),
}
# of these a model behind an API says what they are
JUDGED = ("judge_win_rate", "judge_grade")
_INSTRUCTED = tuple(score for score in SCORES["generate"] if score.startswith("ifeval"))
_NOT_OF_TEXT = ("description", "prompt", "shot", "delimiter", "separator", "few_shot", "chat")
DEFAULTS = {
    "choice": ["accuracy", "accuracy_per_character"],
    "generate": ["exact_match", "character_f1"],
    "text": ["bits_per_character", "perplexity"],
}


class FewShot(Section):
    """Answered examples that stand before each prompt.

    The first rows of `files` are taken, the same for every prompt, so that models read them once.
    """

    files: list[str] = setting([], "data files; default: the last rows of the task's own, held out")
    number: NotNegative = setting(0, "examples before each prompt")


class Extract(Section):
    """How the answer is found in what the model writes."""

    pattern: str = setting("", "regular expression; its first group, or the whole match")
    take: Literal["first", "last"] = setting("last", "which of several matches")


class Judge(Section):
    """What a model that judges is told, for the scores judge_win_rate and judge_grade."""

    rubric: str = setting(
        "The answer is correct, complete, helpful, and in the language of the question.",
        "what makes an answer good",
    )
    lowest: int = setting(1, "judge_grade: grade of the worst answer", ge=0)
    highest: int = setting(10, "judge_grade: grade of the best answer", ge=1)


class HubDataset(Section):
    """Rows that `datasets` reads: `load_dataset(path, name, split=split)`."""

    path: str = setting(..., "of the dataset on the Hugging Face Hub, or a folder")
    name: str | None = setting(None, "of its configuration")
    split: str = setting(..., "of its rows")


class Task(Section):
    """One task of a YAML file.

    `prompt`, `shot` are Jinja2 templates over the fields of a row, `choices`, `label`, `answers`
    and `text` Jinja2 expressions, of which the name of a field is the simplest; in a sandbox.
    """

    name: str = setting(..., "of the task, in results", min_length=1)
    kind: Literal["choice", "generate", "text"] = setting(
        "generate", "choice: likeliest of choices; generate: an answer is written; text: likelihood"
    )
    files: list[str] = setting([], "data files, relative to this file or to --data-dir")
    columns: list[str] = setting(
        [], "names of the columns of .csv and .tsv files whose first line is a row"
    )
    source: str = setting("", "where the files come from, with their licence")
    hub: dict[str, HubDataset] = setting(
        {}, "datasets on the Hugging Face Hub that hold the rows of files which are not there"
    )
    description: str = setting("", "text before everything else")
    prompt: str = setting("", "template of what comes before the answer")
    choices: str | list[str] = setting([], "choice: expression of the choices, or the choices")
    label: str = setting("label", "choice: expression of the right one: its index or its text")
    answers: str = setting(
        "answers",
        'generate: expression of the right answer, or of a list; "": there is none',
    )
    program: str = setting(
        "", "generate: template of the Python program of pass_at_1; `answer` is what was written"
    )
    text: str = setting("text", "text: expression of the text")
    shot: str = setting(
        "", "template of the answer of an example; default: the first right answer or choice"
    )
    delimiter: str = setting("", "between a prompt and its answer")
    separator: str = setting("\n\n", "between examples")
    few_shot: FewShot = setting(FewShot(), "answered examples before each prompt")
    chat: bool = setting(False, "the prompt is a user's turn in the model's chat template")
    scores: list[str] = setting([], "what is computed, the one to compare by first")
    max_tokens: Positive = setting(256, "generate: of an answer")
    stop: list[str] = setting([], "generate: strings that end an answer and are not part of it")
    judge: Judge = setting(Judge(), "generate: what a model that judges is told")
    extract: Extract = setting(Extract(), "generate: how the answer is found in what is written")

    @property
    def computed(self) -> list[str]:
        """The scores of the task; models are compared by the first."""
        return self.scores or DEFAULTS[self.kind]

    @property
    def judged(self) -> list[str]:
        """The scores that a model behind an API gives."""
        return [score for score in self.computed if score in JUDGED]

    @property
    def coded(self) -> bool:
        """Whether what is written is run as a program."""
        return CODE in self.computed

    @property
    def instructed(self) -> bool:
        """Whether rows hold instructions that answers have to follow."""
        return any(score in _INSTRUCTED for score in self.computed)

    def contradictions(self) -> list[Problem]:
        """Conflicting fields, and templates that can't be read."""
        return self._of_kind() + self.of_any_kind()

    def _of_kind(self) -> list[Problem]:
        """Fields that are wrong for the kind of the task."""
        found = self._of_other_kinds()
        allowed = SCORES[self.kind]
        for score in self.scores:
            if score not in allowed:
                what = f"{score!r} is not allowed for kind {self.kind}: one of {', '.join(allowed)}"
                found.append(Problem("scores", what))
        if self.kind != "text" and not self.prompt.strip():
            found.append(
                Problem("prompt", "is empty", 'for example prompt: "質問：{{ question }}"')
            )
        if self.kind == "generate" and not self.answers:
            found += [
                Problem("scores", f"{score} compares with a right answer", "name it in answers")
                for score in self.computed
                if score not in (*JUDGED, *_INSTRUCTED, "json_valid", CODE)
            ]
        if self.kind == "choice" and not self.choices:
            remedy = "name the field that holds them, or list them"
            found.append(Problem("choices", "is empty", remedy))
        if self.coded != bool(self.program):
            what = f"and the score {CODE} go together: the program is what is run"
            found.append(Problem("program", what, "give both or none of them"))
        return found

    def of_any_kind(self) -> list[Problem]:
        """Fields that are wrong whatever the kind of the task is."""
        found = self._repeated()
        if "" in self.stop:
            what = "holds an empty string, which ends every answer before it begins"
            found.append(Problem("stop", what, "leave it out"))
        if self.judge.lowest >= self.judge.highest:
            found.append(Problem("judge.highest", f"is not above lowest, {self.judge.lowest}"))
        for name in ("prompt", "shot", "program"):
            try:
                compiled(getattr(self, name))
            except jinja2.TemplateSyntaxError as error:
                found.append(Problem(name, f"is no template: {error.message}"))
            else:
                found += self._unused_answer() if name == "program" else []
        for name in ("choices", "label", "answers", "text"):
            value = getattr(self, name)
            try:
                if isinstance(value, str) and value:
                    expression(value)
            except jinja2.TemplateSyntaxError as error:
                found.append(Problem(name, f"{value!r} is no expression: {error.message}"))
        try:
            re.compile(self.extract.pattern)
        except re.error as error:
            found.append(Problem("extract.pattern", f"is no regular expression: {error}"))
        return found

    def _repeated(self) -> list[Problem]:
        """What is listed more than once."""
        lists = {"scores": self.scores}
        if isinstance(self.choices, list):
            lists["choices"] = self.choices
        return [
            Problem(name, f"{value!r} is listed {values.count(value)} times", "list it once")
            for name, values in lists.items()
            for value in dict.fromkeys(values)
            if values.count(value) > 1
        ]

    def _of_other_kinds(self) -> list[Problem]:
        """Fields that are given, and act with other kinds only."""
        named = {
            name: (field.description or "").split(":")[0]
            for name, field in type(self).model_fields.items()
            if name != "kind"
        }
        shared = dict.fromkeys(_NOT_OF_TEXT, "choice and generate") if self.kind == "text" else {}
        others = {name: kind for name, kind in named.items() if kind in SCORES} | shared
        return [
            Problem(name, f"acts with kind {kind} only, and this is {self.kind}", "leave it out")
            for name, kind in others.items()
            if name in self.model_fields_set and kind != self.kind
        ]

    def _unused_answer(self) -> list[Problem]:
        """A program without what is written gives every answer the same score."""
        tree = ENVIRONMENT.parse(self.program)
        if not self.program or ANSWER_NAME in jinja2.meta.find_undeclared_variables(tree):
            return []
        remedy = r'for example program: "{{ prompt }}{{ answer }}\n{{ test }}"'
        return [Problem("program", "does not use `answer`, which is what is written", remedy)]
