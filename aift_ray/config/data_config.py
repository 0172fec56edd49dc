"""Which rows a run reads, and how they become token ids."""

from __future__ import annotations

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
        "training files, folders or globs (.jsonl .json .csv .tsv .txt, each .gz or .zst; .parquet "
        ".arrow .xlsx; a folder of datasets.save_to_disk); s3://, gs:// too",
    )
    mixture: list[MixedSet] = setting(
        [],
        "several training sets: [{files: [F], weight: W | rows: N | epochs: X, name: NAME}]; in "
        "place of train_files",
    )
    eval_files: list[str] = setting([], "evaluation files, folders or globs")
    validation_fraction: Fraction = setting(
        0.0, "share of the training rows held out for evaluation; not with eval files"
    )
    near_duplicates: Literal["count", "drop", "off"] = setting(
        "count",
        "training rows that are nearly evaluation rows: count them, drop them, or don't look",
    )
    near_duplicate_threshold: float = setting(
        0.8, "share of character 5-grams in common from which rows are nearly equal", ge=0.5, le=1
    )
    contamination_files: list[str] = setting(
        [], "files of tests; training rows that nearly hold one are counted, or dropped"
    )
    packing: Literal["concat", "fill", "false"] = setting(
        "concat", "concat: a micro-batch end to end in one row; fill: full rows; false: padding"
    )
    tokens_per_micro_batch: Annotated[int, Field(ge=8)] | None = setting(
        None,
        "fill each micro-step of a worker with units up to so many tokens, in place of "
        "training.batch_size; the global batch stays",
    )
    sequence_length: Annotated[int, Field(ge=8)] = setting(
        2048, "tokens a row at most; at most what the model takes"
    )
    on_bad_row: Literal["error", "skip"] = setting("error", "a wrong row stops, or is counted")
    on_long_row: Literal["truncate", "error"] = setting(
        "truncate", "longer rows lose the middle of the prompt, never the end of the answer"
    )
    text_unit: Literal["line", "paragraph", "file"] = setting("line", "a document of a .txt file")
    encoding: Literal["utf-8", "auto", "cp932", "euc-jp"] = setting(
        "utf-8", "of text files; auto: CP932 where a file can be nothing else, else UTF-8"
    )
    columns: dict[str, str] = setting(
        {},
        "which column or key holds which key of a row: instruction=質問,output=回答; common names "
        "of columns are known without",
    )
    sheet: str | None = setting(None, "sheet of .xlsx files; default: the only one with rows")
    system_prompt: str | None = setting(None, "system message put before rows without one")
    chat_template: str | None = setting(
        None, "file of a Jinja chat template, in place of the model's own; saved with the model"
    )
    train_turns: Literal["all", "last"] = setting("all", "which answers of a row are trained")
    train_thoughts: Literal["all", "masked", "none"] = setting(
        "all", "thoughts before answers: trained, shown and not trained, or left out"
    )
    train_end: Literal["turn", "all", "none"] = setting(
        "turn", "end-of-turn tokens trained: those of trained answers, of all messages, or none"
    )
    on_rewritten_turn: Literal["split", "error", "keep"] = setting(
        "split",
        "answers that the template writes otherwise once they are history, as without their "
        "thoughts: one row an answer, a wrong row, or trained as the history shows them",
    )
    prepare: Literal["local", "ray"] = setting(
        "local", "who tokenizes: this process, or all CPUs of the Ray cluster; same result"
    )
    cache_dir: str | None = setting(
        None, "folder of the token cache, seen by all nodes; default: ~/.cache/aift_ray"
    )
    cache_limit: str | None = setting(
        None, "size of all token caches, 20GB, above which those longest unused go; default: none"
    )

    @field_validator("cache_limit")
    @classmethod
    def _limit(cls, value: str | None) -> str | None:
        return value if value is None else memory_size(value)

    @field_validator("packing", mode="before")
    @classmethod
    def _packing_as_word(cls, value: Any) -> Any:
        words = {"true": "concat", "false": "false", "none": "false"}
        return words.get(str(value).lower(), value)

    @field_validator("encoding", mode="before")
    @classmethod
    def _encoding_by_its_names(cls, value: Any) -> Any:
        name = str(value).lower().replace("_", "-")
        return _ENCODINGS.get(name, name)
