"""Which adapters are trained, and what of it is not possible."""

from __future__ import annotations

from typing import Literal

from aift_ray.config.section import Fraction, Positive, Section, setting
from aift_ray.errors import Problem


class LoRAConfig(Section):
    """Which low-rank adapters are trained; the names are PEFT's."""

    r: Positive = setting(16, "rank of the adapters")
    lora_alpha: Positive = setting(
        32, "scaling: the output of the adapter is multiplied by lora_alpha / r"
    )
    target_modules: list[str] | None = setting(
        None, "names of the layers to adapt; default: every linear layer of the decoder blocks"
    )
    lora_dropout: Fraction = setting(0.05, "dropout on the input of the adapters")
    bias: Literal["none", "all", "lora_only"] = setting("none", "which biases are trained")
    task_type: Literal["CAUSAL_LM"] = setting("CAUSAL_LM", "PEFT's task type")
    use_qlora: bool = setting(False, "quantize the base model (same as --method qlora)")
    qlora_4bit: bool = setting(True, "QLoRA: quantize to 4 bits (NF4), else to 8 bits")
    use_rslora: bool = setting(False, "rsLoRA: scale by lora_alpha / sqrt(r), for high ranks")
    use_dora: bool = setting(
        False, "DoRA: train magnitude and direction of the weights separately; slower"
    )
    init_lora_weights: Literal["default", "pissa", "loftq"] = setting(
        "default",
        "default: the adapters start as zero; pissa: from the largest singular values of the "
        "base weights; loftq: from the 4-bit quantization error",
    )
    modules_to_save: list[str] | None = setting(
        None, "names of layers that are trained in full and saved with the adapters"
    )
    lora_plus_ratio: float = setting(
        1.0, "LoRA+: ratio of the learning rates of the B and A matrices; 16 is usual", gt=0
    )
    experts: bool = setting(
        False,
        "also adapt the experts of a mixture of experts, by PEFT's target_parameters; "
        "lora_dropout must be 0. Off by default, as in PEFT, TRL and Axolotl: every expert gets"
        " its own adapter, and the adapters must be merged before serving",
    )

    init_from: str | None = setting(
        None,
        "folder of a saved adapter (from this program, PEFT or TRL) to start from; its rank, "
        "scaling and layers are used",
    )

    def beside_method(self, full: bool, base_bits: int | None) -> list[Problem]:
        """What contradicts the method: all weights where `full`, else adapters."""
        found = []
        if full and self.use_qlora:
            what = "true contradicts method full: adapters are trained, and no more"
            found.append(Problem("lora.use_qlora", what, "use --method qlora"))
        if full and self.init_from:
            what = "is an adapter, and method full trains all weights"
            found.append(Problem("lora.init_from", what, "use --method lora, or merge it first"))
        if not self.qlora_4bit and base_bits is None:
            what = "false applies to QLoRA, which is off"
            found.append(Problem("lora.qlora_4bit", what, "use --method qlora"))
        return found

    def contradictions(self, base_bits: int | None, strategy: str) -> list[Problem]:
        """Conflicting settings, with a base of `base_bits` bits if quantized."""
        start, field, found = self.init_lora_weights, "lora.init_lora_weights", []
        if start == "pissa" and base_bits:
            what = f"pissa takes its share out of the base, which {base_bits} bits can't give"
            found.append(Problem(field, what, "use loftq, or --method lora"))
        if start != "default" and self.init_from:
            what = f"{start} and lora.init_from both say where the adapters start"
            found.append(Problem(field, what, "use one of them"))
        if start == "loftq" and base_bits != 4:
            what = "loftq makes up for what 4 bits lose, and the base is not in 4 bits"
            found.append(Problem(field, what, "use pissa, or --method qlora"))
        if start != "default" and strategy == "pipeline":
            what = f"{start} draws its numbers block after block, and a stage has some blocks only"
            found.append(Problem(field, what, "use --strategy fsdp"))
        if start != "default" and self.use_dora:
            what = f"{start} and lora.use_dora both say where the adapters start"
            found.append(Problem(field, what, "use one of them"))
        if strategy == "tensor" and self.use_dora:
            what = "needs the norms of whole matrices, which tensor splits"
            found.append(Problem("lora.use_dora", what, "leave it off, or use --strategy fsdp"))
        if self.experts:
            found += self._refused_with_experts()
        both = set(self.target_modules or ()) & set(self.modules_to_save or ())
        if both:
            what = f"{', '.join(sorted(both))} is listed in target_modules, too"
            found.append(Problem("lora.modules_to_save", what, "adapt a layer or train it whole"))
        return found

    def _refused_with_experts(self) -> list[Problem]:
        """What PEFT can't do on a parameter."""
        found = []
        if self.lora_dropout:
            what = (
                f"{self.lora_dropout:g} is not possible with lora.experts: PEFT adapts their weight"
            )
            what += ", not their input"
            found.append(Problem("lora.lora_dropout", what, "give --lora.lora_dropout 0"))
        if self.use_dora:
            what = "PEFT has no DoRA for experts, which lora.experts adapts"
            found.append(Problem("lora.use_dora", what, "use one of them"))
        if self.init_lora_weights != "default":
            what = f"{self.init_lora_weights} decomposes matrices of linear layers, not of experts"
            found.append(Problem("lora.init_lora_weights", what, "leave it or lora.experts out"))
        return found
