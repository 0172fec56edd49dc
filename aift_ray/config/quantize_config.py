"""Every setting of `aift-ray quantize`, declared once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from aift_ray.config.section import SHIPPED_MODEL, NotNegative, Positive, Settings, setting
from aift_ray.errors import Problem

# settings that act for some numbers of bits only
_ACTS_FOR = {
    "quant_type": (4,),
    "double_quant": (4,),
    "threshold": (8,),
    "fp16_weight": (8,),
    "cpu_offload": (8,),
}


class QuantizeConfig(Settings):
    """Fewer bits for a model, after an adapter was merged into it where one is given."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {
        "output_dir": "output-dir",
        "quant_type": "quant-type",
        "double_quant": "double-quant",
        "compute_dtype": "compute-dtype",
        "fp16_weight": "fp16-weight",
        "cpu_offload": "cpu-offload",
        "eval_files": "eval-file",
        "eval_rows": "eval-rows",
        "sequence_length": "sequence-length",
        "num_runs": "num-runs",
    }

    model: str = setting(SHIPPED_MODEL, "catalog name, Hub id or folder of the model")
    adapter: str | None = setting(None, "folder of a LoRA adapter to merge first")
    bits: Literal[4, 8, 16] = setting(4, "bits per weight; 16: only merge the adapter")
    output_dir: str | None = setting(
        None, "folder of the result; default: ./outputs/DATE-TIME-quantized"
    )
    overwrite: bool = setting(False, "replace an output folder of this command")
    quant_type: Literal["nf4", "fp4"] = setting("nf4", "number format of 4 bits")
    double_quant: bool = setting(True, "4 bits: quantize the scales too")
    compute_dtype: Literal["auto", "fp16", "bf16", "fp32"] = setting(
        "auto",
        "dtype of matrix products and of the weights that are not quantized; auto: that of the "
        "model",
    )
    threshold: float = setting(
        6.0, "8 bits: outlier threshold; larger inputs are multiplied in 16 bits", ge=0
    )
    fp16_weight: bool = setting(False, "8 bits: keep 16-bit weights too; GPUs only")
    cpu_offload: bool = setting(
        False, "8 bits: keep layers that do not fit on the GPU on the CPU, in fp32"
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "device to quantize and measure on; auto: a GPU if there is one"
    )
    eval_files: list[str] = setting(
        [],
        "rows to measure on (formats as for train); default: the held-out rows shipped with "
        "aift_ray",
    )
    eval_rows: NotNegative = setting(64, "maximum number of rows to measure on; 0: do not measure")
    sequence_length: Annotated[int, Field(ge=8)] = setting(
        512, "maximum number of tokens of a measured row"
    )
    num_runs: Positive = setting(20, "number of timed forward passes per model")

    @field_validator("bits", mode="before")
    @classmethod
    def _bits_as_number(cls, value: object) -> Any:
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    def contradictions(self) -> list[Problem]:
        """Conflicting settings."""
        found = [
            Problem(name, f"acts with bits {bits[0]} only, and bits is {self.bits}", "leave it out")
            for name, bits in _ACTS_FOR.items()
            if name in self.model_fields_set and self.bits not in bits
        ]
        if self.bits == 16 and self.adapter is None:
            what = "16 only merges an adapter, and none is given"
            found.append(Problem("bits", what, "give --adapter, or --bits 8 or 4"))
        if self.eval_rows == 0 and self.eval_files:
            found.append(Problem("eval_files", "are not read with eval_rows 0"))
        return found
