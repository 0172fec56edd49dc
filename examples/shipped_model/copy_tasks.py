"""Chat rows of simple copying tasks, which teach the format, stopping and copying with an edit.

None of them changes plain into polite style or back.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import lexicon


@dataclass(frozen=True, slots=True)
class Material:
    """A sentence to work on; `last` is its last predicate, "" where that is not known."""

    text: str
    last: str
    words: tuple[str, ...]
    polite: bool


Pools = tuple[list[Material], list[Material]]
Row = tuple[str, str, str]
_NOUNS = sorted(
    {
        cell[:-1]
        for line in lexicon.rows(lexicon.ACTS) + lexicon.rows(lexicon.EVENTS)
        for cell in line.split(" | ")[1].split()
        if cell[-1] in "をが"
    }
)
_PEOPLE = lexicon.PEOPLE["any"].split()


def _pick(pools: Pools, generator: random.Random) -> Material:
    return generator.choice(pools[generator.random() < 0.35])


def _repeat(pools: Pools, generator: random.Random) -> Row:
    text = _pick(pools, generator).text
    wordings = ["次の文をそのまま繰り返してください。", "同じ文をもう一度書いてください。"]
    return generator.choice(wordings), text, text


def _one_of_two(pools: Pools, generator: random.Random) -> Row:
    pair = (_pick(pools, generator).text, _pick(pools, generator).text)
    second = generator.random() < 0.5
    asked = ["二つ目の", "後の"] if second else ["一つ目の", "初めの"]
    return f"{generator.choice(asked)}文だけを書いてください。", "".join(pair), pair[second]


def _swap_sentences(pools: Pools, generator: random.Random) -> Row:
    first, second = _pick(pools, generator).text, _pick(pools, generator).text
    return "二つの文の順序を入れ替えてください。", first + second, second + first


def _quoted(pools: Pools, generator: random.Random) -> Row:
    text, person = _pick(pools, generator).text[:-1], generator.choice(_PEOPLE)
    sentence = f"{person}は「{text}」と言った。"
    wordings = ["「」の中の言葉を書き出してください。", "かぎ括弧の中だけを書いてください。"]
    return generator.choice(wordings), sentence, text


def _quote(pools: Pools, generator: random.Random) -> Row:
    text = _pick(pools, generator).text
    return "次の文を「」で囲んでください。", text, f"「{text}」"


def _word_after(pools: Pools, generator: random.Random) -> Row:
    words = generator.sample(_NOUNS, generator.randint(3, 6))
    index = generator.randrange(len(words) - 1)
    asked = f"「{words[index]}」の次の言葉を書いてください。"
    return asked, "、".join(words), words[index + 1]


def _position(pools: Pools, generator: random.Random) -> Row:
    word = generator.choice(_NOUNS)
    index = generator.randrange(min(len(word), 5))
    return f"{'一二三四五'[index]}文字目を書いてください。", word, word[index]


def _swap_words(pools: Pools, generator: random.Random) -> Row:
    first, second = generator.sample(_NOUNS, 2)
    return "二つの言葉の順序を逆にしてください。", f"{first}、{second}", f"{second}、{first}"


def _join(pools: Pools, generator: random.Random) -> Row:
    first, second = generator.sample(_NOUNS, 2)
    return "二つの言葉を「と」でつないでください。", f"{first}、{second}", f"{first}と{second}"


def _append(pools: Pools, generator: random.Random) -> Row:
    text = _pick(pools, generator).text
    ending = generator.choice(["ね", "よ", "よね", "が", "けれど", "と言った", "と聞いた", "から"])
    wordings = [f"文の終わりに「{ending}」を付けてください。", f"「{ending}。」で終えてください。"]
    return generator.choice(wordings), text, f"{text[:-1]}{ending}。"


def _mark(pools: Pools, generator: random.Random) -> Row:
    text, mark = _pick(pools, generator).text, generator.choice("！？…")
    return f"文の終わりの「。」を「{mark}」に変えてください。", text, text[:-1] + mark


def _cut_end(pools: Pools, generator: random.Random) -> Row:
    text = _pick(pools, generator).text
    count = generator.randint(1, 4)
    asked = f"文の終わりの「{text[-count:]}」を取ってください。"
    return asked, text, text[:-count]


def _last_predicate(pools: Pools, generator: random.Random) -> Row:
    material = generator.choice(pools[0])
    other = generator.choice(pools[0])
    while other.polite != material.polite or other.last == material.last:
        other = generator.choice(pools[0])
    asked = f"最後の「{material.last}」を「{other.last}」に変えてください。"
    head = material.text[: -len(material.last) - 1]
    return asked, material.text, f"{head}{other.last}。"


def _replace(pools: Pools, generator: random.Random) -> Row:
    material = generator.choice(pools[0])
    while not material.words:
        material = generator.choice(pools[0])
    old = generator.choice(material.words)
    pool = _PEOPLE if old in (*_PEOPLE, "私") else _NOUNS
    new = generator.choice([word for word in pool if word != old])
    asked = f"「{old}」を「{new}」に置き換えてください。"
    return asked, material.text, material.text.replace(old, new)


def _prefix(pools: Pools, generator: random.Random) -> Row:
    text = _pick(pools, generator).text
    start = generator.choice(["でも、", "そして、", "ところが、", "たぶん、", "実は、", "やはり、"])
    return f"文の初めに「{start}」を付けてください。", text, start + text


def _after_comma(pools: Pools, generator: random.Random) -> Row:
    text = _pick(pools, generator).text
    while "、" not in text:
        text = _pick(pools, generator).text
    before, _, after = text.partition("、")
    if generator.random() < 0.5:
        return "初めの「、」より後を書いてください。", text, after
    return "初めの「、」より前を書いてください。", text, before


_TASKS: dict[Callable[[Pools, random.Random], Row], int] = {
    _repeat: 22,
    _append: 12,
    _last_predicate: 12,
    _cut_end: 9,
    _mark: 7,
    _replace: 8,
    _prefix: 6,
    _one_of_two: 6,
    _swap_sentences: 2,
    _quoted: 4,
    _quote: 3,
    _after_comma: 4,
    _word_after: 4,
    _position: 2,
    _swap_words: 2,
    _join: 2,
}


def chat_row(pools: Pools, generator: random.Random) -> dict[str, str]:
    """One row; `pools` are synthetic sentences and literary ones.

    Now and then the text stands in the instruction itself, so that copying does not depend on
    one place in the prompt.
    """
    task = generator.choices(list(_TASKS), list(_TASKS.values()))[0]
    instruction, text, output = task(pools, generator)
    if generator.random() < 0.1:
        return {"instruction": f"{instruction}\n{text}", "output": output}
    return {"instruction": instruction, "input": text, "output": output}
