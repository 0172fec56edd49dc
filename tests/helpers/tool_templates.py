"""Templates that write tools and thoughts, each in the manner of a family, shortened."""

from __future__ import annotations

# Qwen3: JSON between tags, results as a user's turn, thoughts of the last round only
QWEN3_TOOLS = """{%- if tools %}<|im_start|>system
{%- if messages[0].role == "system" %}{{ "\n" + messages[0].content + "\n" }}{%- endif %}
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% elif messages[0].role == "system" %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{%- if message.role == "user" %}{%- set ns.last = loop.index0 %}
{%- endif %}{%- endfor %}
{%- for message in messages %}
{%- if message.role == "user" %}<|im_start|>user
{{ message.content }}<|im_end|>
{% elif message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.role == "assistant" %}
{%- set content = message.content or "" %}
{%- set thought = "" %}
{%- if message.reasoning_content is string %}{%- set thought = message.reasoning_content %}
{%- elif "</think>" in content %}
{%- set thought = content.split("</think>")[0].split("<think>")[-1].strip("\n") %}
{%- set content = content.split("</think>")[-1].lstrip("\n") %}
{%- endif -%}
<|im_start|>assistant
{% if loop.index0 > ns.last and (loop.last or thought) -%}
<think>
{{ thought.strip("\n") }}
</think>

{% endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{%- if content or not loop.first %}{{ "\n" }}{%- endif %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{%- endif %}"""

# DeepSeek-R1: the prompt opens the thought, calls only where there is no text, their arguments as
# text, no header before what is said of a result
R1_TOOLS = (
    "{%- set ns = namespace(tool=false) -%}{{ bos_token }}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content }}{%- endif %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.tool = false -%}"
    "{{ '<｜User｜>' + m.content }}"
    "{%- elif m.role == 'tool' %}{%- set ns.tool = true -%}"
    "{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}"
    "{%- elif m.role == 'assistant' and m.content is not defined %}"
    "{{ '<｜Assistant｜>' }}{%- for call in m.tool_calls %}"
    "{{ '<｜tool▁call▁begin｜>' + call.function.name + '\\n' + call.function.arguments"
    " + '<｜tool▁call▁end｜>' }}{%- endfor %}{{ '<｜end▁of▁sentence｜>' }}"
    "{%- elif m.role == 'assistant' %}"
    "{{ ('' if ns.tool else '<｜Assistant｜>') + m.content.split('</think>')[-1]"
    " + '<｜end▁of▁sentence｜>' }}{%- set ns.tool = false -%}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt and not ns.tool %}{{ '<｜Assistant｜><think>\\n' }}{%- endif %}"
)

# gpt-oss: channels, one call a turn with an end of its own, results as JSON, thoughts of a call
# until there is an answer
HARMONY_TOOLS = """<|start|>system<|message|># Valid channels: analysis, commentary, final.<|end|>
{%- set told = messages[0].content if messages[0].role == "system" else "" %}
{%- if told or tools %}<|start|>developer<|message|>{{ told }}
{%- for tool in tools or [] %}{{ "\ntype " + tool.function.name + " = (_: " }}
{{- tool.function.parameters | tojson }}) => any; {{ tool.function.description }}
{%- endfor %}<|end|>{% endif %}
{%- set ns = namespace(called=none) %}
{%- for message in messages %}
{%- if message.role == "user" %}<|start|>user<|message|>{{ message.content }}<|end|>
{%- elif message.role == "tool" -%}
<|start|>functions.{{ ns.called }} to=assistant<|channel|>commentary<|message|>
{{- message.content | tojson }}<|end|>
{%- elif message.role == "assistant" and "tool_calls" in message %}
{%- set later = namespace(answer=false) %}
{%- for other in messages[loop.index:] %}
{%- if other.role == "assistant" and "tool_calls" not in other %}
{%- set later.answer = true %}{%- endif %}{%- endfor %}
{%- if message.content and message.thinking %}
{{- raise_exception("content and thinking together") }}{%- endif %}
{%- set said = message.thinking or message.content %}
{%- if said and not later.answer -%}
<|start|>assistant<|channel|>analysis<|message|>{{ said }}<|end|>
{%- endif %}
{%- set ns.called = message.tool_calls[0].function.name -%}
<|start|>assistant to=functions.{{ ns.called }}<|channel|>commentary json<|message|>
{{- message.tool_calls[0].function.arguments | tojson }}<|call|>
{%- elif message.role == "assistant" and loop.last and not add_generation_prompt %}
{%- if "thinking" in message -%}
<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>
{%- endif -%}
<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|return|>
{%- elif message.role == "assistant" -%}
<|start|>assistant<|channel|>final<|message|>{{ message.content }}<|end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""

# Mistral: tools and system before the last question, ids of nine signs
MISTRAL = """{{- bos_token }}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == "user" %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for m in messages %}
{%- if m.role == "user" %}
{%- if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]
{%- endif %}[INST] {% if loop.index0 == ns.last and messages[0].role == "system" -%}
{{ messages[0].content + "\n\n" }}{% endif %}{{ m.content }}[/INST]
{%- elif m.role == "assistant" and m.tool_calls is defined and m.tool_calls is not none -%}
[TOOL_CALLS] [
{%- for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception("ids have nine letters") }}{%- endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
{{- ", " if not loop.last }}
{%- endfor %}]{{ eos_token }}
{%- elif m.role == "assistant" %} {{ m.content | trim }}{{ eos_token }}
{%- elif m.role == "tool" -%}
[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}
{{- "[/TOOL_RESULTS]" }}
{%- endif %}
{%- endfor %}"""

# Llama 3.1: one call a turn, alone, the result as JSON from ipython
LLAMA31 = """{{- bos_token }}<|start_header_id|>system<|end_header_id|>

{% if messages[0].role == "system" %}{{ messages[0].content | trim }}{% endif %}
{%- for tool in tools or [] %}{{ "\n" + (tool | tojson) }}{% endfor %}<|eot_id|>
{%- for m in messages %}
{%- if m.role == "tool" -%}
<|start_header_id|>ipython<|end_header_id|>

{{ m.content | tojson }}<|eot_id|>
{%- elif "tool_calls" in m %}
{%- if m.tool_calls | length != 1 %}
{{- raise_exception("This model only supports single tool-calls at once!") }}{%- endif -%}
<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments
| tojson }}}<|eot_id|>
{%- elif m.role != "system" -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

# name: template, bos, eos
TOOL_FAMILIES = {
    "qwen3": (QWEN3_TOOLS, None, "<|im_end|>"),
    "r1": (R1_TOOLS, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "harmony": (HARMONY_TOOLS, "<|startoftext|>", "<|return|>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
    "llama3.1": (LLAMA31, "<s>", "<|eot_id|>"),
}
# control tokens that the other templates don't have
CONTROLS = [
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
]
