"""A row as it is read: of the kind that the objective of a run asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from aift_ray.data.examples import Example, Fault
from aift_ray.data.readers.preference_rows import (
    EXPECTED_LABEL,
    EXPECTED_PAIR,
    label_form,
    make_labelled,
    make_pair,
    pair_form,
)
from aift_ray.data.readers.prompt_rows import EXPECTED_PROMPT, make_asked, prompt_form
from aift_ray.data.readers.reader_options import PLAIN, Reading
from aift_ray.data.readers.row_schema import RowFormat, find_form, make_example
from aift_ray.data.readers.wrong_row import WrongRow, kind_of


def read_row(row: object, file: str, line: int, reading: Reading) -> Example | Fault:
    """The example that a row is, or the fault that says why it is none.

    Where rows of any kind are read, one of no kind is a text.
    """
    found = _made(row, file, line, reading)
    if isinstance(found, Example) or not reading.any_row:
        return found
    text = "\0".join(strings(row))
    return Example("text", file, line, output=text) if text.strip("\0 ") else found


def _made(row: object, file: str, line: int, reading: Reading) -> Example | Fault:
    if reading.answers == "one":
        return make_example(row, file, line)
    try:
        if not isinstance(row, dict):
            expected = {"pair": EXPECTED_PAIR, "label": EXPECTED_LABEL, "prompt": EXPECTED_PROMPT}
            remedy = f"expected {expected[reading.answers]}"
            raise WrongRow(f"the row is {kind_of(row)}, expected an object", remedy)
        makers = {"pair": make_pair, "label": make_labelled, "prompt": make_asked}
        return makers[reading.answers](row, file, line)
    except WrongRow as wrong:
        return Fault(file, line, wrong.reason, wrong.remedy)


def find_columns_form(names: Collection[str], reading: Reading) -> RowFormat:
    """The kind of row that columns of these names are.

    Raises:
        WrongRow: none.
    """
    if reading.answers == "one":
        return find_form(names, "column")
    forms = {"pair": pair_form, "label": label_form, "prompt": prompt_form}
    return forms[reading.answers](names, "column")


def is_form(names: Collection[str], reading: Reading = PLAIN) -> bool:
    """Whether columns of these names are a kind of row."""
    try:
        find_columns_form(names, reading)
    except WrongRow:
        return False
    return True


def strings(value: object) -> Iterator[str]:
    """Every text in a JSON value, in its order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)
