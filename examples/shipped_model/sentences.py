"""Makes Japanese sentences in pairs, plain style (常体) and polite style (敬体).

The pair is right by construction: both come from one choice of words, and only the predicate's
form differs. `Grammar(seed).sentence()` gives one; the same seed gives the same sequence.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import lexicon
from conjugation import VERB_FORMS, conjugate

MIN_CHARACTERS, MAX_CHARACTERS = 8, 30
HELD_OUT_PERCENT = 12

_PAST_TIMES = ["昨日", "おととい", "先週", "先月", "この間", "夏休みに", "日曜日に"]
_FUTURE_TIMES = ["明日", "あさって", "来週", "来月", "今度の日曜日に", "週末に"]
_TIMES = {
    "past": _PAST_TIMES,
    "negative_past": _PAST_TIMES,
    "completion": _PAST_TIMES,
    "trial": _PAST_TIMES,
    "excess": _PAST_TIMES,
    "beginning": ["先週", "先月", "さっき", "去年の春"],
    "desire_past": ["昨日", "先週", "子どものころ", "ずっと前から"],
    "progressive": ["今", "さっきから", "最近"],
    "progressive_past": ["昨日", "そのとき", "さっきまで"],
    "progressive_negative": ["今", "最近", "このごろ"],
    "negative": ["最近", "このごろ", "今週"],
}
_FORM_WEIGHTS = {
    "act": "past 18 nonpast 14 negative 10 negative_past 9 volitional 8 thought 3 desire 7 "
    "desire_negative 4 desire_past 4 progressive 7 progressive_past 5 progressive_negative 4 "
    "completion 3 trial 3 obligation 4 ability 4 intention 4 conjecture 4 possibility 4 hearsay 3 "
    "beginning 3 excess 5",
    "happening": "past 20 nonpast 8 negative 8 negative_past 10 completion 8 conjecture 4 "
    "possibility 6 hearsay 3",
    "event": "past 20 nonpast 12 negative 10 negative_past 10 conjecture 5 possibility 5 hearsay 3",
    "state": "past 14 nonpast 18 negative 12 negative_past 10 conjecture 4 possibility 5 hearsay 3",
}
_OWN = {"volitional", "thought", "desire", "desire_negative", "desire_past"}
_DELIBERATE = {"trial", "beginning", "completion"}
_CONTRASTED = {"past", "obligation", "volitional", "intention"}
_CONTINUES = {"past", "nonpast", "volitional", "desire", "completion", "obligation", "intention"}


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence in both styles.

    Attributes:
        plain, polite: the sentence with its full stop.
        core: what it says: complement (or topic), predicate in dictionary form, form.
        last: the last predicate in plain and in polite style.
        words: content words of the sentence that another word could replace.
    """

    plain: str
    polite: str
    core: tuple[str, str, str]
    last: tuple[str, str]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Verb:
    word: str
    kind: str
    theme: str
    excess: bool
    complements: tuple[str, ...]


def is_held_out(core: tuple[str, str, str]) -> bool:
    """Whether sentences with this core are for evaluation only; a property of its text alone."""
    digest = hashlib.sha256("|".join(core).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def _verbs(table: str) -> list[_Verb]:
    verbs = []
    for line in lexicon.rows(table):
        head, complements = line.split(" | ")
        word, kind, theme = head.split()
        name, _, flag = theme.partition("+")
        verbs.append(_Verb(word, kind, name, flag == "e", tuple(complements.split())))
    return verbs


def _columns(table: str) -> list[list[list[str]]]:
    return [[cell.split() for cell in line.split("|")] for line in lexicon.rows(table)]


def _content(person: str, complement: str) -> tuple[str, ...]:
    words = [person[:-1]] if person.endswith("は") else []
    return (*words, complement[:-1]) if complement[-1] in "をにが" else tuple(words)


class Grammar:
    """A seeded source of sentences."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._verbs = {
            "act": _verbs(lexicon.ACTS),
            "happening": _verbs(lexicon.HAPPENINGS),
            "event": _verbs(lexicon.EVENTS),
            "state": _verbs(lexicon.STATES),
        }
        self._qualities = _columns(lexicon.QUALITIES)
        self._identities = _columns(lexicon.IDENTITIES)
        self._people = {name: words.split() for name, words in lexicon.PEOPLE.items()}

    def sentence(self) -> Sentence:
        """The next sentence."""
        kinds = ["act", "happening", "event", "state", "quality", "identity"]
        while True:
            kind = self._random.choices(kinds, [58, 9, 9, 4, 14, 6])[0]
            if kind == "act":
                made = self._act()
            elif kind == "quality":
                made = self._quality()
            elif kind == "identity":
                made = self._identity()
            else:
                made = self._other_verb(kind)
            if MIN_CHARACTERS <= len(made.plain) <= MAX_CHARACTERS and len(made.polite) <= 36:
                return made

    def __iter__(self) -> Iterator[Sentence]:
        """Sentences without end."""
        while True:
            yield self.sentence()

    def _chance(self, percent: int) -> bool:
        return self._random.randrange(100) < percent

    def _form(self, kind: str) -> str:
        cells = _FORM_WEIGHTS[kind].split()
        return self._random.choices(cells[::2], [int(weight) for weight in cells[1::2]])[0]

    def _time(self, form: str) -> str:
        if form in {"past", "negative_past"} and self._chance(50):
            return ""
        if form in VERB_FORMS and self._chance(55):
            return self._random.choice(_TIMES.get(form, _FUTURE_TIMES)) + "、"
        return ""

    def _person(self, theme: str, form: str) -> str:
        """The subject with its particle; what one wants or proposes is one's own."""
        if form == "volitional":
            return self._random.choice(["", "", "一緒に", "みんなで"])
        if form in _OWN:
            return self._random.choice(["", "私は", "私は"])
        pool = self._people["adult" if theme == "work" else "any"]
        return self._random.choice(pool) + "は"

    def _act(self) -> Sentence:
        verb = self._random.choice(self._verbs["act"])
        form = self._form("act")
        deliberate = verb.excess or verb.theme not in {"none", "move"}
        if (form == "excess" and not verb.excess) or (form in _DELIBERATE and not deliberate):
            form = "past"
        complement = self._random.choice(verb.complements)
        pair = conjugate(verb.word, verb.kind, form)
        person = self._person(verb.theme, form)
        clause = self._clause(verb.theme, form)
        if clause != ("", ""):
            place = time = ""
        else:
            time = self._time(form)
            if form == "progressive" and verb.theme in {"move", "none"}:
                time = time and "最近、"
            place = self._place(verb.theme, complement)
        subject_first = clause[0].endswith("て、")
        starts = [person + part if subject_first else part + person for part in clause]
        middle = place + complement
        return Sentence(
            plain=f"{time}{starts[0]}{middle}{pair[0]}。",
            polite=f"{time}{starts[1]}{middle}{pair[1]}。",
            core=(complement, verb.word, form),
            last=pair,
            words=_content(person, complement),
        )

    def _place(self, theme: str, complement: str) -> str:
        """A place, unless the complement already names one or a way that needs none."""
        if theme not in lexicon.PLACES or complement.endswith("で") or not self._chance(35):
            return ""
        place = self._random.choice(lexicon.PLACES[theme].split())
        inside = place == "台所で" and complement[-1] == "に"
        return "" if inside or place[:-1] in complement or theme == "home" else place

    def _clause(self, theme: str, form: str) -> tuple[str, str]:
        """A clause before the last predicate in plain and polite style; mostly none."""
        roll = self._random.randrange(100)
        if roll < 24 and theme in lexicon.TE_CLAUSES and form in _CONTINUES:
            clause = self._random.choice(lexicon.TE_CLAUSES[theme].split()) + "、"
            return clause, clause
        if roll < 34 and theme in lexicon.CAUSES and form == "past":
            clause = self._random.choice(lexicon.CAUSES[theme].split()) + "、"
            return clause, clause
        if roll >= 86 and theme in lexicon.CONTRASTED and form in _CONTRASTED:
            table = lexicon.CONTRASTS_PAST if form == "past" else lexicon.CONTRASTS_NOW
            head, word, kind, clause_form = self._random.choice(lexicon.rows(table)).split()
            if word == "-":
                head, word = "", head
            plain, polite = conjugate(word, kind, clause_form)
            head = head + "が" if kind == "五" and head == "時間" else head
            return f"{head}{plain}が、", f"{head}{polite}が、"
        return "", ""

    def _other_verb(self, kind: str) -> Sentence:
        verb = self._random.choice(self._verbs[kind])
        form = self._form(kind)
        complement = self._random.choice(verb.complements)
        pair = conjugate(verb.word, verb.kind, form)
        person = self._person("none", form) if kind == "happening" else ""
        # Nobody announces that he will stumble tomorrow: only what happened has a time.
        timed = kind != "state" and form in {"past", "negative_past", "completion"}
        time = self._time(form) if timed else ""
        return Sentence(
            plain=f"{time}{person}{complement}{pair[0]}。",
            polite=f"{time}{person}{complement}{pair[1]}。",
            core=(complement, verb.word, form),
            last=pair,
            words=_content(person, complement),
        )

    def _statement_form(self, flags: str) -> str:
        forms = ["past", "negative_past"]
        if "p" not in flags:
            forms += ["nonpast", "nonpast", "negative", "past", "negative"]
        if "g" in flags:
            forms += ["conjecture", "possibility"]
        return self._random.choice(forms + ["change"] * ("c" in flags))

    def _statement(self, topic: str, degree: str, word: str, kind: str, form: str) -> Sentence:
        pair = conjugate(word, kind, form)
        return Sentence(
            plain=f"{topic}は{degree}{pair[0]}。",
            polite=f"{topic}は{degree}{pair[1]}。",
            core=(topic, word, form),
            last=pair,
            words=(topic,),
        )

    def _quality(self) -> Sentence:
        flags, topics, adjectives, na_adjectives = self._random.choice(self._qualities)
        kind = "い" if self._chance(60) else "な"
        word = self._random.choice(adjectives if kind == "い" else na_adjectives)
        form = self._statement_form("".join(flags))
        positive = ["", "とても", "かなり", "本当に"]
        if form in {"conjecture", "possibility"}:
            positive = ["", "", "たぶん"] if form == "conjecture" else ["", "", "もっと"]
        if form == "change":
            positive = ["", "前より", "だんだん"]
        choices = ["あまり", "それほど"] if form.startswith("negative") else positive
        return self._statement(
            self._random.choice(topics), self._random.choice(choices), word, kind, form
        )

    def _identity(self) -> Sentence:
        flags, topics, nouns = self._random.choice(self._identities)
        form = self._statement_form("".join(flags))
        return self._statement(
            self._random.choice(topics), "", self._random.choice(nouns), "な", form
        )
