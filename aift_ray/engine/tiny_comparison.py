"""A tiny model as transformers computes it, text by text with eager attention, and as we do."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig, PreTrainedModel

from aift_ray.config import LoRAConfig
from aift_ray.data.collate import collate
from aift_ray.engine.loss import LossModule
from aift_ray.models import load
from aift_ray.models.bnb.bnb_layers import Quantization
from aift_ray.models.decoder import causal_model, decoder_blocks
from aift_ray.models.families.family_support import Attention, without_noise
from aift_ray.models.families.tiny_model import VOCABULARY, random_model
from aift_ray.models.lora.attach import add_adapters
from aift_ray.models.recomputation import recompute_activations

Method = Literal["full", "lora", "qlora"]

# tokens of the documents: longer and shorter than the window of a tiny model; and tokens with which
# both of a pair begin, which are not trained
LENGTHS = (23, 5, 14, 37)
_PROMPTS = (3, 3, 10, 10)
_TRAINED = sum(LENGTHS) - sum(_PROMPTS)
_LOSS, _GRADIENTS, _LOGITS = 2e-5, 1e-3, 1e-3
_NEW_TOKENS = 4
_SEES = "its attention sees the tokens that it is to predict"
# characters of what a library says of a tiny model
_LONGEST = 240
# weights of the largest tiny model that is computed
_MOST_WEIGHTS = 12_000_000


class Unfit(ValueError):
    """A reason for which a family is not trained, in words of its own.

    Args:
        layout: what would work.
    """

    def __init__(self, why: str, layout: str | None = None) -> None:
        super().__init__(why)
        self.layout = layout


@dataclass(frozen=True)
class EagerResults:
    """What transformers computes of each document alone, with eager attention.

    Attributes:
        gradients: of all trained weights, by name.
        logits: (documents, tokens, vocabulary) of greedy answers.
    """

    loss: float
    gradients: dict[str, torch.Tensor]
    logits: list[torch.Tensor]

    @classmethod
    def of(cls, tiny: PreTrainedConfig, method: Method) -> EagerResults:
        with torch.device("meta"):
            small = random_model(tiny, "eager")
        decoder_blocks(small)
        size = sum(p.numel() for p in small.parameters())
        if size > _MOST_WEIGHTS:
            raise ValueError(f"it still has {size:,} weights")
        model = _trainable(tiny, method, "eager").eval()
        total = torch.zeros(())
        for ids, prompt in zip(_documents(), _PROMPTS, strict=True):
            logits = causal_model(model)(input_ids=ids[None], use_cache=False).logits[0].float()
            total = total + cross_entropy(logits[prompt - 1 : -1], ids[prompt:], reduction="sum")
        (total / _TRAINED).backward()
        if not torch.isfinite(total):
            raise ValueError("its loss is not finite")
        if _looks_ahead(causal_model(model)):
            raise Unfit(_SEES, _decoder(tiny))
        logits = [_answer(causal_model(model), [ids])[0] for ids in _documents()[:2]]
        return cls((total / _TRAINED).item(), _gradients(model), logits)

    def difference(
        self, tiny: PreTrainedConfig, method: Method, kind: Attention, packed: bool
    ) -> str:
        """What differs in words; empty where nothing does."""
        model = _trainable(tiny, method, kind)
        # as in a run, whatever holds the weights
        without_noise(model)
        inner = causal_model(model)
        if inner.supports_gradient_checkpointing:
            recompute_activations(inner)
        module = LossModule(model).train()
        why = self._step_difference(module, packed)
        # as the pairs of preference training are, unless a loss counts each token of a prompt
        if not why and packed and not module.routers:
            model.zero_grad(set_to_none=True)
            why = self._step_difference(module, packed, shared=True)
        if why:
            return why
        inner.activation_checkpointing_disable()
        alone = [_answer(inner.eval(), [ids])[0] for ids in _documents()[:2]]
        return _logit_difference(alone, self.logits)

    def _step_difference(self, module: LossModule, packed: bool, shared: bool = False) -> str:
        """Of loss and gradients of the documents at once.

        Args:
            shared: the prompt of two documents is computed once.
        """
        rows = _Rows()
        numbers = range(len(LENGTHS))
        groups = [number // 2 for number in numbers] if shared else None
        batch = collate(rows, numbers, padded=not packed, pad_id=1, groups=groups)
        loss = module(batch) / _TRAINED
        loss.backward()
        if not abs(loss.item() - self.loss) <= _LOSS * max(1.0, abs(self.loss)):
            return f"loss {loss.item():.6f} instead of {self.loss:.6f}"
        found = _gradients(module.model)
        if found.keys() != self.gradients.keys():
            return f"gradients of {len(found)} weights instead of {len(self.gradients)}"
        square = sum(float((found[n] - g).square().sum()) for n, g in self.gradients.items())
        norm = sum(float(g.square().sum()) for g in self.gradients.values()) ** 0.5
        if not square**0.5 <= _GRADIENTS * norm:
            return f"gradients that differ by {square**0.5 / norm:.1e} of their norm"
        return ""

    def batch_difference(self, tiny: PreTrainedConfig, method: Method, kind: Attention) -> str:
        """Of answers in a batch, padded on the left."""
        model = causal_model(_trainable(tiny, method, kind)).eval()
        without_noise(model)
        try:
            return _logit_difference(_answer(model, _documents()[:2]), self.logits)
        except Exception as error:
            return line_of_error(error)


class _Rows:
    """The documents as rows of a token cache."""

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        ids = _documents()[index].numpy()
        return ids, (np.arange(len(ids)) >= _PROMPTS[index]).astype(np.uint8)


def _documents() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    drawn = [torch.randint(4, VOCABULARY, (n,), generator=draw) for n in LENGTHS]
    for at in range(1, len(drawn), 2):
        drawn[at][: _PROMPTS[at]] = drawn[at - 1][: _PROMPTS[at]]
    return drawn


def _trainable(tiny: PreTrainedConfig, method: Method, kind: Attention) -> torch.nn.Module:
    model = _quantized(tiny, kind) if method == "qlora" else random_model(tiny, kind)
    if method == "full":
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        adapted: torch.nn.Module = add_adapters(
            model, LoRAConfig(r=4, lora_alpha=4, lora_dropout=0.0), ""
        )
        with torch.no_grad():
            # B starts at zero, where adapters would change nothing
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.1)
    return adapted


def _quantized(tiny: PreTrainedConfig, kind: Attention) -> PreTrainedModel:
    """The random model with its linear layers in 4 bits, as a run would load it."""
    with tempfile.TemporaryDirectory() as folder:
        random_model(tiny, "eager").save_pretrained(folder)
        return load.load_model(folder, torch.float32, kind, Quantization(4, torch.float32))


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _decoder(config: PreTrainedConfig) -> str | None:
    """The setting that makes an encoder's attention causal; None: it has none."""
    off = getattr(config, "is_decoder", None) is False
    return "write is_decoder true into its config.json" if off else None


@torch.no_grad()
def draws(tiny: PreTrainedConfig) -> bool:
    """Whether a model in training, without dropout, computes a text differently each time.

    Routers of PhiMoE draw their experts.
    """
    model, ids = random_model(tiny, "eager").train(), _documents()[0][None]
    one, other = (model(input_ids=ids, use_cache=False).logits for _ in range(2))
    return not torch.equal(one, other)


@torch.no_grad()
def _looks_ahead(model: PreTrainedModel) -> bool:
    """Whether logits depend on later tokens, as those of an encoder do."""
    ids = _documents()[0][None]
    short = ids[:, : ids.shape[1] // 2]
    found = model(input_ids=ids, use_cache=False).logits[0, : short.shape[1]]
    wanted = model(input_ids=short, use_cache=False).logits[0]
    return bool(_logit_difference([found.float()], [wanted.float()]))


@torch.no_grad()
def _answer(model: Any, prompts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of the tokens of greedy answers, (tokens, vocabulary) a prompt."""
    width = max(map(len, prompts))
    ids = torch.stack([torch.cat([torch.full((width - len(p),), 1), p]) for p in prompts])
    mask = torch.stack([(torch.arange(width) >= width - len(p)).long() for p in prompts])
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        num_beams=1,
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return list(torch.stack(output.logits, dim=1).float())


def _logit_difference(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> str:
    for mine, theirs in zip(found, wanted, strict=True):
        apart = float((mine - theirs).abs().max())
        if not apart <= _LOGITS * max(1.0, float(theirs.abs().max())):
            return f"answers whose logits differ by {apart:.1e}"
    return ""


def line_of_error(error: Exception) -> str:
    """The kind and the text of an error in one line, cut where it is long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= _LONGEST else text[:_LONGEST] + '…'}"
