"""Names of columns that mean the keys of a row: those that the user names, and common ones."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

from aift_ray.data.readers.reader_options import Reading
from aift_ray.data.readers.text_encoding import WrongFile

# Kinds of row by the keys that they need; a table whose header has none of ours is one of them
# where each key has one column. `prompt` and `completion` are not here: they are trained without
# the chat template, which a column's name alone does not say.
_NEEDED = (("instruction", "output"), ("text",))
_COMMON: Mapping[str, str] = {
    "instruction": "instruction question query q 質問 質問文 質問内容 問 問い 問い合わせ 問合せ "
    "設問 問題 問題文 指示 指示文 プロンプト ユーザー ユーザ",
    "output": "output answer response reply a 回答 回答文 回答内容 回答例 答 答え 解答 応答 応答文 "
    "返答 返信 出力 模範解答 アシスタント",
    "input": "input context 入力 文脈 コンテキスト 背景 補足 補足情報",
    "text": "text body 本文 テキスト 文章 文書",
}
_KEY_OF = {name: key for key, names in _COMMON.items() for name in names.split()}
# characters of a name
_LONGEST = 40
# columns that number the rows
_NO_COLUMN = ("", "id", "no", "番号")


def common(names: Sequence[str]) -> dict[str, str]:
    """{key of a row: column} of a header none of whose kinds of row is whole, by common names.

    Raises:
        WrongFile: two columns could be the same key.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        key = _KEY_OF.get(_folded(name))
        if key:
            found.setdefault(key, []).append(name)
    for needed in _NEEDED:
        if not all(key in found for key in needed):
            continue
        kept = {key: found[key] for key in (*needed, "input") if key in found}
        if needed == ("text",):
            kept.pop("input", None)
        double = next((key for key in kept if len(kept[key]) > 1 and key not in kept[key]), None)
        if double and double != "input":
            listed = " and ".join(kept[double])
            reason = f"the columns {listed} could each be the {double}"
            chosen = {key: columns[0] for key, columns in kept.items()}
            raise WrongFile(reason, f"name the columns, for example {flag(chosen)}")
        return {
            key: key if key in columns else columns[0]
            for key, columns in kept.items()
            if key in columns or len(columns) == 1
        }
    return {}


def meaning(name: str) -> str | None:
    """The key of a row that a name commonly stands for."""
    return _KEY_OF.get(_folded(name))


def suggestion(names: Sequence[str]) -> str:
    """The flag that would make a row of these columns or keys; "" where it can't be guessed."""
    try:
        found = common(names)
    except WrongFile:
        found = {}
    if found:
        return flag({key: name for key, name in found.items() if key != name})
    plain = [name for name in names if _folded(name) not in _NO_COLUMN]
    if not all(len(name) <= _LONGEST and name.isprintable() for name in plain):
        # no header at all
        return ""
    if len(plain) > 1:
        return flag({"instruction": plain[0], "output": plain[1]})
    alone = len(plain) == 1 and _KEY_OF.get(_folded(plain[0]), "text") == "text"
    return flag({"text": plain[0]}) if alone else ""


def flag(columns: Mapping[str, str]) -> str:
    """`columns` as they are typed on the command line."""
    import shlex

    text = ",".join(f"{key}={column}" for key, column in columns.items())
    return f"--data.columns {shlex.quote(text) if ' ' in text else text}"


def renamed(names: Sequence[str], reading: Reading, complete: bool) -> list[str]:
    """The names of columns, those that are a key of a row by its name.

    Args:
        complete: they are a kind of row as they are, so that no common name is looked for.

    Raises:
        WrongFile: a column that the user has named is not there.
    """
    columns = {key: name for key, name in reading.columns.items() if name in names}
    reading.used.update(columns)
    absent = missing(reading, names)
    if absent:
        listed = ", ".join(name for name in names if name)
        reason = f"there is no column {' and '.join(absent)}; the columns are {listed}"
        raise WrongFile(reason, corrected(reading.columns, names))
    if not columns and not complete:
        columns = {key: name for key, name in common(names).items() if key != name}
    column_of = {name: key for key, name in columns.items()}
    # what has a key's name and is not meant is no column of ours
    return [column_of.get(name, "" if name in columns else name) for name in names]


def missing(reading: Reading, names: Collection[str]) -> list[str]:
    """Columns that the user has named and that are not there, nor under the key's own name."""
    away = {key: name for key, name in reading.columns.items() if name not in names}
    if away:
        reading.seen.update(names)
    return [name for key, name in away.items() if key not in names]


def corrected(columns: Mapping[str, str], names: Collection[str]) -> str:
    """`columns` as they must be typed where some are not among `names`, by the nearest of them."""
    free = [name for name in names if name and name not in columns.values()]
    found = {}
    for key, name in columns.items():
        near = [name] if name in names else get_close_matches(name, free, 1, 0.5)
        near = near or [each for each in free if each == key or meaning(each) == key]
        if not near:
            return "name those that are there: --data.columns KEY=COLUMN,..."
        found[key] = near[0]
        free = [each for each in free if each != near[0]]
    return f"did you mean {flag(found)}?"


def renamed_row(row: object, reading: Reading) -> object:
    """The same row with the keys that the user has named."""
    if not reading.columns or not isinstance(row, dict):
        return row
    names = {name: key for key, name in reading.columns.items() if name in row}
    if not names:
        return row
    reading.used.update(names.values())
    taken = set(names.values())
    kept = {key: value for key, value in row.items() if key in names or key not in taken}
    return {names.get(key, key): value for key, value in kept.items()}


def _folded(name: str) -> str:
    """A name as it is compared: width, case and blanks don't count."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return "".join(plain.split()).replace("_", "")
