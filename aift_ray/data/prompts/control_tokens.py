"""Which tokens that were added to a tokenizer no text of a row or a request may make."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from jinja2 import Environment, TemplateError
from transformers import PreTrainedTokenizerBase

from aift_ray.data.examples import Message
from aift_ray.data.prompts.chat_template import ChatTemplate
from aift_ray.data.prompts.row_error import RowError

_BLANK = " \t\r\n\u3000\u2581"
# between texts of a template that do not follow each other
_SEAM = "\ufdd0"


def control_ids(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, stop_ids: Collection[int]
) -> frozenset[int]:
    """Ids of the added tokens that are special, that end a turn or that the template writes.

    Others, such as words that extend a vocabulary and runs of blanks (GPT-NeoX has them for code),
    are found in every text, as transformers does.
    """
    written = _written(template)
    return frozenset(
        id_
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip(_BLANK)
        and (token.special or id_ in stop_ids or token.content in written)
    )


def words(tokenizer: PreTrainedTokenizerBase, control: Collection[int]) -> list[str]:
    """The other added tokens, without runs of blanks, in the order of their ids."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    texts = [token.content for id_, token in added if id_ not in control]
    return [text for text in texts if text.strip(_BLANK)]


def _written(template: ChatTemplate) -> str:
    """The texts in a template's source, and what it writes around the contents of messages."""
    user, answer = Message("user", "a"), Message("assistant", "b", thought="c")
    found = []
    with suppress(TemplateError):
        for token in Environment().lexer.tokenize(template.source):
            if token.type in ("data", "string"):
                found.append(str(token.value))
            elif token.type not in ("add", "tilde"):
                found.append(_SEAM)
    system = Message("system", "d")
    for chat in ([user], [user, answer], [system, user, answer], template.learn_calls()):
        with suppress(RowError):
            parts = template.shape(chat, generation=answer not in chat)
            found += [_SEAM if part.content else part.text for part in parts]
    return "".join(found)
