"""Generates completions by vLLM: each generation brings its adapter, or all weights."""

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
from aift_ray.serving.engines.vllm.vllm_compat import replace_weights
from aift_ray.serving.engines.vllm.vllm_options import cache_bytes, cpu_cache

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput

_NAME, _WEIGHTS = "policy", "adapter_model.safetensors"
# of the memory that is free when vLLM starts on a GPU with a worker
_OF_FREE = 0.95
# levels of vLLM's sleep: the weights wait in host memory, or nothing is kept
_WEIGHTS_KEPT, _NOTHING_KEPT = 1, 2


class VllmRolloutEngine:
    """A model in vLLM, within this process.

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

        self._how, self._stop_ids = job.config.grpo, job.stop_ids
        options = _options(job, device)
        self._sleeps, self._asleep = bool(options.get("enable_sleep_mode")), False
        try:
            self._llm = LLM(model=job.location, tokenizer=job.location, **options)
        except Exception as error:
            raise TrainingError(f"vLLM can't generate with {job.location}: {error}") from error
        self._adapter = _Adapter(job, self._llm) if job.config.method != "full" else None
        self._episodes: EpisodeGenerator | None = None
        if self._how.environment is not None:
            self._episodes = episodes_of(self._how, job.load_tokenizer(), job.stop_ids)

    def load(self, weights: Weights) -> None:
        """Take the trained weights, by their names in the model."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
        if self._adapter:
            self._adapter.load(weights)
        else:
            replace_weights(self._llm, weights)

    def rest(self) -> None:
        """Give the memory of a GPU that a worker shares back, until weights are loaded again."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=_WEIGHTS_KEPT if self._adapter else _NOTHING_KEPT)
            self._asleep = True

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
        asked = self._adapter.request if self._adapter else None
        made = self._llm.generate(each, sampling, lora_request=asked, use_tqdm=False)
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


class _Adapter:
    """The trained adapter as vLLM has it."""

    def __init__(self, job: Job, llm: LLM) -> None:
        lora = job.config.lora
        self._peft = add_adapters(skeleton(job.location), lora, job.location).peft_config["default"]
        self._peft.base_model_name_or_path = job.location
        self._llm, self._kept = llm, KeptAdapters(job.location)
        weakref.finalize(self, self._kept.close)
        self.request: LoRARequest | None = None

    def load(self, weights: Weights) -> None:
        """Replace it, by the names of its weights in the model."""
        from vllm.lora.request import LoRARequest

        folder = Path(tempfile.mkdtemp(prefix="aift-ray-policy-"))
        try:
            named = {name.replace(".default.", "."): each for name, each in weights.items()}
            save_file({name: w.contiguous() for name, w in named.items()}, folder / _WEIGHTS)
            self._peft.save_pretrained(str(folder))
            before = self._kept.drop(_NAME) if self.request else None
            kept = self._kept.keep(_NAME, str(folder))
        finally:
            shutil.rmtree(folder)
        # vLLM knows an adapter by its number, and its prefixes by its name
        self.request = LoRARequest(kept.digest, kept.number, str(kept.folder))
        self._llm.llm_engine.add_lora(self.request)
        if before not in (None, kept.number):
            self._llm.llm_engine.remove_lora(before)


def _options(job: Job, device: torch.device) -> dict[str, Any]:
    """What vLLM is given beside the model, by name."""
    config, how = job.config, job.config.grpo
    dtype, length = Precision.resolve(config, device).compute, config.data.sequence_length
    found: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": length,
        "max_num_seqs": how.rollout_batch_size,
        # at the temperature, and before top_p, top_k and min_p: grpo_rules sees to it
        "logprobs_mode": "raw_logprobs" if how.temperature == 1 else "processed_logprobs",
        "load_format": "safetensors",
        "generation_config": "vllm",
        "seed": config.training.seed,
    }
    if config.method != "full":
        rank = min(each for each in _ranks() if each >= config.lora.r)
        found |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    if config.base_bits:
        found |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
    size = (job.location, dtype, how.rollout_batch_size, length)
    if device.type == "cpu":
        found["kv_cache_memory_bytes"] = cpu_cache(*size)
    elif config.generates_in_turn:
        free, total = torch.cuda.mem_get_info(device)
        found |= {
            "enable_sleep_mode": True,
            "kv_cache_memory_bytes": cache_bytes(*size),
            "gpu_memory_utilization": _OF_FREE * free / total,
        }
    return found


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
