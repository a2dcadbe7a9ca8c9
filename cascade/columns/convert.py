"""Columns as they come in a table -> the types of the prepared form, and which rows are wrong.

A converter takes one column, and whether it is of a file in which all values are text, and returns
it converted, with the rows [B] whose value cannot be used, or None where all can. A column of a
type that can never be used is a `WrongType`: a number comes from text in such a file alone, and
from a boolean never, but for a label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cascade.encoding import MAX_VALUE_BYTES
from cascade.schema import Kind

Flags = npt.NDArray[np.bool_]
Converted = tuple[pa.Array, Flags | None]
Convert = Callable[[pa.Array, bool], Converted]

LARGEST = float(np.finfo(np.float32).max)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
_PLAIN_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"


class WrongType(Exception):
    """A column whose type cannot be used; the message says what was expected."""


class Described(Protocol):
    """What is asked of a feature."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def length(self) -> int: ...


@dataclass(frozen=True)
class Wanted:
    """A column to read: what to call it, how to convert it, and what a good value is."""

    name: str
    convert: Convert
    expected: str


def label(column: pa.Array, of_text: bool) -> Converted:
    """-> float32, 0 or 1; true and false are labels, too."""
    column = _decoded(column)
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    numbers, wrong = _numbers(column, of_text, "a label, 0 or 1")
    values = numbers.to_numpy(zero_copy_only=False)
    bad = _or(wrong, ~np.isin(values, (0, 1)))
    return pc.cast(numbers, pa.float32()), bad


def item_id(known: pa.Array | None) -> Convert:
    """-> int64 from 0 on; where `known` ids are given, one of those."""

    def convert(column: pa.Array, of_text: bool) -> Converted:
        ids, wrong = _integers(column, of_text)
        bad = _or(wrong, _flags(pc.is_null(ids)), _flags(pc.less(ids, 0)))
        if known is not None:
            bad = _or(bad, ~_flags(pc.is_in(ids, value_set=known)))
        return ids, bad

    return convert


def item_name(known: pa.Array | None) -> Convert:
    """-> string, not empty; where `known` ids are given, one of those."""

    def convert(column: pa.Array, of_text: bool) -> Converted:
        ids = _text(column, "item ids: strings or integers")
        bad = _flags(pc.fill_null(pc.equal(ids, ""), True))
        if known is not None:
            bad = bad | ~_flags(pc.is_in(ids, value_set=known))
        return ids, bad

    return convert


def user_id(required: bool) -> Convert:
    """-> string, so that 7 in one table and '7' in another are one user."""

    def convert(column: pa.Array, of_text: bool) -> Converted:
        ids = _text(column, "user ids: strings or integers")
        ids = pc.if_else(pc.equal(ids, ""), pa.scalar(None, pa.string()), ids)
        return ids, _flags(pc.is_null(ids)) if required else None

    return convert


def time(column: pa.Array, of_text: bool) -> Converted:
    """-> int64 or float64 as it is, timestamps as int64 microseconds since 1970 in UTC; text is
    read as a number or as ISO 8601."""
    column = _decoded(column)
    if _is_text(column):
        kinds = (pa.int64(), pa.float64(), pa.timestamp("us", "UTC"), pa.timestamp("us"))
        for kind in kinds:
            try:
                return time(pc.cast(column, kind), of_text)
            except pa.ArrowInvalid:
                continue
        # Some rows are no times: the others are of the kind that most are of.
        read = [(kind, *_one_by_one(column, kind)) for kind in kinds]
        kind, moments, wrong = min(read, key=lambda found: int(found[2].sum()))
        number = pa.float64() if kind == pa.float64() else pa.int64()
        return pc.cast(moments, number), _or(wrong, _flags(pc.is_null(moments)))
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        kind = pa.timestamp("us", getattr(column.type, "tz", None))
        moments = pc.cast(_cast(column, kind, allow_time_truncate=True)[0], pa.int64())
        return moments, _flags(pc.is_null(moments))
    if pa.types.is_integer(column.type):
        moments, _ = _cast(column, pa.int64())
        return moments, _flags(pc.is_null(moments))
    if pa.types.is_floating(column.type):
        numbers = pc.cast(column, pa.float64())
        return numbers, ~np.isfinite(numbers.to_numpy(zero_copy_only=False))
    raise WrongType("times: numbers, timestamps or text such as 2026-01-31 12:00:00")


def title(column: pa.Array, of_text: bool) -> Converted:
    """-> string."""
    return _text(column, "titles: strings"), None


def number(name: str) -> Wanted:
    """How the column of a dense feature is read: float32, null where it is missing."""
    return Wanted(name, _dense, "a finite number, or nothing where it is missing")


def feature(described: Described) -> Wanted:
    """How the column of a feature is read: float32 or string, null where it is missing; the members
    of a list are joined by |."""
    if described.kind == "dense":
        return number(described.name)
    if described.kind != "categorical":
        expected = "a list, or text joined by |, of members without | and line feed"
        return Wanted(described.name, lambda column, _: _members(column, described), expected)
    expected = f"a string or an integer of at most {MAX_VALUE_BYTES} bytes without a line feed"
    return Wanted(described.name, lambda column, _: _category(column), expected)


def _dense(column: pa.Array, of_text: bool) -> Converted:
    numbers, wrong = _numbers(column, of_text, "numbers")
    numbers = pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    too_large = pc.fill_null(pc.greater(pc.abs(numbers), LARGEST), False)
    bad = _or(wrong, _flags(too_large))
    if bad is not None and bad.any():  # float32 could not hold them
        numbers = pc.if_else(pa.array(bad), pa.scalar(None, pa.float64()), numbers)
    return pc.cast(numbers, pa.float32(), safe=False), bad


def _category(column: pa.Array) -> Converted:
    texts = _text(column, "strings or integers")
    return texts, _or(
        _too_long(texts), _flags(pc.fill_null(pc.match_substring(texts, "\n"), False))
    )


def _members(column: pa.Array, described: Described) -> Converted:
    bad: Flags | None = None
    column = _decoded(column)
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        members = _text(column.flatten(), "lists of strings or integers")
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        rows = pa.array(np.repeat(np.arange(len(column)), lengths))
        there = pc.and_(pc.is_valid(members), pc.not_equal(members, ""))
        members, rows = members.filter(there), rows.filter(there)
        split = _flags(pc.match_substring(members, "|"))
        bad = np.zeros(len(column), np.bool_)
        bad[rows.to_numpy()[split]] = True
        counts = np.bincount(rows.to_numpy(), minlength=len(column))
        offsets = pa.array(np.concatenate(([0], np.cumsum(counts))), pa.int32())
        texts = pc.binary_join(pa.ListArray.from_arrays(offsets, members), "|")
    else:
        texts = _text(column, "lists, or strings joined by |")
    long = _too_long(texts)
    if long.any():
        texts = _shortened(texts, np.flatnonzero(long), described)
    feeds = _flags(pc.fill_null(pc.match_substring(texts, "\n"), False))
    return texts, _or(bad, _too_long(texts), feeds)


def _shortened(texts: pa.Array, rows: npt.NDArray[Any], described: Described) -> pa.Array:
    """A model sees `length` members alone, so that a longer history is no mistake."""
    values = texts.to_pylist()
    for row in rows:
        members = [member for member in values[row].split("|") if member]
        newest = described.kind == "sequence"
        kept = members[-described.length :] if newest else members[: described.length]
        values[row] = "|".join(kept)
    return pa.array(values, pa.string())


def _text(column: pa.Array, expected: str) -> pa.Array:
    """Text, UTF-8, integers, dates. A float is refused: 3.0 is not what a client sends for 3."""
    column = _decoded(column)
    kind = column.type
    if pa.types.is_null(kind):
        return pc.cast(column, pa.string())
    if _is_text(column) or any(is_bytes(kind) for is_bytes in _BYTES):
        try:
            texts = pc.cast(column, pa.string())
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise WrongType(f"{expected} in UTF-8") from error
        return texts
    if pa.types.is_integer(kind) or pa.types.is_date(kind):
        return pc.cast(column, pa.string())
    raise WrongType(expected)


def _numbers(column: pa.Array, of_text: bool, expected: str) -> Converted:
    """-> float64; the rows with text that is no number, or with one that is infinite."""
    column = _decoded(column)
    kind = column.type
    if of_text and _is_text(column):
        numbers, wrong = _cast(column, pa.float64())
    elif pa.types.is_null(kind):
        numbers, wrong = pc.cast(pc.cast(column, pa.int8()), pa.float64()), None
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers, wrong = pc.cast(column, pa.float64(), safe=False), None
    else:
        raise WrongType(expected)
    return numbers, _or(wrong, np.isinf(numbers.to_numpy(zero_copy_only=False)))


def _integers(column: pa.Array, of_text: bool) -> Converted:
    """-> int64, exact; the rows that hold something else."""
    column = _decoded(column)
    kind = column.type
    if pa.types.is_integer(kind):
        return _cast(column, pa.int64())
    if of_text and _is_text(column):
        plain = _flags(pc.fill_null(pc.match_substring_regex(column, _PLAIN_INTEGER), True))
        if plain.all():
            return _cast(column, pa.int64())
        if plain.mean() < 0.5:
            raise WrongType("item ids: integers of 64 bits, or write `item_ids: strings`")
        good = pc.if_else(pa.array(plain), column, pa.scalar(None, pa.string()))
        ids, wrong = _one_by_one(good, pa.int64())
        return ids, _or(wrong, ~plain)
    strings = ", or write `item_ids: strings`" if _is_text(column) else ""
    raise WrongType(f"item ids: integers of 64 bits{strings}")


def _cast(values: pa.Array, kind: pa.DataType, **allowed: bool) -> Converted:
    try:
        return pc.cast(values, options=pc.CastOptions(kind, **allowed)), None
    except pa.ArrowInvalid:
        return _one_by_one(values, kind, **allowed)


def _one_by_one(values: pa.Array, kind: pa.DataType, **allowed: bool) -> tuple[pa.Array, Flags]:
    """Cast each value alone; those that cannot be are missing, and marked."""
    options, wrong, found = pc.CastOptions(kind, **allowed), np.zeros(len(values), np.bool_), []
    for row, value in enumerate(values):
        try:
            found.append(value.cast(options=options))
        except pa.ArrowInvalid:
            wrong[row] = True
            found.append(pa.scalar(None, kind))
    return pa.array(found, kind), wrong


def _too_long(texts: pa.Array) -> Flags:
    return _flags(pc.fill_null(pc.greater(pc.binary_length(texts), MAX_VALUE_BYTES), False))


def _is_text(column: pa.Array) -> bool:
    kind = column.type
    return any(is_text(kind) for is_text in _TEXTS)


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _flags(mask: pa.Array) -> Flags:
    return np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), np.bool_)


def _or(*masks: Flags | None) -> Flags | None:
    given = [mask for mask in masks if mask is not None]
    return np.logical_or.reduce(given) if given else None
