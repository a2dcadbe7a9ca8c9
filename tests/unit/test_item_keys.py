"""Keys of string ids, and ids on the wire."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.encoding import InvalidInput
from cascade.filters_wire import MOST_EXCLUDED, decode_exclude, encode_exclude
from cascade.item_keys import PAD, as_keys, key_of

IDS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)


def test_keys_do_not_change() -> None:
    """They are in the files of every release: by `b2sum -l 64`, read as little-endian."""
    assert key_of("sku-17") == key_of(b"sku-17") == 0x6A064125E9E178A8
    assert key_of("Größe") == key_of("Größe".encode())


def test_integers_are_their_own_keys() -> None:
    ids = np.array([[5, PAD], [2**62 + 1, 0]])
    assert as_keys(ids).tolist() == ids.tolist()
    names = np.array([["a", ""], [b"b", "a"]], object)
    a, b = key_of("a"), key_of("b")
    assert as_keys(names).tolist() == [[a, PAD], [b, a]]
    assert as_keys(np.zeros((0, 10), object)).shape == (0, 10)


@given(IDS)
def test_packed_integers_come_back(ids: list[int]) -> None:
    assert set(decode_exclude(encode_exclude(ids)).tolist()) - {PAD} == set(ids) - {PAD}


SPELT = [b"[123456]", b'["abcd"]', b"[1,2,3,4,5,6,78]", b'["\xc3\xa9\xc3\xa9"]']
TEXTS = [b"abcdefgh", b"sku 1234sku 5678", "éàéà".encode(), b"17, 18\r\n", b"\n" * 8, b"%" * 128]


@pytest.mark.parametrize("text", SPELT + [text for text in TEXTS if len(text) % 8 == 0])
def test_packed_ids_that_spell_a_text_are_not_taken_for_it(text: bytes) -> None:
    ids = np.frombuffer(text, "<i8")
    packed = encode_exclude(ids)
    assert set(decode_exclude(packed).tolist()) == {*ids.tolist(), PAD}
    assert set(decode_exclude(packed, string_ids=True).tolist()) == {*ids.tolist(), PAD}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("string_ids", [False, True])
def test_text_that_is_no_list_is_not_taken_for_ids(text: bytes, string_ids: bool) -> None:
    shown = re.escape(repr(text[:40].decode()))
    with pytest.raises(InvalidInput, match=f"{len(text)} bytes came; as text they are {shown}; "):
        decode_exclude(text, string_ids)


def test_a_full_list_that_spells_json_is_taken() -> None:
    listed = b"[1,2,3,4" + b",3,4,5,6" * (MOST_EXCLUDED - 2) + b",6,7,78]"
    assert isinstance(json.loads(listed), list)
    assert len(decode_exclude(listed + b"\xff" * 8)) == MOST_EXCLUDED + 1


@pytest.mark.parametrize("pad", ["", " ", "\n", "  "])
def test_a_plain_client_sends_json_of_any_length(pad: str) -> None:
    big = 2**63 - 1
    for count in range(1, 9):
        ids = [big - row for row in range(count)]
        assert decode_exclude((json.dumps(ids) + pad).encode()).tolist() == ids
        names = [f"sku-{row}" * row for row in range(count)]
        found = decode_exclude((json.dumps(names) + pad).encode(), string_ids=True)
        assert found.tolist() == [key_of(name) for name in names]
        assert sorted(found) == decode_exclude(encode_exclude(names, True), True).tolist()
    assert decode_exclude(b"[]").tolist() == decode_exclude(b"[]", True).tolist() == []
    assert len(decode_exclude(b'["\\ud800"]', True)) == 1  # half a character: no item has it


@pytest.mark.parametrize(
    ("value", "string_ids", "complaint"),
    [
        (b"[17]", True, r"17 \(int\) came; expected a list of strings"),
        (b'["a", null]', True, r"None \(NoneType\) came; expected a list of strings"),
        (b'["sku-1"]', False, r"'sku-1' \(str\) came; expected ints"),
        (b"[1.5]", False, r"1.5 \(float\) came; expected ints"),
        (b"[true]", False, r"True \(bool\) came; expected ints"),
        (b"[9223372036854775808]", False, "ids of 64 bits"),
        (b'["a"', True, r"4 bytes came; .* or a JSON list of strings of items, as \[\"sku-17"),
        (b"17", False, r"2 bytes came; .* or a JSON list of integers"),
        (json.dumps([1] * 1001).encode(), False, "1001 ids came"),
    ],
)
def test_ids_of_the_other_kind_are_refused(value: bytes, string_ids: bool, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        decode_exclude(value, string_ids)


@pytest.mark.parametrize(
    ("ids", "string_ids"),
    [([5], True), (["a"], False), ("a", True), ([b"a"], True), ([2**63], False)],
)
def test_a_client_names_ids_of_the_other_kind(ids: Any, string_ids: bool) -> None:
    with pytest.raises(InvalidInput, match=r"exclude: .* came; expected"):
        encode_exclude(ids, string_ids)
