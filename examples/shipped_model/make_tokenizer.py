"""Trains the byte-level BPE on a corpus folder and writes the folder that training starts from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

# A multiple of 64, so that no row of the embedding is left without a token.
VOCABULARY = 5056
CONTEXT = 2048
# Bytes; four Japanese characters, so that a token is a word or an ending, not a phrase.
MAX_TOKEN_LENGTH = 12
OTHER_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>")
SPECIAL_TOKENS = ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>")

_END = "(?=[。！？、」が…]|$)"
_POLITE = "ませんでした|ましょう|ました|ません|ます|でしょう|でした|です"
_LAST_KANA = rf"(?:[いた](?=です{_END})|[ぁ-ゖ](?=[。！？」]|が、))"
# Order matters. A polite ending and the last kana of a plain one are pieces of their own, so that
# 食べた。 and 食べました。, 高い。 and 高いです。 differ in whole tokens and share the ones before.
PIECES = "|".join(
    (
        r"\d",
        r"\n",
        r"[ \t　]+",
        rf"(?:{_POLITE}){_END}",
        r"では(?=ない|なかった|ありません)",
        _LAST_KANA,
        rf"[ぁ-ゖー]+?(?=(?:{_POLITE}){_END}|では(?:ない|なかった|ありません)|{_LAST_KANA})",
        r"[ぁ-ゖー]+",
        r"[ァ-ヺー]+",
        r"[\p{Han}々〆]+",
        r"[A-Za-zＡ-Ｚａ-ｚ]+",
        r"[…―]+",
        r"[\s\S]",
    )
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def corpus_texts(folder: Path) -> Iterator[str]:
    """Every string of text.jsonl and chat.jsonl."""
    for name in ("text.jsonl", "chat.jsonl"):
        with (folder / name).open(encoding="utf-8") as lines:
            for line in lines:
                yield from json.loads(line).values()


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that covers every byte, with ChatML as its chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=MAX_TOKEN_LENGTH,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(OTHER_SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves it under the names that Transformers 4 and 5 both read.

    Version 5 writes a class and a key that version 4 does not know.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config.pop("extra_special_tokens", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = list(OTHER_SPECIAL_TOKENS)
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The shape of the shipped model, about 4M parameters."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def main(arguments: list[str] | None = None) -> None:
    """Writes tokenizer, config.json and generation_config.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of make_corpus.py")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    tokenizer = train_tokenizer(corpus_texts(options.corpus))
    save_tokenizer(tokenizer, options.output)
    model_config(tokenizer).save_pretrained(options.output)
    GenerationConfig(
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=128,
    ).save_pretrained(options.output)


if __name__ == "__main__":
    main()
