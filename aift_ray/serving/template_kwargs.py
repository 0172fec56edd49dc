"""What a request may tell a chat template beside messages and tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerBase

from aift_ray.serving.api_errors import ApiError

# what a server says itself, or nobody has to
_OWN = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "strftime_now",
    "raise_exception",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
}
_SWITCHES = ("enable_thinking", "thinking")
_WHERE = "chat_template_kwargs"


class TemplateOptions:
    """The variables that a tokenizer's chat template reads.

    Attributes:
        thought: how it calls the thought in an assistant's message; None: it reads none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        source = str(tokenizer.get_chat_template())
        try:
            tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
            self.names = meta.find_undeclared_variables(tree) - _OWN
        except TemplateError:
            # a tag of transformers' own, such as {% generation %}
            self.names = {each for each in (*_SWITCHES, "reasoning_effort") if each in source}
        named = (name for name in ("reasoning_content", ".thinking") if name in source)
        found = next(named, None)
        self.thought = found.lstrip(".") if found else None

    def of(
        self, given: Mapping[str, Any] | None, effort: str | None, thinks: bool
    ) -> dict[str, Any]:
        """What the template is told.

        Args:
            given: a request's chat_template_kwargs.
            effort: its reasoning_effort.
            thinks: whether the model thinks at all.

        Raises:
            ApiError: 400, the template does not read it.
        """
        told = {name: value for name, value in (given or {}).items() if value is not None}
        for name in list(told):
            if name in self.names:
                continue
            if name in _SWITCHES and not told[name] and not thinks:
                del told[name]
                continue
            known = ", ".join(sorted(self.names)) or "no such variables"
            message = f"this model's chat template does not read it; it reads {known}"
            raise ApiError(400, message, f"{_WHERE}.{name}")
        return self._with_effort(told, effort, thinks)

    def _with_effort(
        self, told: dict[str, Any], effort: str | None, thinks: bool
    ) -> dict[str, Any]:
        switch = next((name for name in _SWITCHES if name in self.names), None)
        if effort is None:
            return told
        if "reasoning_effort" in self.names:
            return {"reasoning_effort": effort} | told
        if effort == "none" and switch:
            return {switch: False} | told
        if effort == "medium" or (effort == "none" and not thinks):
            # what is done anyway
            return told
        message = f"this model's chat template knows no effort {effort!r}"
        raise ApiError(400, message, "reasoning_effort")
