"""Conjugates Japanese predicates in plain and polite style."""

from __future__ import annotations

_ROWS = {
    "う": "わいえお",
    "つ": "たちてと",
    "る": "らりれろ",
    "む": "まみめも",
    "ぶ": "ばびべぼ",
    "ぬ": "なにねの",
    "く": "かきけこ",
    "ぐ": "がぎげご",
    "す": "さしせそ",
}
_TE = {"う": "って", "つ": "って", "る": "って", "む": "んで", "ぶ": "んで", "ぬ": "んで"}
_TE |= {"く": "いて", "ぐ": "いで", "す": "して"}

# form: (base, ending in plain style, base, ending in polite style)
VERB_FORMS: dict[str, tuple[str, str, str, str]] = {
    "nonpast": ("whole", "", "stem", "ます"),
    "past": ("ta", "", "stem", "ました"),
    "negative": ("nai", "ない", "stem", "ません"),
    "negative_past": ("nai", "なかった", "stem", "ませんでした"),
    "volitional": ("will", "", "stem", "ましょう"),
    "thought": ("will", "と思う", "will", "と思います"),
    "desire": ("stem", "たい", "stem", "たいです"),
    "desire_negative": ("stem", "たくない", "stem", "たくないです"),
    "desire_past": ("stem", "たかった", "stem", "たかったです"),
    "progressive": ("te", "いる", "te", "います"),
    "progressive_past": ("te", "いた", "te", "いました"),
    "progressive_negative": ("te", "いない", "te", "いません"),
    "completion": ("te", "しまった", "te", "しまいました"),
    "trial": ("te", "みた", "te", "みました"),
    "excess": ("stem", "すぎた", "stem", "すぎました"),
    "beginning": ("stem", "始めた", "stem", "始めました"),
    "obligation": ("nai", "なければならない", "nai", "なければなりません"),
    "ability": ("whole", "ことができる", "whole", "ことができます"),
    "intention": ("whole", "つもりだ", "whole", "つもりです"),
    "conjecture": ("whole", "だろう", "whole", "でしょう"),
    "possibility": ("whole", "かもしれない", "whole", "かもしれません"),
    "hearsay": ("whole", "そうだ", "whole", "そうです"),
}
_ADJECTIVE_FORMS = {
    "nonpast": ("い", "いです"),
    "past": ("かった", "かったです"),
    "negative": ("くない", "くないです"),
    "negative_past": ("くなかった", "くなかったです"),
    "conjecture": ("いだろう", "いでしょう"),
    "possibility": ("いかもしれない", "いかもしれません"),
    "change": ("くなった", "くなりました"),
}
_COPULA_FORMS = {
    "nonpast": ("だ", "です"),
    "past": ("だった", "でした"),
    "negative": ("ではない", "ではありません"),
    "negative_past": ("ではなかった", "ではありませんでした"),
    "conjecture": ("だろう", "でしょう"),
    "possibility": ("かもしれない", "かもしれません"),
    "change": ("になった", "になりました"),
}


def verb_bases(verb: str, kind: str) -> dict[str, str]:
    """The bases of a verb: whole, nai (before ない), stem (before ます), will, te and ta.

    Args:
        verb: dictionary form.
        kind: 五 (godan), 一 (ichidan), サ (ends in する) or カ (来る, written in kanji).
    """
    if kind == "五":
        head, last = verb[:-1], verb[-1]
        a, i, _, o = list(_ROWS[last])
        te = "って" if verb.endswith("行く") else _TE[last]
        nai, stem, will, te = head + a, head + i, head + o + "う", head + te
    else:
        nai = verb[:-2] + "し" if kind == "サ" else verb[:-1]
        stem, will, te = nai, nai + "よう", nai + "て"
    ta = te[:-1] + ("だ" if te.endswith("で") else "た")
    return {"whole": verb, "nai": nai, "stem": stem, "will": will, "te": te, "ta": ta}


def conjugate(word: str, kind: str, form: str) -> tuple[str, str]:
    """A predicate in one form, in plain and in polite style.

    Args:
        word: dictionary form; of a na-adjective or noun the word without だ.
        kind: 五 一 サ カ for verbs, い for i-adjectives, な for na-adjectives and nouns.
        form: a key of VERB_FORMS; for adjectives and nouns nonpast, past, negative,
            negative_past, conjecture, possibility or change.

    Raises:
        KeyError: the class has no such form, or the verb has no such ending.
    """
    if kind == "い":
        plain, polite = _ADJECTIVE_FORMS[form]
        # いい and 〜がいい borrow every form but the い-form itself from よい.
        head = "よ" if word == "いい" and not plain.startswith("い") else word[:-1]
        return head + plain, head + polite
    if kind == "な":
        plain, polite = _COPULA_FORMS[form]
        return word + plain, word + polite
    plain_base, plain, polite_base, polite = VERB_FORMS[form]
    bases = verb_bases(word, kind)
    pair = bases[plain_base] + plain, bases[polite_base] + polite
    if word == "ある" and plain_base == "nai":
        # The negative of ある is the adjective ない: there is no あらない.
        return plain, pair[1]
    return pair
