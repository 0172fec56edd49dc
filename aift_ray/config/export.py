"""Every setting of `aift-ray export`, declared once."""

from __future__ import annotations

from typing import ClassVar, Literal

from aift_ray.config.section import SHIPPED_MODEL, Settings, setting
from aift_ray.errors import Problem

# settings that act for some formats only
_ACTS_FOR = {
    "dtype": ("hf",),
    "outtype": ("gguf",),
    "tokenizer": ("gguf",),
    "merge_adapter": ("gguf",),
}
_NOT_YET = ("awq", "gptq", "fp8")


class ExportConfig(Settings):
    """A model in the format of another program, with an adapter merged where one is given."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {"merge_adapter": "merge-adapter"}

    model: str = setting(SHIPPED_MODEL, "catalog name, Hub id or folder of the model")
    adapter: str | None = setting(None, "folder of a LoRA adapter")
    format: Literal["hf", "gguf", "awq", "gptq", "fp8"] = setting(
        "gguf", "hf: a plain folder of transformers; gguf: a file for llama.cpp and Ollama"
    )
    output: str | None = setting(
        None,
        "what is written: a .gguf file, else a folder; default: ./outputs/DATE-TIME-export",
    )
    overwrite: bool = setting(False, "replace what this command has written before")
    dtype: Literal["auto", "fp16", "bf16", "fp32"] = setting(
        "auto", "hf: dtype of the weights; auto: the model's own"
    )
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = (
        setting("auto", "gguf: type of the matrices; auto: bf16 for bf16 models, else f16")
    )
    merge_adapter: bool = setting(
        True, "gguf: false writes the adapter alone, as a LoRA file for llama-server --lora"
    )
    tokenizer: Literal["exact", "nearest"] = setting(
        "exact",
        "gguf: nearest writes a file although llama.cpp splits some texts into other tokens",
    )

    def contradictions(self) -> list[Problem]:
        """Settings that are each allowed and can't stand together."""
        found = [
            Problem(name, f"acts with format {kinds[0]} only, not {self.format}", "leave it out")
            for name, kinds in _ACTS_FOR.items()
            if name in self.model_fields_set and self.format not in kinds
        ]
        if self.format in _NOT_YET:
            what = f"{self.format} is not written by this version: hf and gguf are"
            found.append(
                Problem("format", what, "export hf, and quantize that with llm-compressor")
            )
        if self.format == "hf" and self.adapter is None and self.dtype == "auto":
            what = "hf merges an adapter or changes the dtype, and neither is asked for"
            found.append(Problem("format", what, "give --adapter or --dtype, or copy the folder"))
        if not self.merge_adapter and self.adapter is None:
            found.append(Problem("merge_adapter", "false needs an adapter", "give --adapter"))
        return found
