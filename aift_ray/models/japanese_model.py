"""Japanese language models: loaded by name, asked in Japanese."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizer, PreTrainedTokenizerBase

from aift_ray.data.examples import Example
from aift_ray.data.prompts.prompt_encoder import PromptEncoder, RowError
from aift_ray.errors import ArgumentError, ConfigError, DataError, Problem, UserError
from aift_ray.models import fallback, hub, load
from aift_ray.models.answer_text import written
from aift_ray.models.attention.flash_attention import has_flash
from aift_ray.models.base_and_adapter import Place, find_place, say_once
from aift_ray.models.base_model import BaseModel, wrong_flags
from aift_ray.models.catalog import CATALOG, find
from aift_ray.models.families.refusals import check_layers
from aift_ray.models.generation_options import GenerationOptions, token_ids
from aift_ray.models.lora.attach import reload_adapters
from aift_ray.utils.gpu_utils import clear_gpu_memory, enable_gradient_checkpointing

_LOG = logging.getLogger(__name__)


class JapaneseModel(BaseModel):
    """A causal language model that is asked and answers in Japanese.

    Weights are read from safetensors only, and no code of a model's folder is run.

    Args:
        model_name: a name of `SUPPORTED_MODELS`, any Hub id, or a folder. In a folder with a
            PEFT adapter, the base model is the one that the adapter records.
        device, load_in_8bit, load_in_4bit, torch_dtype: see `BaseModel`.
        use_flash_attention: FlashAttention 2 where the package and the device have it (and the
            weights have 16 bits), else PyTorch's SDPA; the log says which.
        gradient_checkpointing: recompute activations when the model is trained.

    Attributes:
        failures: what `load_with_fallback` met: model name to reason.

    Raises:
        ConfigError: every argument that is wrong, before anything is loaded.
    """

    SUPPORTED_MODELS: ClassVar[dict[str, dict[str, Any]]] = {
        name: entry.public() for name, entry in CATALOG.items()
    }

    def __init__(
        self,
        model_name: str = "stabilityai/japanese-stablelm-3b-4e1t-instruct",
        device: torch.device | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        torch_dtype: torch.dtype | None = None,
        use_flash_attention: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        problems = wrong_flags(
            use_flash_attention=use_flash_attention, gradient_checkpointing=gradient_checkpointing
        )
        kind: type[ConfigError] = ArgumentError if problems else ConfigError
        try:
            super().__init__(model_name, device, load_in_8bit, load_in_4bit, torch_dtype)
        except ConfigError as error:
            problems = error.problems + problems
            kind = ArgumentError if kind is ArgumentError else type(error)
        if problems:
            raise kind(problems)
        self.use_flash_attention = use_flash_attention
        self.gradient_checkpointing = gradient_checkpointing
        self.failures: dict[str, str] = {}
        self._encoder: PromptEncoder | None = None

    def load_model(self) -> PreTrainedModel:
        """The model on its device, ready to answer; loaded once.

        Of an adapter folder it is PEFT's model around the base.

        Raises:
            ModelError: missing, gated, corrupt, larger than the memory at hand, or an adapter
                that does not fit its base.
        """
        if self.model is None:
            self.model = self.open_place(find_place(self.model_name))
        return self.model

    def open_place(self, place: Place) -> PreTrainedModel:
        """The model of a place, on this model's device and in its precision, ready to answer."""
        check_layers(hub.load_config(place.base))
        fallback.check_memory(place.base, self.torch_dtype, self._bits, self.device)
        flash = self.use_flash_attention and has_flash(self.device, self.torch_dtype)
        kind = load.answering_attention(place.base, flash)
        say_once(f"attention: {load.ATTENTION[kind]}")
        model: Any = load.load_model(
            place.base, self.torch_dtype, kind, self.quantization, {"": self.device}
        )
        if self.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        if place.adapter:
            model = reload_adapters(model, str(place.adapter), trainable=False)
        found: PreTrainedModel = model.eval()
        return found

    def load_tokenizer(self) -> PreTrainedTokenizer:
        """The (fast) tokenizer, with the chat template that training and answers use; loaded once.

        Raises:
            ModelError: missing, one that can't be trained with, or of another vocabulary.
        """
        if self.tokenizer is None:
            place = find_place(self.model_name)
            tokenizer = place.load_tokenizer(self.model_name)
            stops = [*hub.stop_ids(place.tokenizer), *_known_stops(self.model_name, tokenizer)]
            # also gives the tokenizer a template where it has none
            self._encoder = PromptEncoder(tokenizer, extra_stop_ids=stops)
            if self._encoder.used_fallback:
                say_once(f"{self.model_name} has no chat template: it is asked as ### 指示:")
            self.tokenizer = cast(PreTrainedTokenizer, tokenizer)
        return self.tokenizer

    def generate_japanese(
        self,
        instruction: str,
        input_text: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        top_k: int = 50,
        do_sample: bool = True,
        *,
        system_prompt: str | None = None,
        return_reasoning: bool = False,
        **kwargs: object,
    ) -> str:
        """Answer an instruction; the prompt is made as the rows of a training run are.

        Args:
            instruction: what to do.
            input_text: what to do it with.
            max_new_tokens: length of the answer at most; less where the context ends.
            temperature: of sampling; 0: the likeliest token always, as with do_sample=False.
            top_p: share of the probability that is sampled from.
            top_k: number of tokens that are sampled from; 0: all.
            do_sample: False: the likeliest token always, so the same answer every time.
            system_prompt: put before the conversation.
            return_reasoning: also return what a reasoning model thinks before its answer.
            **kwargs: for transformers' `generate`.

        Returns:
            The new text up to the end of the turn, without control tokens; empty where a
            reasoning model did not come to its answer.

        Raises:
            ConfigError: an option is out of range or unknown.
            DataError: the instruction is empty, or the prompt does not fit the context.
        """
        sampling = GenerationOptions(max_new_tokens, temperature, top_p, top_k, do_sample).checked(
            kwargs
        )
        prompt = self._prompt(instruction, input_text, system_prompt)
        new, stops = self._generate(prompt, sampling, kwargs)
        found = written(self.load_tokenizer(), prompt, new, stops)
        if found.answer is None:
            _LOG.warning("still reasoning after %d tokens: raise max_new_tokens", len(new))
        return found.text if return_reasoning else found.answer or ""

    def _generate(
        self, prompt: list[int], sampling: GenerationOptions, further: dict[str, Any]
    ) -> tuple[list[int], list[int]]:
        """The ids that the model writes behind `prompt`, and those that end its turn."""
        model: Any = self.load_model()
        assert self._encoder is not None
        ids = torch.tensor([prompt], device=self.device)
        own = token_ids(model.generation_config.eos_token_id)
        stops = list(dict.fromkeys([*self._encoder.stop_ids, *own]))
        options = {"eos_token_id": stops, "pad_token_id": stops[0]}
        options |= sampling.options(self._room(model, len(prompt))) | further
        if "stop_strings" in options:
            options["tokenizer"] = self.tokenizer
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **options
                )
        except ValueError as error:
            # what transformers says of an option that it does not know or take
            raise ConfigError([Problem("generate_japanese", str(error))]) from error
        finally:
            model.train(was_training)
        return output[0, len(prompt) :].tolist(), token_ids(options["eos_token_id"])

    def load_with_fallback(self, fallback_models: list[str] | None = None) -> bool:
        """Load the model and its tokenizer, or else the first of others that loads.

        Args:
            fallback_models: tried in this order; None: the catalog's smaller models, largest
                first, whose weights fit the memory at hand.

        Returns:
            Whether one loaded; `model_name` is then its name. `failures` holds, and the log
            says, why each of the others did not.

        Raises:
            ConfigError: the fallbacks are no list of names.
        """
        names = [self.model_name, *self._fallbacks(fallback_models)]
        first = self.model_name
        self.failures = {}
        for name in dict.fromkeys(names):
            self.model_name = name
            try:
                self.load_tokenizer()
                self.load_model()
            except (UserError, MemoryError, torch.OutOfMemoryError) as error:
                self._failed(error)
            else:
                if name != first:
                    _LOG.warning("using %s in place of %s", name, first)
                return True
            clear_gpu_memory()
        self.model_name = first
        return False

    @classmethod
    def list_supported_models(cls) -> dict[str, Any]:
        """Each catalogued model with what a user should know before choosing it; a copy."""
        return {name: dict(fields) for name, fields in cls.SUPPORTED_MODELS.items()}

    def _failed(self, error: BaseException) -> None:
        self.failures[self.model_name] = why = _reason(error)
        _LOG.warning("%s does not load: %s", self.model_name, why)
        self.model = self.tokenizer = self._encoder = None

    @property
    def _bits(self) -> int | None:
        return self.quantization.bits if self.quantization else None

    def _prompt(
        self, instruction: str, input_text: str | None, system_prompt: str | None
    ) -> list[int]:
        problems = [
            Problem(name, f"{value!r} is not allowed: give a text")
            for name, value in (("instruction", instruction), ("input_text", input_text or ""))
            if not isinstance(value, str)
        ]
        if isinstance(instruction, str) and not instruction.strip():
            problems.append(Problem("instruction", "is empty"))
        if problems:
            raise DataError(problems)
        self.load_tokenizer()
        assert self._encoder is not None
        self._encoder.system_prompt = system_prompt
        row = Example("instruction", "", 0, instruction=instruction, input=input_text or "")
        try:
            return self._encoder.prompt_ids(row)
        except RowError as error:
            raise DataError([Problem("instruction", str(error))]) from None

    def _room(self, model: PreTrainedModel, prompt: int) -> int:
        """Tokens that are left of the context."""
        context = hub.context(model.config)
        if context is None:
            return 2**31
        if prompt >= context:
            what = f"the prompt has {prompt} tokens, and the model takes {context} with its answer"
            raise DataError([Problem("instruction", what, "shorten it")])
        return int(context) - prompt

    def _fallbacks(self, given: list[str] | None) -> list[str]:
        if given is None:
            free = fallback.free_bytes(self.device)
            width = self.torch_dtype.itemsize
            return fallback.smaller_models(self.model_name, width, self._bits, free)
        if not isinstance(given, (list, tuple)) or not all(isinstance(n, str) for n in given):
            what = f"{given!r} is not allowed: give a list of model names"
            raise ConfigError([Problem("fallback_models", what)])
        return list(given)


def _known_stops(name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that the catalog says end a turn."""
    entry, known = find(name), tokenizer.get_added_vocab()
    return [known[token] for token in (entry.turn_ends if entry else ()) if token in known]


def _reason(error: BaseException) -> str:
    if isinstance(error, UserError):
        return "; ".join(" ".join(str(problem).split()) for problem in error.problems)
    return f"out of memory: {error}"
