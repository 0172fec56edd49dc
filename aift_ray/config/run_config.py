"""Every setting of a training run, declared once: name, type, range, default, unit, meaning.

The same models are the YAML file, the command line and the Python API. An unknown or
out-of-range value is a ConfigError that names every wrong field at once.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from aift_ray.config import context_rules, deepspeed_config, lr_schedules
from aift_ray.config.data_config import DataConfig
from aift_ray.config.grpo_config import GRPOConfig
from aift_ray.config.lora_config import LoRAConfig
from aift_ray.config.mixture_config import wrong_mixture
from aift_ray.config.parallel_config import ParallelConfig
from aift_ray.config.preference_config import Objective, PreferenceConfig, answers_of
from aift_ray.config.ray_config import RayConfig
from aift_ray.config.resume_rules import refused_allowances
from aift_ray.config.rope_scaling import RopeScaling
from aift_ray.config.section import SHIPPED_MODEL, Section, Settings, setting
from aift_ray.config.tasks_config import EvaluationConfig
from aift_ray.config.tokens_config import TokensConfig
from aift_ray.config.training_config import TrainingConfig
from aift_ray.errors import Problem


class RunConfig(Settings):
    """A whole training run."""

    short_flags: ClassVar[dict[str, str | list[str]]] = {
        "parallel.strategy": "strategy",
        "ray.num_workers": "num-workers",
        "data.train_files": "train-file",
        "data.eval_files": "eval-file",
        "output_dir": "output-dir",
        "training.max_steps": "max-steps",
        "training.seed": "seed",
        "rope_scaling": "rope-scaling",
        "resume_allow": ["resume-allow", "resume.allow"],
        "preference.reference": "reference",
        "grpo.reward": "reward",
    }
    bare_flags: ClassVar[dict[str, str]] = {"resume": "latest"}

    model: str = setting(SHIPPED_MODEL, "catalog name, Hub id or folder of the model to train")
    rope_scaling: str | None = setting(
        None,
        "scaling of the rotary position embeddings, for rows longer than the model's context: "
        "yarn:4, linear:2 or llama3:8 (kind and factor); saved with the model or adapter",
    )
    method: Literal["full", "lora", "qlora"] = setting("lora", "what is trained")
    objective: Objective = setting(
        "sft",
        "sft: answers; dpo, ipo, hinge, robust, orpo, simpo, cpo: the better of two; kto: answers "
        "labelled good or bad; reward: a model that scores answers; grpo: completions "
        "that the model generates, by rewards",
    )
    output_dir: str | None = setting(None, "folder of this run; default: ./outputs/DATE-TIME")
    overwrite: bool = setting(False, "delete the files of an earlier run in the output folder")
    resume: str | None = setting(None, "'latest', or the checkpoint folder to resume from")
    resume_allow: list[str] = setting([], "settings that may differ from those of the checkpoint")
    training: TrainingConfig = setting(TrainingConfig(), "optimizer, batch, evaluation, saving")
    lora: LoRAConfig = setting(LoRAConfig(), "adapters")
    tokens: TokensConfig = setting(TokensConfig(), "new tokens")
    parallel: ParallelConfig = setting(ParallelConfig(), "distribution over workers")
    preference: PreferenceConfig = setting(PreferenceConfig(), "objectives other than sft")
    grpo: GRPOConfig = setting(GRPOConfig(), "objective grpo: generation, rewards, loss")
    data: DataConfig = setting(DataConfig(), "data files, tokenization and packing")
    evaluation: EvaluationConfig = setting(EvaluationConfig(), "tasks to evaluate on in training")
    ray: RayConfig = setting(RayConfig(), "workers and storage")

    @field_validator("rope_scaling")
    @classmethod
    def _known_scaling(cls, value: str | None) -> str | None:
        return value if value is None else str(RopeScaling.parse(value))

    @field_validator("resume_allow")
    @classmethod
    def _whole_names(cls, value: list[str]) -> list[str]:
        # a setting may be named by its short flag
        names = {short: name for name, short in cls.short_flags.items() if isinstance(short, str)}
        return [names.get(each.removeprefix("--"), each.removeprefix("--")) for each in value]

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, value: object) -> Any:
        # an empty section in a YAML file is null
        if isinstance(value, dict):
            kinds = {name: field.annotation for name, field in cls.model_fields.items()}
            sections = {
                n for n, k in kinds.items() if isinstance(k, type) and issubclass(k, Section)
            }
            return {k: v for k, v in value.items() if v is not None or k not in sections}
        return value

    @property
    def trained_as(self) -> Literal["full", "lora", "qlora"]:
        """The method, of which `lora.use_qlora` has a say too."""
        return "qlora" if self.method == "lora" and self.lora.use_qlora else self.method

    @property
    def base_bits(self) -> Literal[4, 8] | None:
        """Bits of a weight of the quantized base model; None: it is not quantized."""
        if self.trained_as != "qlora":
            return None
        return 4 if self.lora.qlora_4bit else 8

    @property
    def trained_with(self) -> str:
        """The method, with the bits of a quantized base."""
        return f"qlora in {self.base_bits} bits" if self.base_bits else self.trained_as

    def contradictions(self) -> list[Problem]:
        """Conflicting settings."""
        training, found = self.training, []
        found += self.lora.beside_method(self.method == "full", self.base_bits)
        found += self.parallel.contradictions(self.base_bits)
        if self.method != "full":
            found += self.lora.contradictions(self.base_bits, self.parallel.strategy)
            if training.compile and self.lora.experts:
                what = (
                    "PEFT changes the experts' parameters in each pass, which torch.compile can't"
                )
                found.append(Problem("training.compile", what, "leave one of them off"))
        found += self.parallel.beside(self.objective, training.compile, training.precision)
        found += deepspeed_config.problems(self)
        found += context_rules.contradictions(self)
        found += self._beside_kernels()
        found += self._beside_recomputation()
        found += self.preference.contradictions(self.objective, self.parallel.strategy)
        grpo = self.objective == "grpo"
        found += self.grpo.contradictions(self) if grpo else self.grpo.unused()
        found += self._beside_objective()
        found += self._wrong_numbers()
        rounded = training.bf16_stochastic_round
        found += self.parallel.refused_optimizer(training.optimizer, rounded)
        if rounded and self.method != "full":
            what = f"is for method full: {self.trained_as} trains few weights, in fp32"
            found.append(Problem("training.bf16_stochastic_round", what, "leave it out"))
        if rounded and (training.precision in ("fp16", "fp32") or not training.fp16):
            what = "keeps weights in bf16, and training.precision is another"
            remedy = "give --training.precision bf16, or leave it out"
            found.append(Problem("training.bf16_stochastic_round", what, remedy))
        if self.data.eval_files and self.data.validation_fraction:
            what = "conflicts with evaluation files"
            found.append(Problem("data.validation_fraction", what, "give one of them"))
        found += wrong_mixture(self.data.mixture, self.data.train_files)
        if self.data.contamination_files and self.data.near_duplicates == "off":
            what = "are given, and data.near_duplicates is off"
            found.append(Problem("data.contamination_files", what, "give count or drop"))
        if self.rope_scaling and self.preference.reference:
            what = "scales the model's embeddings, and those of another reference stay as they are"
            found.append(Problem("rope_scaling", what, "leave preference.reference out"))
        if self.overwrite and self.resume:
            found.append(Problem("overwrite", "contradicts --resume", "give one of them"))
        found += lr_schedules.contradictions(training)
        found += self.evaluation.contradictions()
        found += self.tokens.contradictions(self)
        found += refused_allowances(self.resume_allow, bool(self.resume))
        if training.world_size != 1 and not training.ddp and training.local_rank < 0:
            what = "acts with ddp or local_rank only"
            found.append(Problem("training.world_size", what, "use --num-workers"))
        if training.ddp and self.ray.num_workers not in (None, training.world_size):
            found.append(Problem("ray.num_workers", "differs from training.world_size with ddp"))
        if training.precision in ("bf16", "fp16") and not training.fp16:
            what = f"false contradicts precision {training.precision}"
            found.append(Problem("training.fp16", what))
        return found

    def _beside_kernels(self) -> list[Problem]:
        """Settings that fused kernels can't be had with."""
        parallel, found = self.parallel, []
        if self.training.kernels == "torch":
            return []
        if self.training.compile:
            what = "fuses what training.kernels liger replaces"
            found.append(Problem("training.compile", what, "leave one of them off"))
        if parallel.strategy == "tensor":
            what = "liger computes with whole layers, and tensor splits them"
            found.append(Problem("training.kernels", what, "use --strategy fsdp, or leave it out"))
        if parallel.spill_to_cpu:
            what = "liger computes on GPUs, and parallel.spill_to_cpu in the host"
            found.append(Problem("training.kernels", what, "leave one of them off"))
        return found

    def _beside_recomputation(self) -> list[Problem]:
        """Where less is recomputed, or activations are kept in host memory, and can't be."""
        training, parallel, found = self.training, self.parallel, []
        selective = training.activation_checkpointing == "selective"
        settings = {"checkpointing": selective, "offloading": training.activation_offloading}
        for name in (f"training.activation_{kind}" for kind, asked in settings.items() if asked):
            if not training.gradient_checkpointing:
                what = "acts on what training.gradient_checkpointing recomputes, and that is off"
                found.append(Problem(name, what, "leave one of them out"))
            if parallel.by_deepspeed or parallel.strategy in (
                "tensor",
                "pipeline",
                "model_parallel",
            ):
                of = "backend deepspeed" if parallel.by_deepspeed else parallel.strategy
                what = f"is not possible with {of}"
                found.append(Problem(name, what, "use --strategy fsdp, or leave it out"))
        if selective and training.compile:
            what = "chooses among operations that training.compile fuses"
            remedy = "leave one of them off"
            found.append(Problem("training.activation_checkpointing", what, remedy))
        return found

    def _beside_objective(self) -> list[Problem]:
        """Settings of other sections that an objective can't have."""
        found = []
        if self.objective == "grpo" and self.data.mixture:
            what = "weighs rows with answers, and objective grpo takes prompts alone"
            found.append(Problem("data.mixture", what, "give --train-file"))
        compared = answers_of(self.objective) in ("pair", "label")
        if compared and self.data.train_end == "all":
            what = "trains ends of turns in the prompt, and only answers are compared"
            found.append(Problem("data.train_end", what, "use turn or none"))
        if self.objective == "reward" and self.training.exact_match_rows:
            what = "answers by generation, and a reward model generates nothing"
            found.append(Problem("training.exact_match_rows", what, "leave it out"))
        if self.objective == "reward" and self.evaluation.tasks:
            what = "need a language model, and objective reward trains a reward model"
            found.append(Problem("evaluation.tasks", what, "leave them out"))
        return found

    def _wrong_numbers(self) -> list[Problem]:
        """Numbers of workers, or of micro-batches, that the strategy can't have."""
        found, wanted = [], self.ray.num_workers is not None or self.training.ddp
        # one worker too few shows when it is known how many GPUs there are
        if wanted and not self.parallel.shards_weights:
            found += self.parallel.misfits(*self.worker_range(0))
        units = self.training.batch_size * self.training.gradient_accumulation_steps
        if units % (self.parallel.pipeline_microbatches or 1):
            what = f"does not divide batch_size x gradient_accumulation_steps, {units}"
            found.append(Problem("parallel.pipeline_microbatches", what))
        if self.data.tokens_per_micro_batch and self.parallel.strategy == "pipeline":
            what = "is not possible with strategy pipeline, which divides a step into equal parts"
            remedy = "use --parallel.pipeline_microbatches"
            found.append(Problem("data.tokens_per_micro_batch", what, remedy))
        return found

    @property
    def micro_batch(self) -> int:
        """Units of a micro-batch: `batch_size`, unless a pipeline cuts its step otherwise."""
        parts = self.parallel.pipeline_microbatches
        units = self.training.batch_size * self.training.gradient_accumulation_steps
        return units // parts if parts else self.training.batch_size

    @property
    def rollout_actors(self) -> int:
        """Ray actors that generate completions on CPUs or GPUs of their own."""
        apart = self.generates_beside and self.grpo.placement == "apart"
        return self.grpo.rollout_workers if apart else 0

    @property
    def reads_texts(self) -> bool:
        """Whether the workers need the tokenizer: for answers, tasks or completions."""
        asked = self.training.exact_match_rows or self.evaluation.tasks
        return bool(asked) or self.objective == "grpo"

    @property
    def generates_beside(self) -> bool:
        """Whether Ray actors generate completions, and not the workers that train."""
        how = self.grpo
        return self.objective == "grpo" and (how.placement == "apart" or how.engine == "vllm")

    @property
    def generates_in_turn(self) -> bool:
        """Whether such an actor is on the CPUs or the GPU of each worker."""
        return self.generates_beside and self.grpo.placement == "colocated"

    def worker_range(self, devices: int) -> tuple[int, int]:
        """Least and most workers, where `devices` is the number of GPUs in reach (0: none)."""
        if self.training.ddp and self.ray.num_workers is None:
            return self.training.world_size, self.training.world_size
        wanted = self.ray.num_workers
        devices -= self.rollout_actors if devices else 0
        if wanted is None:
            if self.parallel.strategy == "model_parallel":
                return 1, 1
            size = self.parallel.workers_per_replica
            number = max(devices // size, 1) * size
            return number, number
        if isinstance(wanted, int):
            return wanted, wanted
        least, most = wanted.split(":")
        return int(least), int(most)
