"""Generates completions by vLLM: the base stays, and each generation brings its adapter."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from safetensors.torch import save_file

from aift_ray.config import VllmConfig
from aift_ray.engine.grpo.completion_generation import Completion
from aift_ray.engine.grpo.episode_generation import EpisodeGenerator, episodes_of
from aift_ray.engine.grpo.rollout_engine import Asked, Weights, completed
from aift_ray.engine.job import Job
from aift_ray.engine.precision import Precision
from aift_ray.errors import TrainingError
from aift_ray.models.load import skeleton
from aift_ray.models.lora.attach import add_adapters
from aift_ray.serving.engines.adapter_store import KeptAdapters
from aift_ray.serving.engines.vllm.vllm_options import cpu_cache

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput

_NAME, _WEIGHTS = "policy", "adapter_model.safetensors"


class VllmRolloutEngine:
    """A base in vLLM, within this process.

    Args:
        device: where it computes.

    Raises:
        TrainingError: vLLM can't load it.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
        # its processes would outlive this one where that is killed
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        from vllm import LLM

        how, lora, compute = job.config.grpo, job.config.lora, Precision.resolve(job.config, device)
        self._how, self._stop_ids = how, job.stop_ids
        length = job.config.data.sequence_length
        options: dict[str, Any] = {
            "dtype": str(compute.compute).removeprefix("torch."),
            "max_model_len": length,
            "max_num_seqs": how.rollout_batch_size,
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": min(rank for rank in _ranks() if rank >= lora.r),
            # at the temperature, and before top_p, top_k and min_p: grpo_rules sees to it
            "logprobs_mode": "raw_logprobs" if how.temperature == 1 else "processed_logprobs",
            "load_format": "safetensors",
            "generation_config": "vllm",
            "seed": job.config.training.seed,
        }
        if device.type == "cpu":
            size = cpu_cache(job.location, compute.compute, how.rollout_batch_size, length)
            options["kv_cache_memory_bytes"] = size
        try:
            self._llm = LLM(model=job.location, tokenizer=job.location, **options)
        except Exception as error:
            raise TrainingError(f"vLLM can't generate with {job.location}: {error}") from error
        self._peft = add_adapters(skeleton(job.location), lora, job.location).peft_config["default"]
        self._peft.base_model_name_or_path = job.location
        self._kept = KeptAdapters(job.location)
        weakref.finalize(self, self._kept.close)
        self._asked: LoRARequest | None = None
        self._episodes: EpisodeGenerator | None = None
        if how.environment is not None:
            self._episodes = episodes_of(how, job.load_tokenizer(), job.stop_ids)

    def load(self, weights: Weights) -> None:
        """Take the trained adapter, by the names of its weights in the model."""
        from vllm.lora.request import LoRARequest

        folder = Path(tempfile.mkdtemp(prefix="aift-ray-policy-"))
        try:
            named = {name.replace(".default.", "."): each for name, each in weights.items()}
            save_file({name: w.contiguous() for name, w in named.items()}, folder / _WEIGHTS)
            self._peft.save_pretrained(str(folder))
            before = self._kept.drop(_NAME) if self._asked else None
            kept = self._kept.keep(_NAME, str(folder))
        finally:
            shutil.rmtree(folder)
        # vLLM knows an adapter by its number, and its prefixes by its name
        self._asked = LoRARequest(kept.digest, kept.number, str(kept.folder))
        self._llm.llm_engine.add_lora(self._asked)
        if before not in (None, kept.number):
            self._llm.llm_engine.remove_lora(before)

    def generate(self, asked: Asked) -> list[list[Completion]]:
        """Completions of each prompt."""
        return completed(self._completions, self._episodes, asked)

    def _completions(
        self, prompts: Sequence[np.ndarray], keys: Sequence[Sequence[tuple[int, ...]]]
    ) -> list[list[Completion]]:
        """Completions of one turn."""
        pairs = zip(prompts, keys, strict=True)
        each: Any = [{"prompt_token_ids": ids.tolist()} for ids, many in pairs for _ in many]
        sampling = [self._sampling(key) for many in keys for key in many]
        made = self._llm.generate(each, sampling, lora_request=self._asked, use_tqdm=False)
        found = iter([_completion(output.outputs[0]) for output in made])
        return [[next(found) for _ in many] for many in keys]

    def _sampling(self, key: tuple[int, ...]) -> Any:
        """SamplingParams of a completion, whose random numbers its key alone decides."""
        from vllm import SamplingParams

        how = self._how
        seed = int(np.random.SeedSequence(list(key)).generate_state(1, np.uint64)[0] >> 1)
        return SamplingParams(
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            min_p=how.min_p,
            seed=seed,
            max_tokens=how.max_completion_length,
            stop_token_ids=self._stop_ids,
            # each id that ends a completion is among them
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
        )


def _ranks() -> tuple[int, ...]:
    """Ranks that vLLM takes."""
    ranks: tuple[int, ...] = get_args(
        get_args(VllmConfig.model_fields["max_lora_rank"].annotation)[0]
    )
    return ranks


def _completion(output: CompletionOutput) -> Completion:
    ids = np.array(output.token_ids, np.int32)
    pairs = zip(output.token_ids, output.logprobs, strict=True)
    logps = np.array([each[token].logprob for token, each in pairs], np.float32)
    return Completion(ids, logps, output.finish_reason == "length")
