"""How polite the sentences of a Japanese text are."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from aift_ray.rewards.japanese_text import is_japanese

_SENTENCES = re.compile(r"[。！？!?\n]+")
_AFTER_END = "」』）)】〉》\"'”’♪☆★…〜～・ 　"
_PARTICLES = r"(?:か|かね|ね|よ|よね|な|わ|が|けど|けれど|から|ので|のに|し)?"
_VERBAL = r"ます|ました|ません|ませんでした|ましょう"
_COPULA = r"です|でした|でしょう"
_ENDING = re.compile(rf"(.+?)({_VERBAL}|{_COPULA}){_PARTICLES}", re.DOTALL)
_REQUEST = re.compile(
    r".*(?:ください|下さい|なさい|(?:ください|下さい|くださり|いらっしゃい)ませ)", re.DOTALL
)
# what is before ます: the stem of a verb ends in the rows i or e, or is one of these alone
_STEM = re.compile(
    r".*[いきぎしじちぢにひびみりえけげせぜてでねへべめれ見来出寝着煮似経得居]", re.DOTALL
)
# what is before です and is wrong there: verbs, copulas and negations in plain style
_I, _E, _HAN = "いきぎしじちにひびみり", "えけげせぜてでねべめれ", "一-鿿"
# before ない, each of three characters, as a look behind needs it
_ADJECTIVES = "つまら|くだら|ったい|申し訳|んでも"
_WRONG = re.compile(
    ".*(?:"
    # 行かない, but 高くない and adjectives such as 少ない
    rf"(?<![く危少切])(?<!{_ADJECTIVES})(?:ない|なかった)"
    # 学生だ, 飲んだ, but まだ
    r"|(?<!ま)(?<!た)(?<!から)(?<!は)(?<!あい)(?<!え)(?<!ふ)だ|だった|だろう"
    # 行こう, 食べよう, but ようだ's よう
    rf"|[{_HAN}][おこごそぞとどのぼもろ]う|[{_I}{_E}{_HAN}]よう"
    # 買った, 見つかった, but 高かった
    r"|(?<!か)った|(?:分|わ|見つ|みつ|助|たす|掛|向|預)かった"
    # 起きた, 来た, but あした
    rf"|(?<!あ)[{_I}{_E}]た|[見来出寝着煮似経得居]た"
    # 行く, 食べる, する, but ひる
    rf"|[{_HAN}][かがくさただつづずとまらわお]?[うくぐすつぬぶむる]|(?<!あ)[{_I}{_E}](?<!ひ)る|する|ある|なる|くる"
    ")",
    re.DOTALL,
)


def polite_share(text: str) -> float:
    """Sentences of a text that end in polite style (敬体) among all of them; 0 where there is none.

    Polite are ます, です and requests, rightly joined to what is before them: not 買うます or
    学生だです. Plain negative forms with です (行かないです) are colloquial, and count as wrong.
    """
    ends = list(_sentence_ends(text))
    return sum(map(_ends_politely, ends)) / len(ends) if ends else 0.0


def _sentence_ends(text: str) -> Iterator[str]:
    for sentence in _SENTENCES.split(unicodedata.normalize("NFKC", text)):
        end = sentence.strip().rstrip(_AFTER_END)
        if any(map(is_japanese, end)):
            yield end


def _ends_politely(end: str) -> bool:
    if _REQUEST.fullmatch(end):
        return True
    matched = _ENDING.fullmatch(end)
    if not matched:
        return False
    before, form = matched.groups()
    if form in _VERBAL.split("|"):
        return bool(_STEM.fullmatch(before))
    # a plain form may be before でしょう: 行くでしょう
    return form == "でしょう" or not _WRONG.fullmatch(before)
