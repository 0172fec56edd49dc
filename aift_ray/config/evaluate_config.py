"""Every setting of `aift-ray evaluate`, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from aift_ray.config.section import SHIPPED_MODEL, NotNegative, Positive, Settings, setting
from aift_ray.errors import Problem


class EvaluateConfig(Settings):
    """Scores of models and adapters on tasks."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {
        "models": "model",
        "adapters": "adapter",
        "tasks": "task",
        "base_url": "base-url",
        "api_key_file": "api-key-file",
        "data_dir": "data-dir",
        "num_few_shot": "num-few-shot",
        "num_workers": "num-workers",
        "tokens_per_batch": "tokens-per-batch",
        "max_concurrent": "max-concurrent",
        "training_data": "training-data",
        "judge_url": "judge-url",
        "judge_model": "judge-model",
        "judge_key_file": "judge-key-file",
    }

    models: list[str] = setting(
        [], f"catalog names, Hub ids, or folders of models or adapters; default: {SHIPPED_MODEL}"
    )
    adapters: list[str] = setting(
        [],
        "adapters, FOLDER or NAME=FOLDER, each evaluated on the model; with adapters one --model",
    )
    tasks: list[str] = setting(
        [], "names of built-in tasks, YAML files of tasks, or data files of rows"
    )
    base_url: str | None = setting(
        None, "evaluate the models of this OpenAI-compatible API, such as http://127.0.0.1:8000/v1"
    )
    api_key_file: str | None = setting(
        None, "with base_url: file that holds the API key; default: the variable OPENAI_API_KEY"
    )
    judge_url: str | None = setting(
        None,
        "OpenAI-compatible API whose model judges the answers, such as http://127.0.0.1:8001/v1",
    )
    judge_model: str | None = setting(None, "with judge_url: name of the model that judges")
    judge_key_file: str | None = setting(
        None, "with judge_url: file that holds its key; default: JUDGE_API_KEY or OPENAI_API_KEY"
    )
    sandbox: Literal["bubblewrap"] | None = setting(
        None, "sandbox for programs that models write, needed by tasks with the score pass_at_1"
    )
    training_data: list[str] = setting(
        [],
        "training data of the models, which is searched for rows of the tasks: data files, "
        "folders of runs, or token caches",
    )
    overlap_characters: Annotated[int, Field(ge=5, le=200)] = setting(
        20, "with training_data: number of consecutive common characters that count as a match"
    )
    data_dir: str | None = setting(
        None, "folder of the built-in tasks' data files; default: the variable AIFT_TASKS"
    )
    output: str | None = setting(
        None,
        "JSON file of the scores; samples.jsonl and report.html are written beside it; "
        "default: ./outputs/DATE-TIME-evaluation/results.json",
    )
    overwrite: bool = setting(False, "replace the results of another evaluation")
    limit: NotNegative = setting(0, "use only the first rows of each task; 0: all")
    num_few_shot: NotNegative | None = setting(
        None, "examples with answers before each prompt; default: each task's own"
    )
    chat: bool | None = setting(
        None, "write prompts in the model's chat template; default: each task's own"
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = setting(
        "auto", "dtype of the computation; auto: bf16 on a GPU that has it, fp32 on a CPU"
    )
    num_workers: NotNegative = setting(0, "processes, one a GPU; 0: every GPU, or one on CPUs")
    tokens_per_batch: Annotated[int, Field(ge=64)] = setting(
        4096, "maximum number of prompt tokens in a batch"
    )
    max_concurrent: Positive = setting(
        16, "answers at a time that a worker generates, or requests to base_url or judge_url"
    )
    seed: NotNegative = setting(0, "seed of the resampling for intervals and tests")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = setting(
        0.95, "confidence level of the intervals, and of the differences that are called better"
    )
    resamples: Annotated[int, Field(ge=100)] = setting(10_000, "resamples of the rows")

    def candidates(self) -> list[str]:
        """The models, the shipped one where none is named."""
        return self.models or [SHIPPED_MODEL]

    def adapter_folders(self) -> dict[str, str]:
        """Names of the adapters and their folders, in the order given."""
        found = {}
        for entry in self.adapters:
            name, separator, folder = entry.partition("=")
            found[name if separator else Path(entry).name] = folder if separator else entry
        return found

    def judged_scores(self) -> list[str]:
        """Scores of the judge, where there is one; answers of several models are compared too."""
        if not self.judge_url:
            return []
        several = len(self.candidates()) + len(self.adapters) > 1
        return ["judge_win_rate", "judge_grade"] if several else ["judge_grade"]

    def contradictions(self) -> list[Problem]:
        """Conflicting settings."""
        found = []
        if not self.tasks:
            remedy = "name some with --task, for example --task rows.jsonl"
            found.append(Problem("tasks", "no task is given", remedy))
        if self.adapters and len(self.candidates()) > 1:
            what = f"adapters need one model, and {len(self.models)} are given"
            remedy = "give one --model, or adapter folders as further --model"
            found.append(Problem("adapters", what, remedy))
        if len(self.adapter_folders()) < len(self.adapters):
            remedy = "name them: --adapter NAME=FOLDER"
            found.append(Problem("adapters", "two adapters have the same name", remedy))
        repeated = {model for model in self.models if self.models.count(model) > 1}
        found += [Problem("models", f"{model} is given twice") for model in sorted(repeated)]
        found += self._judge()
        if "overlap_characters" in self.model_fields_set and not self.training_data:
            what = "acts with training_data only"
            found.append(Problem("overlap_characters", what, "leave it out"))
        if self.base_url:
            found += self._with_base_url()
        elif self.api_key_file:
            found.append(Problem("api_key_file", "acts with base_url only", "leave it out"))
        return found

    def _judge(self) -> list[Problem]:
        if not self.judge_url:
            what = "acts with judge_url only"
            given = ("judge_model", "judge_key_file")
            return [Problem(name, what, "leave it out") for name in given if getattr(self, name)]
        found = _no_address("judge_url", self.judge_url)
        if not self.judge_model:
            what = "is not given, and judge_url needs the name of a model that it serves"
            found.append(Problem("judge_model", what, "give --judge-model NAME"))
        return found

    def _with_base_url(self) -> list[Problem]:
        found = _no_address("base_url", str(self.base_url))
        if self.adapters:
            what = "names folders, and base_url computes with models of its own"
            remedy = "give the names under which it serves them as --model"
            found.append(Problem("adapters", what, remedy))
        if not self.models:
            what = "is not given, and base_url needs the name of a model that it serves"
            found.append(Problem("models", what, "give --model NAME"))
        names = ("dtype", "num_workers", "tokens_per_batch")
        for name in names:
            if name in self.model_fields_set:
                found.append(Problem(name, "does not act with base_url", "leave it out"))
        return found


def _no_address(name: str, value: str) -> list[Problem]:
    if value.startswith(("http://", "https://")):
        return []
    what = f"{value!r} is not allowed: give an http:// or https:// address"
    return [Problem(name, what)]
