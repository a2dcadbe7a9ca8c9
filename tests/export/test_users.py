"""Users by id in a repository, and `python -m export users`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tritonclient.grpc import model_config_pb2 as pb

from cascade import pbtxt
from cascade.artifact import ArtifactError
from cascade.config import Product, Serving
from cascade.data.criteo import SCHEMA as CRITEO
from cascade.errors import CascadeError
from cascade.layout import RequestLayout
from cascade.spec import (
    ENSEMBLE,
    FRONTS,
    LOOKUP,
    RECOMMEND_FILTERED,
    RECOMMEND_USER,
    RETRIEVE,
    TOPOLOGIES,
    Sizes,
)
from cascade.store import OtherLayout, StoreError, UserStore
from export import __main__ as export_command
from export import users
from export.releases.rewire import rewire, serving_of, settings_of
from tests.cascades import BAGS

SERVING = Serving(instances=2)
STORED = Product(store="redis://host:6379/1")
LAYOUT = RequestLayout.of(BAGS)


def tensors(declared: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {t.name: (pb.DataType.Name(t.data_type), tuple(t.dims)) for t in declared}


# --- the repository


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_users_by_id_go_through_the_same_members(topology: Any, tmp_path: Path) -> None:
    serving = replace(SERVING, topology=topology)
    pbtxt.write(tmp_path, CRITEO, Sizes(), serving, version=4, product=STORED)
    found = {p.parent.name: pbtxt.read(p) for p in tmp_path.glob("*/config.pbtxt")}
    assert set(found) == {*TOPOLOGIES[topology], *FRONTS}
    features = {"dense": True, "categorical": True}
    texts = {"context": True, "exclude": True, "allow": True}
    asked = {
        ENSEMBLE: features,
        RECOMMEND_FILTERED: features | texts,
        RECOMMEND_USER: {"user_id": False} | texts,
    }
    for name, wanted in asked.items():
        ensemble = found[name]
        steps = ensemble.ensemble_scheduling.step
        pinned = [(step.model_name, step.model_version) for step in steps]
        assert pinned == [(model, 4) for model in TOPOLOGIES[topology]]
        optional = {t.name: t.optional for t in ensemble.input}
        assert optional == wanted
        known = tensors(ensemble.input)
        for step in steps:
            member = found[step.model_name]
            for target, source in step.input_map.items():
                assert known[source] == tensors(member.input)[target]
            needed = {t.name for t in member.input if not t.optional}
            assert needed <= set(step.input_map)
            for source, target in step.output_map.items():
                known[target] = tensors(member.output)[source]
        for name, tensor in tensors(ensemble.output).items():
            assert known[name] == tensor
    cold = {"cold_start": ("TYPE_BOOL", (1,))}
    answer = tensors(pbtxt.configs(CRITEO, Sizes(), serving, 4)[ENSEMBLE].output)
    assert tensors(found[RECOMMEND_USER].output) == {**answer, **cold}
    assert tensors(found[ENSEMBLE].output) == answer
    assert tensors(found[RECOMMEND_FILTERED].output) == answer


def test_the_store_is_known_to_the_process_that_reads_it(tmp_path: Path) -> None:
    pbtxt.write(tmp_path, CRITEO, Sizes(), SERVING, version=4, product=STORED)
    for name in (*TOPOLOGIES["ensemble"], *FRONTS):
        text = (tmp_path / name / "config.pbtxt").read_text()
        assert (STORED.store in text) == (name == RETRIEVE)
    settings = pbtxt.process_settings(tmp_path)
    assert {name: s.product.store for name, s in settings.items()} == {
        name: STORED.store if name == RETRIEVE else "" for name in TOPOLOGIES["ensemble"]
    }
    assert settings[RETRIEVE].stages == (LOOKUP, RETRIEVE)
    assert users.store_of(tmp_path) == STORED.store
    layout = users.layout_of(tmp_path)
    assert layout.layout_hash == CRITEO.layout_hash
    assert layout.names == tuple(f.name for f in (*CRITEO.dense("user"), *CRITEO.ids("user")))


def test_a_store_is_not_left_behind(tmp_path: Path) -> None:
    pbtxt.write(tmp_path, CRITEO, Sizes(), SERVING, version=1, product=STORED)
    with pytest.raises(ArtifactError, match=r"recommend_user, which .* without a store"):
        pbtxt.write(tmp_path, CRITEO, Sizes(), SERVING, version=2)


def test_rewiring_carries_it_along(criteo: Any, tmp_path: Path) -> None:
    paired = replace(serving_of(criteo.repository), topology="paired")
    rewire(criteo.repository, tmp_path / "a", paired, Product(store="lmdb:/somewhere"))
    again = replace(serving_of(tmp_path / "a"), topology="fused")
    assert settings_of(tmp_path / "a")[1].store == "lmdb:/somewhere"
    rewire(tmp_path / "a", tmp_path / "b", again)
    assert users.store_of(tmp_path / "b") == "lmdb:/somewhere"
    with pytest.raises(ArtifactError, match="exported without --store"):
        users.store_of(criteo.repository)


def test_the_commands_take_a_store(
    criteo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path is made absolute, because the server runs elsewhere."""
    monkeypatch.chdir(tmp_path)
    stored, plain, redis = (tmp_path / name for name in ("stored", "plain", "redis"))
    folders = ("--checkpoints", criteo.checkpoints, "--repository", stored)
    arguments = (*folders, "--untuned", "--store", "lmdb:users")
    export_command.main([*map(str, arguments)])
    assert users.store_of(stored) == f"lmdb:{tmp_path / 'users'}"
    assert (stored / RECOMMEND_USER / "1").is_dir()
    for source, target, options in (
        (stored, plain, ("--store", "")),
        (plain, redis, ("--store", "redis://h/1")),
    ):
        arguments = ("--repository", source, "--out", target, "--topology", "fused", *options)
        export_command.main(["rewire", *map(str, arguments)])
    assert not (plain / RECOMMEND_USER).exists()
    assert users.store_of(redis) == "redis://h/1"


def test_export_refuses_another_url(tmp_path: Path) -> None:
    folders = ["--checkpoints", str(tmp_path), "--repository", str(tmp_path)]
    with pytest.raises(StoreError, match=r"store 'users\.lmdb': expected lmdb:PATH"):
        export_command.main([*folders, "--store", "users.lmdb"])


# --- the command


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    stored = Product(store=f"lmdb:{tmp_path / 'users'}")
    pbtxt.write(tmp_path / "repository", BAGS, Sizes(), Serving(), version=1, product=stored)
    return tmp_path / "repository"


def run(*arguments: object) -> None:
    export_command.main(["users", *map(str, arguments)])


def stored(tmp_path: Path, *ids: str) -> list[list[Any]]:
    """The raw values of users in the order of their features; None for who is unknown."""
    with UserStore.open(f"lmdb:{tmp_path / 'users'}") as store:
        found = store.get([one.encode() for one in ids])
    return [
        [*(None if np.isnan(x) else x for x in dense.tolist()), *texts] if known else []
        for dense, texts, known in zip(
            found.dense, found.categorical.tolist(), found.known, strict=True
        )
    ]


TABLE = {
    "user_id": ["anna", "beno", "cleo"],
    "age": pa.array([31, None, 4], pa.int64()),
    "visits": pa.array([0.5, float("nan"), None], pa.float64()),
    "city": pa.array(["Çà", None, ""]).dictionary_encode(),
    "agent": pa.array([7, None, 8]),
    "history": [["a", "b"], None, ["1", "2", "3", "4", "5", "6"]],
    "tags": ["x|y|z", "", None],
    "more": [1, 2, 3],
}
EXPECTED = [
    [31, 0.5, "Çà".encode(), b"7", b"a|b", b"x|y"],
    [None, None, b"", b"", b"", b""],
    [4, None, b"", b"8", b"1|2|3|4", b""],
]


def test_a_table_goes_into_the_store_that_the_repository_reads(
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "users.parquet")
    run("--repository", repository, "--table", tmp_path / "users.parquet")
    said = capsys.readouterr()
    assert "3 users written, 0 removed" in said.out
    assert "no such column" not in said.err
    assert stored(tmp_path, "anna", "beno", "cleo", "more") == [*EXPECTED, []]


def test_lines_are_the_same_as_a_table(
    repository: Path,
    tmp_path: Path,
) -> None:
    lines = [
        {"id": "anna", "age": 31, "visits": 0.5, "city": "Çà", "agent": 7, "tags": "x|y|z"},
        {"id": "beno", "city": None},
        {"id": "cleo", "age": 4, "agent": "8", "history": [1, 2, 3, 4, 5, 6]},
    ]
    lines[0]["history"] = ["a", "b"]
    path = tmp_path / "users.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    run("--repository", repository, "--table", path, "--id-column", "id")
    assert stored(tmp_path, "anna", "beno", "cleo") == EXPECTED
    path.write_text('{"id": 1}\n{"id": 2, "aeg": 3}\n')
    with pytest.raises(ValueError, match=r"line 2: unknown feature 'aeg': did you mean 'age'"):
        run("--repository", repository, "--table", path, "--id-column", "id")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (r'{"id": "\ud800"}', "user id .* expected a text of 1 to 480 bytes in UTF-8"),
        (r'{"id": 1, "city": "\ud800"}', "feature city: .* expected text that UTF-8 can hold"),
        (
            '{"id": 1, "city": ' + "[" * 100_000,
            "not JSON that can be read: it is nested too deeply",
        ),
        ('{"id": ' + "[" * 500 + "]" * 500 + "}", r"user id \[\[.* expected a text"),
        ('{"id": 1, "age": 1, "age": 2}', "an object that has 'age' twice; give it one value"),
        ('{"id": 1, "age": ' + "9" * 5000 + "}", "not JSON: Exceeds the limit"),
        ('{"id": ""}', "user id '': expected a text"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    repository: Path, tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "users.jsonl"
    path.write_text(f'{{"id": 1}}\n{line}\n')
    with pytest.raises(CascadeError, match=rf"users\.jsonl, line 2: {message}"):
        run("--repository", repository, "--table", path, "--id-column", "id")


def test_more_lines_than_a_chunk(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "CHUNK", 10)
    path = tmp_path / "users.jsonl"
    path.write_text("".join(json.dumps({"age": age}) + "\n" for age in range(25)))
    run("--repository", repository, "--table", path, "--row-ids")
    found = stored(tmp_path, *map(str, range(26)))
    assert [user[0] for user in found[:25]] == [*range(25)]
    assert found[25] == []
    pq.write_table(pa.table({"age": [*range(100, 125)]}), tmp_path / "users.parquet")
    table = tmp_path / "users.parquet"
    run("--repository", repository, "--table", table, "--row-ids")
    assert [user[0] for user in stored(tmp_path, *map(str, range(25)))] == [*range(100, 125)]


def test_replacing_removes_the_others_and_takes_over_another_layout(
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = RequestLayout(("height",), (), "0123456789abcdef")
    with UserStore.create(f"lmdb:{tmp_path / 'users'}", other) as store:
        store.put(["old", "anna"], *other.empty(2))
    pq.write_table(pa.table(TABLE), tmp_path / "users.parquet")
    arguments = ("--repository", repository, "--table", tmp_path / "users.parquet")
    with pytest.raises(OtherLayout, match="--replace"):
        run(*arguments)
    run(*arguments, "--replace")
    assert "3 users written, 1 removed" in capsys.readouterr().out
    assert stored(tmp_path, "anna", "old") == [EXPECTED[0], []]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "age": [1]}, "unknown column 'user_id'.*--id-column.*--row-ids"),
        ({"user_id": ["a"], "x": [1]}, "none of the features age, visits"),
        ({"user_id": ["a"], "age": ["old"]}, "feature age: a column of string"),
        ({"user_id": ["a"], "city": [1.5]}, "feature city: a column of double"),
        ({"user_id": ["a"], "age": [float("inf")]}, "feature age: inf is not a finite"),
        ({"user_id": ["a"], "history": [["a|b"]]}, "feature history: .*members without"),
        ({"user_id": ["a", None], "age": [1, 2]}, "user id None"),
        ({"user_id": [""], "age": [1]}, "user id ''"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    repository: Path,
    tmp_path: Path,
    columns: Any,
    message: str,
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    with pytest.raises(ValueError, match=message):
        run("--repository", repository, "--table", tmp_path / "users.parquet")


def test_absent_columns_are_told_of(
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pq.write_table(pa.table({"user_id": [1], "age": [3]}), tmp_path / "users.parquet")
    run("--repository", repository, "--table", tmp_path / "users.parquet")
    assert "stored as missing: visits, city, agent, history, tags" in capsys.readouterr().err
    assert stored(tmp_path, "1") == [[3, None, b"", b"", b"", b""]]
