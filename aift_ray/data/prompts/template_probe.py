"""What a chat template shows of itself when it writes short conversations."""

from __future__ import annotations

from collections.abc import Sequence

from aift_ray.data.examples import Message
from aift_ray.data.prompts.answer_spans import Joiner, literal_parts
from aift_ray.data.prompts.chat_template import CALL_ID, CALLED_WITH, ChatTemplate
from aift_ray.data.prompts.row_error import RowError
from aift_ray.data.prompts.safe_tokenizer import SafeTokenizer
from aift_ray.errors import ModelError, Problem


def has_system_role(template: ChatTemplate) -> bool:
    """Whether a template writes a system message."""
    messages = [Message("system", "規則"), Message("user", "質問")]
    try:
        return "規則" in template.render(messages, generation=True)
    except RowError:
        return False


def probe(template: ChatTemplate, safe: SafeTokenizer) -> tuple[Joiner, int, bool]:
    """What finds answers in a rendering, the id that ends one, and whether a gap is before it.

    Raises:
        ModelError: the template can't be trained on.
    """
    question, answer = Message("user", "質問"), Message("assistant", "答え")
    try:
        parts = literal_parts(template.parts([question], True, safe), safe)
        if len(parts) == 1:
            raise RowError("it does not write what the user says")
        joiner = Joiner(safe, [parts[-1].text])
        turns = template.parts([question, answer], False, safe)
        prompt = joiner.join(literal_parts(turns, safe))
    except RowError as error:
        remedy = "mend the model folder's chat template, or the file of --data.chat_template; "
        remedy += "without one the Alpaca form is used"
        raise ModelError([Problem("chat_template", str(error), remedy)]) from None
    # the prompt may open a thought, which is then trained too
    opening = safe.literal(template.tags.opening)
    gap = prompt.spans[-1].gap and opening not in joiner.headers[0]
    return joiner, prompt.spans[-1].turn_end, gap


def learn_calls(
    template: ChatTemplate, safe: SafeTokenizer, joiner: Joiner, ends: Sequence[int]
) -> list[int]:
    """Have `template` and `joiner` know how calls of tools are written; ids that end such a turn.

    Args:
        ends: known ids that end a turn.
    """
    joiner.call_ends.update(ends)
    chat = template.learn_calls()
    if not chat:
        return []
    try:
        text = safe.literal(template.render(chat[:2], False))
        after = text.rindex(CALLED_WITH) + len(CALLED_WITH)
        found = list[int]()
        while (control := safe.first_control(text, after, len(text))) is not None:
            found.append(control[1])
            after = control[2]
        known = [each for each in found if each in ends]
        joiner.call_ends.update(known or found[-1:])
        parts = literal_parts(template.parts(chat, True, safe), safe)
    except (RowError, ValueError):
        return []
    if len(parts) > 1:
        # behind the id of this very call, where the template shows it
        joiner.headers.append(parts[-1].text.rpartition(CALL_ID)[2])
    return known or found[-1:]
