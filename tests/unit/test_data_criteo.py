"""Criteo rows: every layout gives the same rows, every fault its place."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cascade.data import DataError, prepare
from cascade.data.criteo import CATEGORIES, NUMBERS, SCHEMA, Criteo
from cascade.data.source import SPLITS, BadRows

REAL = Path(__file__).parents[3] / "shared" / "data" / "criteo-kaggle-10k" / "train.txt"


def rows(count, seed=0):
    """Well-formed rows of few values, a tenth of them missing."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        numbers = [str(value) for value in random.integers(-2, 50, 13)]
        words = [f"{value:08x}" for value in random.integers(0, 6, 26)]
        fields = np.array([*numbers, *words], object)
        fields[random.random(39) < 0.1] = ""
        made.append("\t".join([str(random.integers(0, 2)), *fields]))
    return made


def write(path, lines, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(line + end for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path, split, bad=None):
    """Rows of a split as text, to compare with what was written."""
    lines = []
    for table in Criteo(path, bad or BadRows()).chunks(split):
        for row in table.to_pylist():
            numbers = [row[name] for name in ("label", *NUMBERS)]
            text = ["" if number is None else str(int(number)) for number in numbers]
            lines.append("\t".join([*text, *(row[name] or "" for name in CATEGORIES)]))
    return lines


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows: what must not depend on where a block ends."""
    monkeypatch.setattr("cascade.data.rows.BLOCK_BYTES", 1000)


def test_which_columns_are_whose():
    assert [f.name for f in SCHEMA.dense("user")] == [f"I{i}" for i in range(1, 14)]
    assert [f.name for f in SCHEMA.ids("user")] == [f"C{i}" for i in range(1, 7)]
    assert [f.name for f in SCHEMA.ids("item")] == [f"C{i}" for i in range(7, 27)]
    assert {f.encoding for f in SCHEMA.dense("user")} == {"log1p"}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz", "day_7", "day_7.gz"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_one_file_holds_out_its_last_seventh(tmp_path, name, as_folder):
    lines = rows(73)
    path = write(tmp_path / name, lines)
    path = tmp_path if as_folder else path
    assert read(path, "train") == lines[:63]
    assert read(path, "validation") == lines[63:68]
    assert read(path, "test") == lines[68:]
    assert Criteo(path, BadRows()).total_rows == 73


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_integers_that_float32_does_not_hold_are_rounded(tmp_path, policy):
    """23159456 is the largest I5 of the Kaggle file."""
    lines = rows(70)
    for place, number in ((3, 23_159_456), (65, -(2**24) - 1), (66, 2**62)):
        fields = lines[place].split("\t")
        fields[5] = str(number)
        lines[place] = "\t".join(fields)
    made = prepare(f"criteo:{write(tmp_path / 'train.txt', lines)}", tmp_path / "data", policy)
    assert made.source["bad_row_count"] == 0
    held_out = [made.raw_users(split, 70)[0][:, 4] for split in ("validation", "test")]
    assert {-(2.0**24), 2.0**62} <= set(np.concatenate(held_out).tolist())
    place = SCHEMA.dense("user").index(next(f for f in SCHEMA.features if f.name == "I5"))
    assert made.read("train").user_dense[:, place].max() == np.float32(np.log1p(23_159_456))


@pytest.mark.usefixtures("small_blocks")
def test_folder_of_days_holds_out_its_last_day(tmp_path):
    lines = rows(50)
    write(tmp_path / "day_2", lines[:10])
    write(tmp_path / "day_9.gz", lines[10:29])
    write(tmp_path / "day_10", lines[29:])
    assert read(tmp_path, "train") == lines[:29]
    assert read(tmp_path, "validation") == lines[29:40]
    assert read(tmp_path, "test") == lines[40:]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_of_both_kinds(tmp_path, end):
    lines = rows(20)
    path = write(tmp_path / "train.txt", lines, end)
    assert [
        line for split in ("train", "validation", "test") for line in read(path, split)
    ] == lines


def test_last_line_needs_no_line_feed(tmp_path):
    lines = rows(20)
    path = tmp_path / "train.txt"
    path.write_text("\n".join(lines))
    assert read(path, "test") == lines[-1:]


def spoil(line, column, value):
    fields = line.encode().split(b"\t")
    fields[column] = value
    return b"\t".join(fields)


FAULTS = {
    "too few": (lambda row: b"1\t2\t3", "3 columns came, 40 separated by tabs were expected"),
    "too many": (lambda row: row.encode() + b"\tx", "41 columns came, 40"),
    "blank": (lambda row: b"", "1 column came, 40"),
    "label": (lambda row: spoil(row, 0, b"2"), "the label is '2', not 0 or 1"),
    "no label": (lambda row: spoil(row, 0, b""), "the label is '', not 0 or 1"),
    "fraction": (lambda row: spoil(row, 3, b"1.5"), "I3 is '1.5', not an integer"),
    "word": (lambda row: spoil(row, 13, b"many"), "I13 is 'many', not an integer"),
    "hexadecimal": (lambda row: spoil(row, 1, b"0x1F"), "I1 is '0x1F', not an integer"),
    "too large": (lambda row: spoil(row, 2, b"9" * 20), f"I2 is '{'9' * 20}', not an integer"),
    "latin-1": (lambda row: spoil(row, 14, b"caf\xe9"), r"C1 is 'caf\xe9', which is not UTF-8"),
    "carriage return": (lambda row: spoil(row, 20, b"a\rb"), r"C7 is 'a\rb', which holds a carr"),
    "too long": (lambda row: spoil(row, 39, b"a" * 9000), "C26 has 9,000 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
@pytest.mark.parametrize("line", [1, 30, 70])
def test_malformed_row_is_found_by_its_line(tmp_path, monkeypatch, fault, name, line):
    monkeypatch.setattr("cascade.data.rows.BLOCK_BYTES", 5000)
    break_row, message = FAULTS[fault]
    lines = [row.encode() for row in rows(70)]
    lines[line - 1] = break_row(lines[line - 1].decode())
    content = b"".join(row + b"\n" for row in lines)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    split = "train" if line <= 60 else "test"
    with pytest.raises(DataError) as caught:
        read(path, split)
    assert f"{path}:{line}: {message}" in str(caught.value)
    assert "--bad-rows skip" in str(caught.value)
    bad = BadRows("skip")
    good = [row.decode() for i, row in enumerate(lines) if i != line - 1]
    assert [
        row for part in ("train", "validation", "test") for row in read(path, part, bad)
    ] == good
    assert bad.count == 1
    assert bad.first == f"{path}:{line}: {message}" or message in bad.first


PADDED = {
    "zeros": lambda content: gzip.compress(content) + bytes(10_240),
    "members": lambda content: gzip.compress(content[:3000]) + gzip.compress(content[3000:]),
    "members with zeros between": lambda content: (
        gzip.compress(content[:3000]) + bytes(512) + gzip.compress(content[3000:]) + bytes(3)
    ),
    "an empty member": lambda content: gzip.compress(content) + gzip.compress(b""),
}


@pytest.mark.parametrize("padded", PADDED)
def test_gzip_is_read_as_gzip_does(tmp_path, monkeypatch, padded):
    """Several members, and zeros behind them, as tapes and block devices leave them."""
    monkeypatch.setattr("cascade.data.rows.BLOCK_BYTES", 5000)
    lines = rows(70)
    path = tmp_path / "train.txt.gz"
    path.write_bytes(PADDED[padded]("".join(f"{row}\n" for row in lines).encode()))
    assert [row for split in SPLITS for row in read(path, split)] == lines


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-200],
        lambda packed: packed[:-8] + bytes(8),
        lambda packed: packed[:300] + b"\xff" * 20 + packed[320:],
        lambda packed: packed + b"more, which is no member",
        lambda packed: packed + bytes(9) + b"x",
    ],
    ids=["torn", "checksum", "bits", "behind", "behind zeros"],
)
def test_damaged_gzip_is_told(tmp_path, damage):
    path = tmp_path / "train.txt.gz"
    path.write_bytes(damage(gzip.compress("\n".join(rows(200)).encode())))
    with pytest.raises(DataError, match=r"train\.txt\.gz: cannot be unpacked beyond byte"):
        prepare(f"criteo:{path}", tmp_path / "out")


def test_quotes_are_ordinary_characters(tmp_path):
    lines = rows(20)
    lines[3] = spoil(lines[3], 20, b'"a').decode()
    lines[5] = spoil(lines[5], 39, b'b"').decode()
    assert read(write(tmp_path / "train.txt", lines), "train") == lines[:18]


@pytest.mark.parametrize(
    ("prepare_input", "message"),
    [
        (lambda path: None, "train.txt does not exist"),
        (lambda path: path.write_bytes(b""), "train.txt is empty"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "train.txt is empty"),
        (
            lambda path: write(path, [row.replace("\t", ",") for row in rows(9)]),
            ":1: 1 column came",
        ),
        (
            lambda path: write(path, [row.partition("\t")[2] for row in rows(9)]),
            ":1: 39 columns came, 40 separated by tabs were expected",
        ),
        (
            lambda path: path.mkdir(),
            "expected train.txt or day_0, day_1, … (each may be .gz), found n",
        ),
        (lambda path: write(path / "notes.md", ["x"]), "found notes.md"),
        (
            lambda path: (write(path / "day_1", rows(9)), write(path / "day_1.gz", rows(9))),
            "has day 1 twice",
        ),
        (
            lambda path: path.write_bytes(gzip.compress("\n".join(rows(200)).encode())[:-200]),
            "cannot be unpacked beyond byte",
        ),
        (lambda path: write(path, rows(8)), "too small: no row is left for the test split"),
    ],
)
def test_input_that_is_no_criteo_data(tmp_path, prepare_input, message):
    path = tmp_path / "train.txt"
    prepare_input(path)
    with pytest.raises(DataError) as caught:
        prepare(f"criteo:{path}", tmp_path / "out")
    assert message in str(caught.value)
    assert str(path) in str(caught.value) or "too small" in message
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_prepared_data_has_known_answers(tmp_path):
    lines = rows(700)
    dataset = prepare(f"criteo:{write(tmp_path / 'train.txt', lines)}", tmp_path / "out")
    fields = [line.split("\t") for line in lines]
    train = fields[:600]
    column = [row[14] for row in train if row[14]]
    expected = sorted(Counter(column).items(), key=lambda item: (-item[1], item[0]))
    values = [value for value, count in expected if count >= 2]
    assert (tmp_path / "out" / "vocabulary" / "C1.txt").read_text().split("\n") == values
    distinct = list(dict.fromkeys(tuple(row[20:]) for row in fields))  # in order of appearance
    assert dataset.item_count == len(distinct)
    batch = dataset.read("test")
    assert [distinct[row] for row in batch.item] == [tuple(row[20:]) for row in fields[650:]]
    assert batch.label.tolist() == [float(row[0]) for row in fields[650:]]
    i1 = [np.log1p(max(0, float(row[1] or 0))) for row in fields[650:]]
    np.testing.assert_allclose(batch.user_dense[:, 0], i1, rtol=1e-6)
    c1 = [values.index(row[14]) + 2 if row[14] in values else int(row[14] != "") for row in fields]
    assert batch.user_ids[:, 0].tolist() == c1[650:]
    dense, ids = dataset.items()
    assert dense.shape == (len(distinct), 1)
    assert ids.shape == (len(distinct), 20)
    assert pq.read_table(dataset.root / "catalogue.parquet")["C26"].to_pylist() == [
        item[-1] or None for item in distinct
    ]
    assert dataset.item_ids().tolist() == list(range(len(distinct)))
    assert dataset.titles() is None


def test_value_seen_once_or_only_later_is_unknown(tmp_path):
    lines = rows(70)
    lines[0] = spoil(lines[0], 14, b"once").decode()
    for line in (-1, -2, -3):
        lines[line] = spoil(lines[line], 14, b"later").decode()
    dataset = prepare(f"criteo:{write(tmp_path / 'train.txt', lines)}", tmp_path / "out")
    assert dataset.read("train", 1).user_ids[0, 0] == 1
    assert dataset.read("test").user_ids[-3:, 0].tolist() == [1, 1, 1]


def test_skipped_rows_are_counted_and_told(tmp_path, capsys):
    lines = rows(70)
    lines[4] = "nonsense"
    lines[69] = "1\t2"
    path = write(tmp_path / "train.txt", lines)
    for _ in range(2):  # made, then reused
        dataset = prepare(f"criteo:{path}", tmp_path / "out", "skip")
        assert [dataset.rows(split) for split in ("train", "validation", "test")] == [59, 5, 4]
        assert "2 malformed rows were left out; the first: " in capsys.readouterr().err
    description = json.loads((tmp_path / "out" / "source.json").read_text())
    assert description["bad_row_count"] == 2
    assert description["bad_row"].startswith(f"{path}:5: 1 column came")


def test_file_of_malformed_rows_only(tmp_path):
    path = write(tmp_path / "train.txt", [row.replace("\t", ",") for row in rows(20)])
    with pytest.raises(
        DataError, match=r"too small.*18 malformed rows.*train\.txt:1: 1 column came"
    ):
        prepare(f"criteo:{path}", tmp_path / "out", "skip")


@pytest.mark.skipif(not REAL.exists(), reason="the real rows are not here")
def test_real_rows(tmp_path):
    dataset = prepare(f"criteo:{REAL}", tmp_path / "out")
    counts = [dataset.rows(split) for split in ("train", "validation", "test")]
    assert sum(counts) == 10109
    assert counts[1:] == [722, 722]
    labels = np.concatenate([dataset.read(s).label for s in ("train", "validation", "test")])
    assert labels.sum() == 2198
    dense, wire, _, _ = dataset.raw_users("test", 722)
    encoded = dataset.encoder.encode("user", dense, wire)
    np.testing.assert_array_equal(encoded[0], dataset.read("test").user_dense)
    np.testing.assert_array_equal(encoded[1], dataset.read("test").user_ids)
