"""The instructions of M-IFEval's Japanese rows, and whether an answer follows them.

Dussolle et al. 2025, "M-IFEval: Multilingual Instruction-Following Evaluation" (arXiv:2502.04688).
Each check answers as the authors' own does (`tests/tasks/test_instructions.py` says how that was
compared); words are janome's, sentences ja_sentence_segmenter's, languages langdetect's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

Check = Callable[..., bool]

_KANJI = r"[\u4e00-\u9faf]"
_QUOTED = re.compile("「.*?」|『.*?』")
_FIXED_ANSWERS = ("はい、そうです。", "いいえ、違います。", "どちらとも言えません。")
_POSTSCRIPTS = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
_FENCES = ("```json", "```Json", "```JSON", "```")
# hiragana to katakana
_KATAKANA = 0x60


def _holds(number: int, relation: str, limit: int) -> bool:
    return number < limit if relation == "未満" else number >= limit


@cache
def _tokenizer() -> Any:
    from janome.tokenizer import Tokenizer

    return Tokenizer()


def _words(text: str) -> list[tuple[str, str]]:
    """Surface and part of speech of each word."""
    return [(each.surface, each.part_of_speech) for each in _tokenizer().tokenize(text)]


@cache
def _segmenter() -> Any:
    from ja_sentence_segmenter.common.pipeline import make_pipeline
    from ja_sentence_segmenter.concatenate.simple_concatenator import concatenate_matching
    from ja_sentence_segmenter.normalize.neologd_normalizer import normalize
    from ja_sentence_segmenter.split.simple_splitter import split_newline, split_punctuation

    joined = partial(
        concatenate_matching,
        former_matching_rule=r"^(?P<result>.+)(の)$",
        remove_former_matched=False,
    )
    ended = partial(split_punctuation, punctuations=r"。!?")
    return make_pipeline(normalize, split_newline, joined, ended)


def _language(text: str, language: str) -> bool:
    import langdetect

    # it draws at random otherwise
    langdetect.DetectorFactory.seed = 0
    try:
        return bool(langdetect.detect(text) == language)
    except langdetect.LangDetectException:
        # nothing but signs and numbers
        return True


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(len(list(_segmenter()(text))), relation, num_sentences)


def _constrained(text: str) -> bool:
    return any(answer in text for answer in _FIXED_ANSWERS)


def _highlights(text: str, num_highlights: int) -> bool:
    found = re.findall(r"《([^\n《》]*)》", text)
    return sum(bool(each.strip()) for each in found) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"第[\d\uFF10-\uFF19]+{section_spliter.strip()}", text)) >= num_sections


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    first, *middle = parts = re.split(r"\s?\*\*\*\s?", text)
    if not all(part.strip() for part in middle[:-1]):
        return False
    ends = [first, middle[-1]] if middle else [first]
    return len(parts) - sum(not end.strip() for end in ends) == num_paragraphs


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker, rf"\s*{re.escape(marker)}.*$")
    return bool(re.search(pattern, text, re.IGNORECASE | re.MULTILINE))


def _keywords(text: str, keywords: list[str]) -> bool:
    return set(keywords) <= {surface for surface, _ in _words(text)}


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    number = sum(surface == keyword.strip() for surface, _ in _words(text))
    return _holds(number, relation, frequency)


def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return set(forbidden_words).isdisjoint(surface for surface, _ in _words(text))


def _json(text: str) -> bool:
    plain = text.strip()
    for fence in _FENCES:
        plain = plain.removeprefix(fence)
    try:
        json.loads(plain.removesuffix("```").strip())
    except ValueError:
        return False
    return True


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = text.split("\n\n")
    number = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > number or number != num_paragraphs:
        return False
    begun = parts[nth_paragraph - 1].strip().lstrip("「").lstrip("『")
    return bool(begun) and begun.startswith(first_word.lower())


def _two_answers(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def _repeated(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().startswith(prompt_to_repeat.strip())


def _ended(text: str, end_phrase: str) -> bool:
    return text.strip().strip("」』").endswith(end_phrase.strip().strip("」』"))


def _title(text: str) -> bool:
    return any(t.lstrip("『").rstrip("』").strip() for t in re.findall(r"『[^\n]+』", text))


def _letter(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    both = text.count(letter) + text.count(chr(ord(letter) + _KATAKANA))
    return _holds(both, let_relation, let_frequency)


def _quotation(text: str) -> bool:
    plain = text.strip()
    return len(plain) > 1 and plain[0] == "「" and plain[-1] == "」"


def _furigana(text: str) -> bool:
    return len(re.findall(f"{_KANJI}+", text)) == len(re.findall(f"{_KANJI}+（[ぁ-ん]+）", text))


def _kanji(text: str, kanji_limit: int, relation: str) -> bool:
    return _holds(len(re.findall(_KANJI, text)), relation, kanji_limit)


def _only(text: str, allowed: str) -> bool:
    """Whether every letter is one of a class of characters."""
    letters = (each for each in text if unicodedata.category(each).startswith("L"))
    return all(re.match(allowed, each) for each in letters)


def _unified(text: str, ending: str) -> bool:
    parts = re.split("[。！？]", _QUOTED.sub("", text))
    return all(part.endswith(ending) for part in parts if part)


def _nominal(text: str, count: int) -> bool:
    words = _words(_QUOTED.sub("", text))
    ends = [before for (_, before), (sign, _) in pairwise(words) if sign in "。！？"]
    return sum(part.startswith("名詞") for part in ends) >= count


def _without(pattern: str) -> Check:
    return lambda text: not re.search(pattern, text)


def _at_least(pattern: str, name: str) -> Check:
    return lambda text, **given: len(re.findall(pattern, text)) >= given[name]


def _exactly(pattern: str, name: str) -> Check:
    return lambda text, **given: len(re.findall(pattern, text, re.MULTILINE)) == given[name]


CHECKS: dict[str, Check] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_letters": lambda text, num_letters, relation: _holds(
        len(text), relation, num_letters
    ),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _at_least(r"\[.*?\]", "num_placeholders"),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _exactly(r"^\s*・[^・].*$", "num_bullets"),
    "detectable_format:number_numbered_lists": _exactly(r"^\s*\d+\.\s.*$", "num_items"),
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "detectable_format:nominal_ending": _nominal,
    "combination:two_responses": _two_answers,
    "combination:repeat_prompt": _repeated,
    "startend:end_checker": _ended,
    "startend:sentence_unified_end": _unified,
    "startend:quotation": _quotation,
    "letters:furigana": _furigana,
    "letters:kansuuji": _without(r"\d"),
    "letters:no_katakana": _without("[ァ-ヺｦ-ﾟ]"),
    "letters:katakana_only": partial(_only, allowed="[ァ-ンー・ｦ-ﾟ]"),
    "letters:no_hiragana": _without("[ぁ-ゖ]"),
    "letters:hiragana_only": partial(_only, allowed="[ぁ-んー]"),
    "letters:kanji": _kanji,
    "punctuation:no_comma": _without("、"),
    "punctuation:no_period": _without("。"),
}
