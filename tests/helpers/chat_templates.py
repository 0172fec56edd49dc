"""Chat templates of the model families, written out, and the tokenizers that the tests use."""

from __future__ import annotations

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from aift_ray.data.prompts.safe_tokenizer import SafeTokenizer

CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>'"
    " + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
    "assistant.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if not (m.role == 'system' and loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and \
not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>'))\
 %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n')\
.split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n'\
 + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for m in loop_messages %}{% if loop.index0 == 0 and system_message %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

LLM_JP = (
    "{{bos_token}}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '\\n\\n### 指示:\\n' + m['content'] }}{% elif m['role'] == 'system' %}"
    "{{ '以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。' }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '\\n\\n### 応答:\\n' + m['content'] + eos_token }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '\\n\\n### 応答:\\n' }}{% endif %}{% endfor %}"
)

R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
    "{% set content = m['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)

# R1 without the split, so that thoughts are trained.
R1_TRAINING = R1.replace(
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}", ""
)

HARMONY = (
    "{{ '<|start|>system<|message|>You are a model.\\nCurrent date: ' "
    "+ strftime_now('%Y-%m-%d') + '\\n\\n# Valid channels: analysis, final.<|end|>' }}"
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '<|start|>developer<|message|># Instructions\\n\\n' + m['content'] + '\\n\\n<|end|>' }}"
    "{% elif m['role'] == 'user' %}{{ '<|start|>user<|message|>' + m['content'] + '<|end|>' }}"
    "{% elif loop.last %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|return|>' }}{% else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)

CALM2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + '\\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'ASSISTANT: ' + m['content'] + eos_token + '\\n' }}"
    "{% else %}{{ m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)

# Family: template, bos, eos, and the string that ends the last turn.
FAMILIES: dict[str, tuple[str, str | None, str, str]] = {
    "chatml": (CHATML, None, "<|endoftext|>", "<|im_end|>"),
    "qwen2.5": (QWEN25, None, "<|im_end|>", "<|im_end|>"),
    "qwen3": (QWEN3, None, "<|im_end|>", "<|im_end|>"),
    "llama3": (LLAMA3, "<s>", "<|eot_id|>", "<|eot_id|>"),
    "gemma2": (GEMMA2, "<bos>", "<eos>", "<end_of_turn>"),
    "llama2": (LLAMA2, "<s>", "</s>", "</s>"),
    "llm-jp": (LLM_JP, "<s>", "</s>", "</s>"),
    "r1": (R1, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "harmony": (HARMONY, "<|startoftext|>", "<|return|>", "<|return|>"),
    "calm2": (CALM2, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
}

SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<bos>",
    "<eos>",
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|startoftext|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|channel|>",
    "<|return|>",
    "<|call|>",
    "<mask>",
]
NOT_SPECIAL = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<NL>"]

_TEXTS = [
    "日本の首都は東京です。大阪は西日本の中心で、京都には古い寺が多くあります。",
    "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。",
    "\n\n### 指示:\n次の文を要約してください。\n\n### 入力:\n今日は晴れ\n\n### 応答:\nはい。\n\n\n",
    "USER: こんにちは\nASSISTANT: こんにちは。元気です。 はい はい はい",
    "You are a helpful assistant. [INST] hello [/INST] hello <<SYS>> system user assistant",
    "これは架空の会社の決算です。売上は百億円、利益は十億円でした。",
]
# Qwen's and Llama 3's: a run of newlines is one piece, so newlines merge across a border.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _added(special: bool) -> list[AddedToken]:
    names = SPECIAL if special else NOT_SPECIAL
    return [AddedToken(name, special=special, normalized=False) for name in names]


def bpe() -> Tokenizer:
    """A byte-level BPE tokenizer like Llama 3's and Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=_added(True),
        show_progress=False,
    )
    # The control strings are trained on as well: merges that make one must not bring it back.
    tokenizer.train_from_iterator([*_TEXTS * 4, "<|im_end|></s>"], trainer)
    tokenizer.add_tokens(_added(False))
    return tokenizer


def metaspace(prepend: str = "always") -> Tokenizer:
    """A Unigram tokenizer with byte fallback and a dummy blank in front, like sentencepiece's.

    The control strings are pieces of its vocabulary, so that the model itself would find them.
    """
    letters = sorted(set("".join(_TEXTS)) - {" "})
    words = [
        "▁",
        "日本",
        "東京",
        "です。",
        "はい",
        "▁はい",
        "### ",
        "応答",
        "\n\n",
        "指示:",
        "▁[/INST]",
    ]
    pieces = [(each, 0.0) for each in SPECIAL]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(each, -4.0) for each in words] + [(each, -7.0) for each in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    if prepend == "legacy":  # as Llama 2 was first converted
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(blanks)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(_added(True))
    tokenizer.add_tokens(_added(False))
    return tokenizer


def safe(backend: Tokenizer) -> SafeTokenizer:
    """All of whose added tokens are control."""
    return SafeTokenizer(backend, backend.get_added_tokens_decoder())


def wrap(
    backend: Tokenizer,
    template: str | None = None,
    bos: str | None = None,
    eos: str | None = "</s>",
    adds_bos: bool = False,
) -> PreTrainedTokenizerFast:
    """A transformers tokenizer around a copy of `backend`, with pad = eos."""
    copy = Tokenizer.from_str(backend.to_str())
    if adds_bos and bos is not None:
        pair = (bos, copy.token_to_id(bos))
        copy.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[pair])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=copy,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer
