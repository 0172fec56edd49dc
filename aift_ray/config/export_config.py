"""Every setting of `aift-ray export`, declared once."""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from aift_ray.config.section import SHIPPED_MODEL, NotNegative, Positive, Settings, setting
from aift_ray.errors import Problem

# formats of 4 bits that are fitted to rows
FITTED = ("gptq", "awq")
# settings that act for some formats only
_ACTS_FOR = {
    "dtype": ("hf",),
    "outtype": ("gguf",),
    "tokenizer": ("gguf",),
    "merge_adapter": ("gguf",),
    "calibration_files": FITTED,
    "calibration_rows": FITTED,
    "eval_files": (*FITTED, "fp8"),
    "eval_rows": (*FITTED, "fp8"),
    "sequence_length": (*FITTED, "fp8"),
}
# formats of `aift-ray quantize`: bits, and the kind of 4 bits
BITSANDBYTES: dict[str, tuple[Literal[4, 8], Literal["nf4", "fp4"]]] = {
    "int8": (8, "nf4"),
    "nf4": (4, "nf4"),
    "fp4": (4, "fp4"),
}
# types of GGUF that llama.cpp's own code quantizes
K_QUANTS = ("q6_k", "q5_k_m", "q4_k_m", "q3_k_m")
_ROUNDED = ("f16", "bf16", "q8_0", *K_QUANTS, "q5_1", "q5_0", "q4_1", "q4_0")
# what is measured side by side
COMPARED = (
    *(f"gguf:{kind}" for kind in _ROUNDED),
    *BITSANDBYTES,
    *FITTED,
    "fp8",
)


class ExportConfig(Settings):
    """A model in the format of another program, with an adapter merged where one is given."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {
        "merge_adapter": "merge-adapter",
        "calibration_files": "calibration-file",
        "calibration_rows": "calibration-rows",
        "eval_files": "eval-file",
        "eval_rows": "eval-rows",
        "sequence_length": "sequence-length",
    }

    model: str = setting(SHIPPED_MODEL, "catalog name, Hub id or folder of the model")
    adapter: str | None = setting(None, "folder of a LoRA adapter")
    format: Literal["hf", "gguf", "awq", "gptq", "fp8"] = setting(
        "gguf",
        "gguf: a file for llama.cpp and Ollama; hf: a plain folder of transformers; gptq, awq: 4 "
        "bits for vLLM; fp8: 8 bits for vLLM",
    )
    output: str | None = setting(
        None,
        "output: a .gguf file, or a folder for other formats; default: ./outputs/DATE-TIME-export",
    )
    compare: list[str] = setting(
        [],
        "do not export, but measure these formats side by side on eval_files, and write the table "
        f"to output, a .json file: {', '.join(COMPARED)}",
    )
    overwrite: bool = setting(False, "replace what this command has written before")
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = setting(
        "auto", "hf: dtype of the weights; auto: the model's own"
    )
    outtype: Literal[
        "auto",
        "f32",
        "f16",
        "bf16",
        "q8_0",
        "q6_k",
        "q5_k_m",
        "q4_k_m",
        "q3_k_m",
        "q5_1",
        "q5_0",
        "q4_1",
        "q4_0",
    ] = setting("auto", "gguf: type of the matrices; auto: bf16 for bf16 models, else f16")
    merge_adapter: bool = setting(
        True, "gguf: false writes the adapter alone, as a LoRA file for llama-server --lora"
    )
    tokenizer: Literal["exact", "nearest"] = setting(
        "exact",
        "gguf: nearest writes a file although llama.cpp splits some texts into other tokens",
    )

    calibration_files: list[str] = setting([], "gptq, awq: calibration rows (formats as for train)")
    calibration_rows: Positive = setting(256, "gptq, awq: maximum number of calibration rows")
    eval_files: list[str] = setting(
        [], "gptq, awq, fp8: rows to measure on; default: the held-out rows that ship with aift_ray"
    )
    eval_rows: NotNegative = setting(
        64, "gptq, awq, fp8: maximum number of rows to measure on; 0: do not measure"
    )
    sequence_length: Annotated[int, Field(ge=8)] = setting(
        512, "gptq, awq, fp8: maximum number of tokens of a row, to calibrate and to measure on"
    )

    def contradictions(self) -> list[Problem]:
        """Conflicting settings."""
        if self.compare:
            return self._compared()
        found = [
            Problem(
                name,
                f"acts with {', '.join(kinds)} only, not {self.format}",
                "leave it out",
            )
            for name, kinds in _ACTS_FOR.items()
            if name in self.model_fields_set and self.format not in kinds
        ]
        found += self._unfitted([self.format])
        if self.eval_rows == 0 and self.eval_files:
            found.append(Problem("eval_files", "are not read with eval_rows 0"))
        if self.format == "hf" and self.adapter is None and self.dtype == "auto":
            what = "hf merges an adapter or changes the dtype, and neither is asked for"
            found.append(Problem("format", what, "give --adapter or --dtype, or copy the folder"))
        if not self.merge_adapter and self.adapter is None:
            found.append(Problem("merge_adapter", "false needs an adapter", "give --adapter"))
        if not self.merge_adapter and self.outtype not in ("auto", "f32"):
            what = f"{self.outtype}: an adapter alone is written in f32"
            found.append(Problem("outtype", what, "leave it out"))
        if not self.merge_adapter and "tokenizer" in self.model_fields_set:
            what = "the file of an adapter alone has none: llama.cpp takes that of the base's file"
            found.append(Problem("tokenizer", what, "leave it out"))
        return found

    def _unfitted(self, formats: list[str]) -> list[Problem]:
        """Formats that are fitted to rows, without any."""
        named = [one for one in formats if one in FITTED]
        if not named or self.calibration_files:
            return []
        what = f"{named[0]} is fitted to rows like those it will read, and none are given"
        return [Problem("calibration_files", what, "give --calibration-file rows.jsonl")]

    def _compared(self) -> list[Problem]:
        """What is wrong with a comparison."""
        found = []
        for name in self.compare:
            if name not in COMPARED:
                near = difflib.get_close_matches(name, COMPARED, 1)
                remedy = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(COMPARED)}"
                found.append(Problem("compare", f"there is no format {name!r}", remedy))
        if len(set(self.compare)) < len(self.compare):
            found.append(Problem("compare", "a format is named twice", "name each once"))
        for name in ("format", "dtype", "outtype", "tokenizer", "merge_adapter"):
            if name in self.model_fields_set:
                what = "does not act with compare, which names formats and merges the adapter"
                found.append(Problem(name, what, "leave it out"))
        found += self._unfitted(self.compare)
        if not set(FITTED) & set(self.compare):
            given = ("calibration_files", "calibration_rows")
            names = [name for name in given if name in self.model_fields_set]
            found += [
                Problem(name, "acts with gptq and awq only", "leave it out") for name in names
            ]
        if self.eval_rows == 0:
            found.append(Problem("eval_rows", "0 leaves nothing to compare by", "leave it out"))
        return found
