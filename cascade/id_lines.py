"""Item ids in a text file, one per line, as people and programs write them: the deny list, and the
items that leave a catalogue.

| what may come | how it is read |
|---|---|
| UTF-8, UTF-16, UTF-32, with or without a byte order mark | as text; a line that is none is bad |
| `# why` | a comment: with string ids at the beginning or behind space |
| `item_id` or `item_id,reason` in the first line | a header: it names the column of the ids |
| `17,18` or `17;18`, also in brackets | several ids; words without digits are remarks |
| `1,234`: two ids, or one with a separator | both readings, 1 and 234, and 1234 |
| `"17"`, `'17'`, `17.0`, `1.70e+01`, `"1,234"` | 17, 1234: quoted, or whole numbers |

A float says less than an id above 2^53 or where digits are missing (`1.2E+12`): such a line is bad.
A string id is the line as it stands, or JSON: a text, an object with `item_id`, a list of them.
Where that is no item, its fields and the number without `.0` may be: an id that may be meant in two
ways is read in both.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from cascade.files import text_of

INT64 = range(-(2**63), 2**63)
EXACT = 2**53  # every integer up to here is a float of its own
SHOWN = 40  # characters of a bad line
DELIMITERS = ",;\t"
LONGEST = 64  # characters of a number
_SPACE = " \t\v\f\u00a0\u200b\ufeff"
_LINE_END = re.compile(r"\r\n|\n|\r")
_COMMENT = re.compile(r"(^|\s)#.*")
_HEADER = re.compile(r"(?i:(item[ _-]?)?ids?|items?)")
_HEADER_OF_INTEGERS = re.compile(r"(?i:([a-z]+[ _-])*(itemid|item|id|sku)s?)|[A-Za-z]*[a-z]I[dD]s?")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+")
_EITHER = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(?!,?[0-9.])")  # or several ids
_SPECIAL = re.compile(r"""^[\[{]|[#"',;\t[\ud800-\udfff]|\.0+$""")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")
_EXPECTED = "is no item id, an integer of 64 bits"


class BadLine(NamedTuple):
    """A line of which some or all cannot be read; `problem` says what came."""

    number: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.problem}"


@dataclass
class IdLines:
    """The ids of a file, in its order: ints or strings. Ids that stand in `literal` as False are
    other readings of their line, whose literal ones stand before them. A line may have ids and be
    among the `bad` ones, too. `header` is the first line, where it seems to be one."""

    ids: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of the line of every id
    literal: list[bool] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    header: str = ""

    def add(self, number: int, ids: list[Any], literal: int) -> None:
        """The ids of a line, of which the first `literal` are literal."""
        self.ids += ids
        self.numbers += [number] * len(ids)
        self.literal += [place < literal for place in range(len(ids))]

    def literals(self) -> list[Any]:
        """The literal ids."""
        return [item for item, literal in zip(self.ids, self.literal, strict=True) if literal]

    def ambiguous(self) -> list[int]:
        """The numbers of the lines that have another reading."""
        pairs = zip(self.numbers, self.literal, strict=True)
        return [*dict.fromkeys(number for number, literal in pairs if not literal)]


def read(data: bytes, string_ids: bool) -> IdLines:
    """The ids in the content of a file. What cannot be read is named in `IdLines.bad`."""
    found, parser = IdLines(), _Strings() if string_ids else _Integers()
    first = True
    for number, line in enumerate(_LINE_END.split(text_of(data)), 1):
        content = line.strip(_SPACE)
        if (first and content.startswith("sep=")) or parser.empty(content):
            continue
        try:
            if first and (header := parser.header(content)):
                found.header = header
            else:
                ids, literal, problem = parser.ids(content)
                found.add(number, ids, literal)
                if problem:
                    found.bad.append(BadLine(number, problem))
        except (ValueError, csv.Error) as error:
            found.bad.append(BadLine(number, _problem(content, error)))
        first = False
    return found


def _problem(content: str, error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return f"{_shown(content)} is no item id: it is not text; save the file as UTF-8"
    problem = str(error)
    return f"{_shown(content)} {'' if problem.startswith('is ') else 'is no item id: '}{problem}"


def _shown(text: str) -> str:
    return repr(text[:SHOWN].encode(errors="replace").decode())


def _fields(content: str) -> list[str]:
    """The fields of a line of CSV, without quotes and the space around them. Raises csv.Error."""
    return _split(content, _delimiter(content))


def _delimiter(content: str) -> str:
    return next((d for d in DELIMITERS if d in content), ",")


def _split(content: str, delimiter: str) -> list[str]:
    [row] = csv.reader([content], delimiter=delimiter, skipinitialspace=True, strict=True)
    return [value.strip(_SPACE + "'") for value in row]


class _Columns:
    """What integers and strings have in common: the header, and the column that it names."""

    named = _HEADER

    def __init__(self) -> None:
        self._delimiter, self._width, self._place = ",", 1, 0

    def header(self, content: str) -> str:
        """The header, where the line names a column of ids; else empty."""
        try:
            names = _fields(content)
        except csv.Error:
            return ""
        places = [place for place, name in enumerate(names) if self.named.fullmatch(name)]
        if not places:
            return ""
        self._delimiter = _delimiter(content)
        self._width, self._place = len(names), places[0]
        return content

    def column(self, content: str) -> tuple[str, str]:
        """The id of a line below a header of several columns, and what is wrong with the line."""
        row = _split(content, self._delimiter)
        if len(row) <= self._place or not row[self._place]:
            raise ValueError(f"is no item id: column {self._place + 1} is empty")
        wide = f"{_shown(content)} has {len(row)} fields; the header has {self._width}"
        return row[self._place], wide if len(row) > self._width else ""


class _Integers(_Columns):
    """Lines of integers."""

    named = _HEADER_OF_INTEGERS

    def empty(self, content: str) -> bool:
        return not content.partition("#")[0].strip(_SPACE + "[]" + DELIMITERS)

    def ids(self, content: str) -> tuple[list[int], int, str]:
        """The ids, how many are literal, and what is wrong with the rest."""
        if content.isdecimal() and self._width == 1:  # as nearly all are
            return [_integer(content)], 1, ""
        found, problem = self._several(content.partition("#")[0].strip(_SPACE))
        other = _EITHER.match(content) if self._width == 1 else None
        also = [int(other[0].replace(",", ""))] if other else []
        return [*found, *(item for item in also if item in INT64)], len(found), problem

    def _several(self, content: str) -> tuple[list[int], str]:
        if self._width > 1:
            value, problem = self.column(content)
            return [_integer(value)], problem
        found, problem = [], ""
        for place, value in enumerate(filter(None, _fields(content.strip("[]" + _SPACE)))):
            try:
                found.append(_integer(value))
            except ValueError as error:
                if place == 0 or any(letter.isdigit() for letter in value):
                    problem = f"{_shown(value)} {error}"
        if not found:
            raise ValueError(_EXPECTED)
        return found, problem


def _integer(text: str) -> int:
    """An integer, or a float that is certainly that integer. Raises ValueError."""
    if "_" in text:  # which Python reads over
        raise ValueError(_EXPECTED)
    try:
        value = int(text)
    except ValueError:
        value = _whole(text.replace(",", "") if _THOUSANDS.fullmatch(text) else text)
    if value not in INT64:
        raise ValueError(_EXPECTED)
    return value


def _whole(text: str) -> int:
    try:
        value = Decimal(text if len(text) <= LONGEST else "")
    except InvalidOperation as error:
        raise ValueError(_EXPECTED) from error
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or value != value.to_integral_value():
        raise ValueError(_EXPECTED)
    if exponent > 0 or abs(value) > EXACT:
        raise ValueError("is no item id: a float of so many digits is rounded; write integers")
    return int(value)


class _Strings(_Columns):
    """Lines of strings."""

    def empty(self, content: str) -> bool:
        return not content or content[0] == "#"

    def ids(self, content: str) -> tuple[list[str], int, str]:
        """The readings of a line, the literal one first, and what is wrong with it."""
        if self._width == 1 and not _SPECIAL.search(content):  # as nearly all are
            return [content], 1, ""
        if self._width > 1:
            value, problem = self.column(content)
            return _readings(value, []), 1, problem
        if content[0] in "[{" and (found := _json(content)):
            return self._listed(*found)
        if content.startswith('"'):
            return self._quoted(content)
        whole = _COMMENT.sub("", content).strip(_SPACE)
        try:
            fields = _fields(whole)
        except csv.Error:
            fields = []  # a quote within an id
        return _readings(whole, fields), 1, ""

    def _listed(self, value: Any, content: str) -> tuple[list[str], int, str]:
        several = isinstance(value, list)
        found = [_item(one) for one in (value if several else [value])]
        items = [item for item in found if item]
        problem = "" if all(found) else f"{_shown(content)} is no item id: JSON without an item_id"
        return items + [content] * (not several), len(items) or 1, problem

    def _quoted(self, content: str) -> tuple[list[str], int, str]:
        item, end = json.JSONDecoder().raw_decode(content)
        rest = _COMMENT.sub("", content[end:]).strip(_SPACE)
        if not rest.strip(DELIMITERS):
            return [_encoded(item)], 1, ""
        try:
            fields = [value for value in _fields(content) if value]
        except csv.Error as error:
            raise ValueError(f"{_shown(content[end:])} follows the quoted id") from error
        return _readings(fields[0], fields), 1, ""


def _json(content: str) -> tuple[Any, str] | None:
    """The value in a line of JSON, and its text."""
    try:
        value, end = json.JSONDecoder().raw_decode(content)
    except (ValueError, RecursionError):
        return None
    rest = _COMMENT.sub("", content[end:]).strip(_SPACE + DELIMITERS)
    return None if rest else (value, content[:end])


def _item(value: Any) -> str:
    """The id in a value of JSON; empty where it has none."""
    if isinstance(value, dict):
        value = next((of for name, of in value.items() if _HEADER.fullmatch(name)), None)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _encoded(value) if isinstance(value, str) else ""


def _readings(literal: str, fields: list[str]) -> list[str]:
    """A string as it stands, then what else may be meant by it. Raises UnicodeError."""
    texts = [
        _encoded(literal),
        literal.strip("'"),
        *(text for text in fields if text.isprintable()),
    ]
    texts += [found[1] for text in texts if (found := _WHOLE.fullmatch(text))]
    return [text for text in dict.fromkeys(texts) if text]


def _encoded(item: str) -> str:
    item.encode()
    return item
