"""Which rows a run reads, and how they become token ids."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from aift_ray.config.mixture_config import MixedSet
from aift_ray.config.section import Fraction, Section, memory_size, setting

_ENCODINGS = dict.fromkeys(("shift-jis", "sjis", "windows-31j", "ms932"), "cp932")
_ENCODINGS |= {"utf8": "utf-8", "utf-8-sig": "utf-8", "eucjp": "euc-jp"}


class DataConfig(Section):
    """Which rows are read, and how they become token ids."""

    train_files: list[str] = setting(
        [],
        "training files, folders or globs (.jsonl .json .csv .tsv .txt, each also .gz or .zst; "
        ".parquet .arrow .xlsx; a folder written by datasets.save_to_disk); s3:// and gs:// too",
    )
    mixture: list[MixedSet] = setting(
        [],
        "mixture of training sets: [{files: [F], weight: W | rows: N | epochs: X, name: NAME}];"
        " replaces train_files",
    )
    eval_files: list[str] = setting([], "evaluation files, folders or globs")
    validation_fraction: Fraction = setting(
        0.0, "share of the training rows held out for evaluation; not with eval files"
    )
    near_duplicates: Literal["count", "drop", "off"] = setting(
        "count",
        "training rows that are near-duplicates of evaluation rows: count them, drop them, or "
        "skip the check",
    )
    near_duplicate_threshold: float = setting(
        0.8,
        "share of common character 5-grams above which two rows are near-duplicates",
        ge=0.5,
        le=1,
    )
    contamination_files: list[str] = setting(
        [], "files of test rows; training rows that nearly contain one are counted or dropped"
    )
    packing: Literal["concat", "fill", "false"] = setting(
        "concat",
        "concat: the examples of a micro-batch end to end in one row; fill: rows filled up to "
        "sequence_length; false: padding",
    )
    tokens_per_micro_batch: Annotated[int, Field(ge=8)] | None = setting(
        None,
        "maximum number of tokens of a micro-batch, in place of training.batch_size; the global"
        " batch does not change; default with parallel.offload: what the GPU holds",
    )
    sequence_length: Annotated[int, Field(ge=8)] = setting(
        2048, "maximum number of tokens of a row; limited to the context of the model"
    )
    on_bad_row: Literal["error", "skip"] = setting(
        "error", "error: a malformed row stops the run; skip: it is counted and left out"
    )
    on_long_row: Literal["truncate", "error"] = setting(
        "truncate", "truncate: the middle of the prompt is cut, never the end of the answer"
    )
    text_unit: Literal["line", "paragraph", "file"] = setting(
        "line", "what one document is in a .txt file"
    )
    encoding: Literal["utf-8", "auto", "cp932", "euc-jp"] = setting(
        "utf-8", "encoding of text files; auto: CP932 if a file cannot be anything else, else UTF-8"
    )
    columns: dict[str, str] = setting(
        {},
        "maps the keys of a row to columns: instruction=質問,output=回答; common column names are "
        "recognized without it",
    )
    sheet: str | None = setting(None, "sheet of .xlsx files; default: the only one with rows")
    hidden_rows: Literal["train", "skip"] = setting(
        "train", "rows of .xlsx files that are hidden or filtered out: trained, or left out"
    )
    system_prompt: str | None = setting(None, "system message for rows that have none")
    chat_template: str | None = setting(
        None, "file with a Jinja chat template that replaces the model's own; saved with the model"
    )
    train_turns: Literal["all", "last"] = setting(
        "all", "which answers of a conversation are trained"
    )
    train_thoughts: Literal["all", "masked", "none"] = setting(
        "all", "reasoning before answers: all: trained; masked: kept but not trained; none: removed"
    )
    train_end: Literal["turn", "all", "none"] = setting(
        "turn", "end-of-turn tokens to train: those of trained answers, of all messages, or none"
    )
    on_rewritten_turn: Literal["split", "error", "keep"] = setting(
        "split",
        "answers that the template renders differently in the history, for example without "
        "their reasoning: split: one row per answer; error: a malformed row; keep: trained as "
        "rendered in the history",
    )
    prepare: Literal["local", "ray"] = setting(
        "local",
        "where to tokenize: in this process, or on all CPUs of the Ray cluster; the result is "
        "the same",
    )
    cache_dir: str | None = setting(
        None, "folder of the token cache, shared by all nodes; default: ~/.cache/aift_ray"
    )
    cache_limit: str | None = setting(
        None,
        "total size of the token caches, such as 20GB, above which the least recently used are "
        "deleted; default: none",
    )

    @field_validator("cache_limit")
    @classmethod
    def _limit(cls, value: str | None) -> str | None:
        return value if value is None else memory_size(value)

    @field_validator("columns")
    @classmethod
    def _each_column_once(cls, value: dict[str, str]) -> dict[str, str]:
        twice = [name for name, number in Counter(value.values()).items() if number > 1]
        if twice:
            raise ValueError(f"{' and '.join(twice)} is named for two keys: give each a column")
        return value

    @field_validator("packing", mode="before")
    @classmethod
    def _packing_as_word(cls, value: object) -> Any:
        words = {"true": "concat", "false": "false", "none": "false"}
        return words.get(str(value).lower(), value)

    @field_validator("encoding", mode="before")
    @classmethod
    def _encoding_by_its_names(cls, value: object) -> Any:
        name = str(value).lower().replace("_", "-")
        return _ENCODINGS.get(name, name)
