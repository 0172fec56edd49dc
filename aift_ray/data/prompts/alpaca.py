"""The Alpaca forms of a prompt (`### 指示:`), for tokenizers that bring no chat template.

Each has the name of its kind in front, so it is known again when it was saved with a model.
"""

from __future__ import annotations

_SYSTEM = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
_SYSTEM_WITH_INPUT = (
    "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。"
    "要求を適切に満たす応答を書きなさい。"
)
_NAME = "{#- aift_ray: Alpaca-ja -#}"
_STABLELM_NAME = "{#- aift_ray: Alpaca-ja of StableLM -#}"
_BOS = "{%- if bos_token is defined and bos_token -%}{{ bos_token }}{%- endif -%}"
_FORM = (
    "{%- if messages[0]['role'] != 'system' -%}{{ 'SYSTEM' }}{%- endif -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'system' -%}"
    "{{ message['content'] }}{%- elif message['role'] == 'user' -%}"
    "{{ '\\n\\n### 指示COLON\\n' + message['content'] }}{%- else -%}"
    "{{ '\\n\\n### 応答COLON\\n' + message['content'] + eos_token }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\\n\\n### 応答COLON\\n' }}{%- endif -%}"
)


def _form(system: str, colon: str) -> str:
    return _FORM.replace("SYSTEM", system).replace("COLON", colon)


FALLBACK_TEMPLATE = _NAME + _BOS + _form(_SYSTEM, ":")
# a blank after each colon, and the text that speaks of an input even where there is none
STABLELM_TEMPLATE = _STABLELM_NAME + _form(_SYSTEM_WITH_INPUT, ": ")

# what a catalogued model without a chat template was trained with
KNOWN = {"alpaca-stablelm": STABLELM_TEMPLATE}


def is_fallback(template: str) -> bool:
    """Whether a chat template is the general Alpaca form, also after it was saved and loaded."""
    return template.startswith(_NAME)


def before_input(template: str) -> str:
    """What stands between an instruction and its input, under a chat template."""
    if template.startswith(_STABLELM_NAME):
        return "\n\n### 入力: \n"
    return "\n\n### 入力:\n" if is_fallback(template) else "\n\n"
