"""Item ids in text files, in the forms in which people and programs write them."""

from __future__ import annotations

import codecs
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.id_lines import IdLines, read


def bad(lines: IdLines) -> list[int]:
    return [line.number for line in lines.bad]


def saved(ids: list[int]) -> str:
    file = io.StringIO()
    np.savetxt(file, np.array(ids))
    return file.getvalue()


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_encoding_of_text_is_read(encoding: str, end: str) -> None:
    lines = read(end.join(["17", "", "# gone", "18  # é", "19"]).encode(encoding), False)
    assert (lines.ids, lines.bad) == ([17, 18, 19], [])
    strings = read(end.join(["sku-1", "Größe 4", '"a # b" # why']).encode(encoding), True)
    assert (strings.literals(), strings.bad) == (["sku-1", "Größe 4", "a # b"], [])


def test_a_mark_of_utf_16_alone_decides_the_order_of_its_bytes() -> None:
    for mark, encoding in ((codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF16_LE, "utf-16-le")):
        assert read(mark + "é1\n17".encode(encoding), True).literals() == ["é1", "17"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("item_id\n17\n18\n", [17, 18]),
        ("Item ID\n17", [17]),
        ("movieId\n17", [17]),
        ("sep=;\nreason;item_id\nsold 12 times;17\n;18\n", [17, 18]),
        ('title,item_id\n"1,2 and ""3""",17\n', [17]),
        ('"17"\n\'18\'\n "19" \n', [17, 18, 19]),
        ("17.0\n18.000\n+19\n", [17, 18, 19]),
        (saved([17, 2**31]), [17, 2**31]),
        ("1,2345\n17,18\n19;20;\n21\t22\n23,\n", [1, 2345, *range(17, 24)]),
        ("17,no longer sold\n18;recalled  # by law\n", [17, 18]),
        ('"1,234"\n"1,234,567",why\n', [1234, 1234567]),
        ("[17, 18]", [17, 18]),
        ("[\n  17,\n  18\n]\n", [17, 18]),
        ("\ufeff17\n\ufeff18\u00a0\n", [17, 18]),  # two files, one behind the other
        (f"-1\n{2**63 - 1}\n{-(2**63)}", [-1, 2**63 - 1, -(2**63)]),
        ("", []),
        ("item_id\n", []),
    ],
)
def test_integers_are_read_in_the_forms_that_programs_write(text: str, ids: list[int]) -> None:
    lines = read(text.encode(), False)
    assert (lines.ids, lines.bad) == (ids, [])
    assert lines.literals() == ids


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        (b"12 monkeys", []),
        (b"sku-1", []),
        (b"17.5", []),
        (b"1.23457E+12", []),  # a spreadsheet rounds
        (b"9007199254740993.0", []),  # so does a float
        (b"9223372036854775808", []),
        (b"nan", []),
        (b"1e999999999", []),
        (b'"17', []),
        (b"1_000", []),  # as Python alone writes a thousand
        (b"3,1_000", [3]),
        (b"1\xff", []),
        (b"item_id", []),  # not in the first line
        (b"3,l8,4", [3, 4]),
        (b"l8,3", [3]),
    ],
)
def test_a_bad_line_costs_itself_alone(line: bytes, ids: list[int]) -> None:
    lines = read(b"17\n" + line + b"\n18\n", False)
    assert (lines.ids, bad(lines)) == ([17, *ids, 18], [2])
    assert "is no item id" in str(lines.bad[0])


@pytest.mark.parametrize(
    ("line", "literal", "other"),
    [
        ("1,234", [1, 234], [1234]),
        ("-1,234,567  # why", [-1, 234, 567], [-1234567]),
        ("100,200,300", [100, 200, 300], [100200300]),
        ("1,234,recalled", [1, 234], [1234]),
        ("1,234,56", [1, 234, 56], []),
        ("[100,200]", [100, 200], []),
        ("100, 200", [100, 200], []),
        ("1000,200", [1000, 200], []),
        ("0,200", [0, 200], []),
        ("999" + 7 * ",999", 8 * [999], []),  # no integer of 64 bits
    ],
)
def test_integers_that_may_be_one_with_separators_are_read_as_both(
    line: str, literal: list[int], other: list[int]
) -> None:
    lines = read(f"7\n{line}\n".encode(), False)
    assert (lines.ids, lines.bad) == ([7, *literal, *other], [])
    assert lines.literals() == [7, *literal]


@pytest.mark.parametrize(
    ("line", "ids", "literal", "told"),
    [
        ('{"item_id": "sku-1"}', ["sku-1", '{"item_id": "sku-1"}'], 1, False),
        (
            '{"why": "a, b", "Item ID": 17}, # gone',
            ["17", '{"why": "a, b", "Item ID": 17}'],
            1,
            False,
        ),
        ('[{"id": "a"}, "b", 17]', ["a", "b", "17"], 3, False),
        ("[17]", ["17"], 1, False),
        ('{"sku": "a"}', ['{"sku": "a"}'], 1, True),
        ('["a", null]', ["a"], 1, True),
        ("[Box] 17", ["[Box] 17"], 1, False),
        ("[" * 100_000, ["[" * 100_000], 1, False),
    ],
)
def test_strings_in_json_are_read_or_told(
    line: str, ids: list[str], literal: int, told: bool
) -> None:
    lines = read(f"x\n{line}\ny\n".encode(), True)
    assert (lines.ids, bad(lines)) == (["x", *ids, "y"], [2] * told)
    assert lines.literals() == ["x", *ids[:literal], "y"]
    assert all("is no item id: JSON without an item_id" in str(line) for line in lines.bad)


def test_below_a_header_the_other_columns_are_remarks() -> None:
    text = b"rank,item_id\n1,17\n2,\n3\n4,x\n5,18,6\n"
    lines = read(text, False)
    assert (lines.ids, bad(lines), lines.header) == ([17, 18], [3, 4, 5, 6], "rank,item_id")
    strings = read(text, True)
    assert (strings.literals(), bad(strings)) == (["17", "x", "18"], [3, 4, 6])


@pytest.mark.parametrize(
    ("line", "literal", "others"),
    [
        ("sku#1 # why", "sku#1", []),
        ("a,b", "a,b", ["a", "b"]),
        ("sku-1;no longer sold", "sku-1;no longer sold", ["sku-1", "no longer sold"]),
        ('"sku-1","why"', "sku-1", ["why"]),
        ('"sku-1",', "sku-1", []),
        ('"# odd \\u00e9"  # quoted', "# odd é", []),
        ('"a ""b"""', 'a "b"', []),
        ("'sku-1'", "'sku-1'", ["sku-1"]),
        ("17.0", "17.0", ["17"]),
        ('5" nail', '5" nail', []),
    ],
)
def test_a_string_is_the_line_and_else_what_may_be_meant(
    line: str, literal: str, others: list[str]
) -> None:
    lines = read(f"# ids\n{line}\n".encode(), True)
    assert (lines.ids, lines.bad) == ([literal, *others], [])
    assert lines.literals() == [literal]


def test_a_list_of_strings_is_several() -> None:
    assert read(b'["sku-1", "b"]\n', True).literals() == ["sku-1", "b"]
    assert read(b"[" * 100_000, True).literals() == ["[" * 100_000]
    assert read(b'[\n  "sku-1",\n  "b"\n]\n', True).literals()[1:3] == ["sku-1", "b"]


@pytest.mark.parametrize("line", [b'"b', b"\xff", b'"a" b', rb'"\ud800"'])
def test_what_is_no_string_is_named(line: bytes) -> None:
    lines = read(b"a\n" + line + b"\nb\n", True)
    assert (lines.literals(), bad(lines)) == (["a", "b"], [2])


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_integers_come_back(ids: list[int]) -> None:
    assert read("".join(f"{item}\n" for item in ids).encode(), False).ids == ids


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read(data: bytes, string_ids: bool) -> None:
    lines: Any = read(data, string_ids)
    assert len(lines.ids) == len(lines.numbers) == len(lines.literal)
    assert all(str(line).isprintable() or repr(str(line)) for line in lines.bad)
    for item in lines.ids:
        assert item.encode() if string_ids else -(2**63) <= item < 2**63
