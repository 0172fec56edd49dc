"""Requests and answers between the server's own form and vLLM's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aift_ray.serving.engines.interface import EngineError, Request, Token

if TYPE_CHECKING:
    from vllm.logprobs import Logprob, PromptLogprobs
    from vllm.outputs import CompletionOutput

# vLLM raises what lies between 0 and this to it, with a warning a request
_COLDEST = 0.01


def parameters(request: Request, vocabulary: int, end: int) -> Any:
    """SamplingParams of a request.

    Args:
        vocabulary: ids that the model may give.
        end: the id of the end of text.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    sampling, stop_ids = request.sampling, set(request.stop_ids)
    held = None
    if request.grammar:
        held = StructuredOutputsParams(json=request.grammar.schema)
        # all that llguidance allows behind a complete answer
        stop_ids.add(end)
    return SamplingParams(
        temperature=sampling.temperature if sampling.temperature >= _COLDEST else 0.0,
        # vLLM takes no 0; so little leaves the likeliest token
        top_p=max(sampling.top_p, 1e-9),
        top_k=sampling.top_k if sampling.top_k < vocabulary else 0,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        # vLLM takes -1 for none
        seed=None if sampling.seed is None else sampling.seed % 2**63,
        logit_bias=dict(sampling.logit_bias) or None,
        max_tokens=max(request.max_tokens, 1),
        stop_token_ids=sorted(stop_ids),
        # each id that ends an answer is among the stop ids
        ignore_eos=True,
        logprobs=request.top_logprobs,
        prompt_logprobs=request.top_logprobs if request.scores else None,
        structured_outputs=held,
        # texts are made of the tokens elsewhere
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def tokens(completion: CompletionOutput, top: int) -> list[Token]:
    """What an output adds to an answer.

    Args:
        top: how many likeliest tokens are told with each.

    Raises:
        EngineError: the answer ends for a reason of vLLM's own.
    """
    ids = list(completion.token_ids)
    told = completion.logprobs or [None] * len(ids)
    found = [_token(id_, logprobs, top) for id_, logprobs in zip(ids, told, strict=True)]
    finish = completion.finish_reason
    if finish is None:
        return found
    if finish not in ("stop", "length") or not found:
        raise EngineError(f"vLLM ended the answer: {finish}")
    last = found[-1]
    return [*found[:-1], Token(last.id, last.logprob, last.top, finish)]


def scored(request: Request, told: PromptLogprobs) -> tuple[Token, ...]:
    """The tokens of the prompt; the first has no logprob.

    Args:
        told: what vLLM tells of each of them.
    """
    top = request.top_logprobs or 0
    return tuple(_token(id_, each, top) for id_, each in zip(request.prompt, told, strict=True))


def _token(id_: int, logprobs: dict[int, Logprob] | None, top: int) -> Token:
    if logprobs is None:
        return Token(id_)
    # the chosen token stands among them whatever its rank
    ranked = sorted((each.rank, other, each.logprob) for other, each in logprobs.items())
    told = tuple((other, logprob) for _, other, logprob in ranked[:top])
    return Token(id_, logprobs[id_].logprob, told)
