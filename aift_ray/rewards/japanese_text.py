"""How Japanese a text is."""

from __future__ import annotations

import re
import unicodedata

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://[\w/:%#$&?()~.=+-]+", re.DOTALL)
_CLAUSES = re.compile(r"[。、．，！？!?,.;；:：\s「」『』（）()]+")
# characters of Chinese sentences that a Japanese clause without kana does not hold twice
_CHINESE_WORDS = frozenset(
    "我你您他她它們的是了在有和也不就都很這那哪沒會要說對為什麼怎誰吧嗎呢个来把被让"
)
_ENGLISH_WORD = r"[A-Za-z][A-Za-z'’-]*"


def japanese_share(text: str, english_words: int) -> float:
    """Japanese characters among the letters of a text; 0 where Chinese or English breaks in.

    Code, addresses, digits and signs don't count, nor do fewer than `english_words` English words
    in a row, such as names of products.

    Args:
        english_words: English words in a row that make the share 0.
    """
    plain = _CODE.sub(" ", unicodedata.normalize("NFKC", text))
    run = rf"{_ENGLISH_WORD}(?:[ ,;:]+{_ENGLISH_WORD}){{{english_words - 1},}}"
    if re.search(run, plain) or _is_chinese(plain):
        return 0.0
    japanese = sum(map(is_japanese, plain))
    without_words = re.sub(_ENGLISH_WORD, "", plain)
    other = sum(unicodedata.category(c)[0] == "L" and not is_japanese(c) for c in without_words)
    return japanese / (japanese + other) if japanese else 0.0


def is_japanese(character: str) -> bool:
    """Kana, or a Han character that Japanese encodings have."""
    return _is_kana(character) or (is_han(character) and not _is_foreign_han(character))


def _is_chinese(text: str) -> bool:
    if any(is_han(c) and _is_foreign_han(c) for c in text):
        return True
    for clause in _CLAUSES.split(text):
        han = [c for c in clause if is_han(c)]
        if len(han) >= 4 and not any(map(_is_kana, clause)):
            words = {c for c in han if c in _CHINESE_WORDS}
            if len(words) >= 2:
                return True
    return False


def _is_kana(character: str) -> bool:
    return ("ぁ" <= character <= "ヿ" and character not in "・゠") or "ㇰ" <= character <= "ㇿ"


def is_han(character: str) -> bool:
    """Whether a character is a Chinese character (kanji), with its iteration and closing marks."""
    return (
        "一" <= character <= "鿿"
        or "㐀" <= character <= "䶿"
        or "豈" <= character <= "﫿"
        or character in "々〆〇"
        or 0x20000 <= ord(character) <= 0x323AF
    )


def _is_foreign_han(character: str) -> bool:
    """Whether the Windows code page of Japanese lacks it; those of names, beyond U+FFFF, pass."""
    if ord(character) > 0xFFFF:
        return False
    try:
        character.encode("cp932")
    except UnicodeEncodeError:
        return True
    return False
