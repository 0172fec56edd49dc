"""What a model makes of a prompt: the probability of each of its tokens, for `echo`."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from aift_ray.serving.engines.interface import Request, Token
from aift_ray.serving.engines.transformers.kv_cache import RowsCache
from aift_ray.serving.engines.transformers.lora_manager import Adapters

# tokens read at a time
_PIECE = 128
# numbers: the logits of a piece over the whole vocabulary are held at once, 32 MiB in fp32
_LOGITS = 2**23


def score(model: PreTrainedModel, adapters: Adapters, request: Request) -> tuple[Token, ...]:
    """The tokens of a request's prompt with their logprobs; the first has none.

    Nothing of it is kept, and the prompt is read alone: other requests wait. Its keys and values
    have room among those of the requests that are worked on, as the prompt was admitted to them.
    """
    prompt, top = request.prompt, request.top_logprobs or 0
    found = [Token(prompt[0])]
    cache = RowsCache(model.config)
    vocabulary: int = model.config.get_text_config(decoder=True).vocab_size
    piece = max(1, min(_PIECE, _LOGITS // vocabulary))
    for start in range(0, len(prompt) - 1, piece):
        ids = prompt[start : start + piece]
        adapters.choose([request.adapter])
        output = model(
            input_ids=torch.tensor([ids], device=model.device),
            position_ids=torch.arange(start, start + len(ids), device=model.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        following = prompt[start + 1 : start + 1 + len(ids)]
        logprobs = output.logits[0, : len(following)].float().log_softmax(-1)
        values, tokens = logprobs.topk(min(top, logprobs.shape[-1]))
        chosen = logprobs.gather(1, torch.tensor(following, device=logprobs.device)[:, None])
        rows = zip(following, chosen[:, 0].tolist(), tokens.tolist(), values.tolist(), strict=True)
        for token, logprob, ids_, likely in rows:
            found.append(Token(token, logprob, tuple(zip(ids_, likely, strict=True))))
    return tuple(found)
