"""Items named by strings: the same world answers as with integers, under other names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from cascade import item_keys, pbtxt
from cascade.artifact import ArtifactError
from cascade.config import Product, Serving
from cascade.data import prepare
from cascade.evaluation import stagewise
from cascade.evaluation.queries import EvaluationError, held_out
from cascade.files import write_json
from cascade.item_keys import as_keys
from cascade.models.registry import Recipe
from cascade.release import read_release
from cascade.spec import DENY_LIST, ENSEMBLE, RANK
from cascade.stages.names import Named
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint, trainer
from export import __main__ as export_command
from export.artifacts import names
from export.build import write_release
from export.context import Build, Source, read_catalogue
from export.foreign.flat import flat_onnx
from export.item_ids import read_item_ids
from export.releases.canary import Canary
from export.releases.items import read_ids, read_items
from export.releases.manifest import verify
from export.releases.refresh import Refresh, change
from export.releases.rewire import rewire, serving_of
from tests.cascades import Cascade, string_id
from tests.filter_cases import column
from tests.own_tables import FIRST_ITEM, STRING_SCHEMA, with_string_ids, write_shop
from tests.string_ids import Twins, make_twins, named, new_items

USERS = 20


@pytest.fixture(scope="module")
def twins(make_cascade: Callable[..., Cascade]) -> Twins:
    """The same world with integers and with strings."""
    return make_twins(make_cascade)


def check_same(integers: tuple[Any, Any], strings: tuple[Any, Any]) -> None:
    """The same items in the same order with the same scores."""
    assert strings[0].dtype == np.object_
    assert integers[0].dtype == np.int64
    assert strings[0].tolist() == named(integers[0])
    np.testing.assert_array_equal(strings[1], integers[1])


@pytest.mark.parametrize("topology", ["ensemble", "paired", "fused"])
def test_answers_are_those_of_integers(twins: Twins, topology: Any, tmp_path: Path) -> None:
    answers = []
    for number, (cascade, kind) in enumerate(zip(twins, ("INT64", "STRING"), strict=True)):
        folder = tmp_path / str(number)
        rewire(
            cascade.repository, folder, replace(serving_of(cascade.repository), topology=topology)
        )
        answers.append(cascade.ask(Pipeline.load(folder, serving=Serving(threads=1)), 0, USERS))
        configs = {path.parent.name: pbtxt.read(path) for path in folder.glob("*/config.pbtxt")}
        kinds = {
            pbtxt.pb.DataType.Name(output.data_type)
            for config in configs.values()
            for output in config.output
            if output.name == "item_ids"
        }
        assert kinds == {f"TYPE_{kind}"}
        features = configs[ENSEMBLE].parameters["features"].string_value
        assert ("string_ids" in features) == bool(number)
    check_same(*answers)


def test_filters_and_the_deny_list_take_strings(twins: Twins, tmp_path: Path) -> None:
    plain = twins[0].ask(twins[0].pipeline(), 0, 1)[0][0].tolist()
    allow = column([b'{"brand": ["brand-1", "brand-2", "brand-3"]}'])
    answers = []
    for cascade, name in zip(twins, (lambda item: item, string_id), strict=True):
        folder = tmp_path / cascade.schema.layout_hash
        rewire(cascade.repository, folder, serving_of(cascade.repository))
        ids = [name(item) for item in plain]
        lines = "".join(f"{item}  # no longer sold\n" for item in ids[:3])
        (folder / DENY_LIST).write_text(f"# by hand\n\n{lines}")
        pipeline = Pipeline.load(folder, serving=Serving(threads=1))
        keys = as_keys(np.array(ids[3:6], object if cascade.schema.string_ids else np.int64))
        packed, text = column([keys.tobytes()]), column([json.dumps(ids[3:6]).encode()])
        user = cascade.dense[:1], cascade.categorical[:1]
        found = pipeline(*user, packed, None)
        np.testing.assert_array_equal(pipeline(*user, text, None)[0], found[0])
        answers += [found, pipeline(*user, text, allow)]
    check_same(answers[0], answers[2])
    check_same(answers[1], answers[3])
    for ids, _ in answers[:2]:
        assert not set(ids[0].tolist()) & set(plain[:6])


def test_a_list_from_a_pool_has_strings(make_cascade: Callable[..., Cascade]) -> None:
    pair = make_twins(make_cascade, product=Product(pool=30, diversity=0.5))
    check_same(*(cascade.ask(cascade.pipeline(), 0, USERS) for cascade in pair))


@pytest.mark.parametrize("flat", [True, False])
def test_a_third_partys_ranker_names_strings(twins: Twins, flat: bool, tmp_path: Path) -> None:
    answers = []
    for cascade in twins:
        folder = tmp_path / cascade.schema.layout_hash
        folder.mkdir()
        scorer = checkpoint.load(cascade.checkpoints / RANK, cascade.schema)
        file, inputs = folder / "ranker.onnx", folder / "map.json"
        write_json(inputs, flat_onnx(scorer, cascade.schema, file))
        build = Build(
            cascade.checkpoints,
            folder / "repository",
            sizes=cascade.sizes,
            serving=Serving(max_batch_size=8),
            index="flat",
            state="float32",
            weights="float32",
            measure_batching=False,
            foreign={RANK: (file, inputs)},
            flat=flat,
        )
        write_release(build)
        pipeline = Pipeline.load(build.repository, serving=Serving(threads=1))
        answers.append(cascade.ask(pipeline, 0, USERS))
    check_same(*answers)


def test_the_canary_and_the_manifest_know_strings(twins: Twins, tmp_path: Path) -> None:
    release = verify(twins[1].repository, 1)
    assert release["canary"]["item_ids"][0][0].startswith("Größe-")
    assert {*names.FILES} <= {*release["files"][RANK]}
    canary = Canary.from_dict(release["canary"])
    assert canary.to_dict() == release["canary"]
    answer = Canary.ask(twins[1].pipeline(), (canary.dense, canary.categorical))
    assert not [*canary.differences(answer.item_ids, answer.scores)]
    wrong = answer.item_ids.copy()
    wrong[2, 0] = "Größe-0".encode()
    assert len([*canary.differences(wrong, answer.scores)]) == 1
    integers = read_release(twins[0].repository, 1)["canary"]
    assert Canary.from_dict(integers).item_ids.dtype == np.int64


@pytest.mark.parametrize("encoded", [False, True])
def test_a_catalogue_is_refreshed(twins: Twins, encoded: bool, tmp_path: Path) -> None:
    """An item is replaced, some come, some leave."""
    answers = []
    come, gone = [5_000_000_009, *range(10, 30)], range(5_000_000_030, 5_000_000_060, 3)
    for cascade in twins:
        strings = cascade.schema.string_ids
        name = string_id if strings else lambda item: item
        ids = pa.array([name(item) for item in come])
        folder = tmp_path / cascade.schema.layout_hash
        folder.mkdir()
        file = new_items(
            cascade, folder / "new.parquet", ids.dictionary_encode() if encoded else ids
        )
        lines = folder / "gone.txt"
        lines.write_text("".join(f"{name(item)}\n" for item in gone))
        started = Refresh(cascade.repository, 1, cascade.checkpoints)
        added = read_items(file, started.encoder, started.checkpoints)
        changed = change(started.item_ids, added, read_ids(lines, strings))
        assert (changed.items, int((~changed.keep).sum())) == (300 + 21 - 11, 11)
        started.write(folder / "next", 2, changed)
        verify(folder / "next", 2)
        again = Refresh(folder / "next", 2, cascade.checkpoints)
        back = change(
            again.item_ids,
            read_items(None, again.encoder, again.checkpoints),
            read_ids(None, strings),
        )
        again.write(folder / "last", 3, back)
        pipeline = Pipeline.load(folder / "last", 3, Serving(threads=1))
        answers.append(cascade.ask(pipeline, 0, USERS))
    check_same(*answers)
    assert {*answers[0][0].ravel().tolist()} & {*come}


def test_items_that_cannot_be_changed_are_named(twins: Twins, tmp_path: Path) -> None:
    started = Refresh(twins[1].repository, 1, twins[1].checkpoints)
    empty = read_items(None, started.encoder, started.checkpoints)
    with pytest.raises(ArtifactError, match=r"1 items to be removed are not.*: \['sku'\]"):
        change(started.item_ids, empty, np.array(["sku"], object))
    twice = new_items(twins[1], tmp_path / "twice.parquet", pa.array(["a", "b", "a"]))
    with pytest.raises(ArtifactError, match="item 'a' is there more than once"):
        read_items(twice, started.encoder, started.checkpoints)
    integers = new_items(twins[1], tmp_path / "integers.parquet", pa.array([1, 2]))
    with pytest.raises(ArtifactError, match=r"int64, and the schema bags says .* strings"):
        read_items(integers, started.encoder, started.checkpoints)


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        (["a", "b", "a"], "item 'a' is there more than once"),
        (["a", ""], "an item_id is empty"),
        (["a", None], "1 of 2 item_id are null"),
        ([1, -1], "an item_id is -1"),
        ([1, None], "1 of 2 item_id are null"),
        ([1.0], "item_id is double; expected int64 or string"),
    ],
)
def test_ids_that_name_no_item_are_refused(ids: list[Any], complaint: str) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        read_item_ids(pa.chunked_array([ids]), Path("catalogue.parquet"))


def test_two_items_of_one_key_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_keys, "_POSITIVE", 15)  # 64 bits hold no two that could be found
    with pytest.raises(ArtifactError, match=r"items '\d+' and '\d+' have the same 64-bit key"):
        read_item_ids(pa.chunked_array([[str(i) for i in range(20)]]), Path("catalogue.parquet"))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_string_is_read(kind: Any) -> None:
    column = pa.chunked_array([pa.array(["b", "a"]), pa.array(["ö"])]).cast(kind)
    keys, found = read_item_ids(column, Path("catalogue.parquet"))
    assert found is not None
    assert found.to_pylist() == ["b", "a", "ö"]
    assert keys.tolist() == as_keys(np.array(["b", "a", "ö"], object)).tolist()


@pytest.mark.parametrize("strings", [False, True])
def test_checkpoints_and_schema_must_agree(twins: Twins, strings: bool, tmp_path: Path) -> None:
    one, other = (twins[1], twins[0]) if strings else twins
    folder = Path(shutil.copytree(one.checkpoints, tmp_path / "checkpoints"))
    (folder / "catalogue.parquet").unlink()
    shutil.copy(other.checkpoints / "catalogue.parquet", folder / "catalogue.parquet")
    with pytest.raises(ArtifactError, match=rf"string_ids is {str(strings).lower()}"):
        Source.load(folder)


def test_a_damaged_file_of_names_is_refused(twins: Twins, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(twins[1].repository, tmp_path / "repository"))
    text = repository / RANK / "1" / "item_name_text.bin"
    text.write_bytes(text.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"item_name_text\.bin has \d+ bytes"):
        Pipeline.load(repository)


def test_integers_leave_no_names(twins: Twins, tmp_path: Path) -> None:
    """Neither does an export into a folder that held strings."""
    folder = tmp_path / "rank"
    items = read_catalogue(twins[1].checkpoints)
    folder.mkdir()
    names.write(folder, items, twins[1].schema.hash)
    assert {file.name for file in folder.iterdir()} == names.FILES
    assert names.stored(folder, twins[1].schema.hash, items.item_ids).equals(items.names)
    names.write(folder, read_catalogue(twins[0].checkpoints), twins[0].schema.hash)
    assert not [*folder.iterdir()]
    assert not isinstance(twins[0].pipeline()._rank, Named)


def test_a_shops_strings_from_its_tables_to_its_lists(tmp_path: Path) -> None:
    """Prepared, trained for a few steps, exported and evaluated."""
    schema = write_shop(tmp_path, STRING_SCHEMA, with_string_ids)
    dataset = prepare("table", tmp_path / "data", schema_file=schema)
    recipe = Recipe("two_tower:tiny", "dlrm:tiny", "dlrm:tiny")
    out, changes = tmp_path / "checkpoints", {"epochs": 0.5, "batch_size": 50}
    trainer.Trainer(dataset, out, torch.device("cpu"), recipe, changes).run()
    title = (out / "titles.csv").read_text().splitlines()[1]
    assert title == f'sku-{FIRST_ITEM},"thing ""0"", nice"'
    where = ("--checkpoints", out, "--repository", tmp_path / "repository")
    sizes = ("--candidates", "40", "--survivors", "20")
    export_command.main(["build", *map(str, where), *sizes, "--index", "flat", "--untuned"])
    assert (tmp_path / "repository" / ENSEMBLE / "1" / "titles.csv").exists()
    pipeline = Pipeline.load(tmp_path / "repository", serving=Serving(threads=1))
    queries = held_out(dataset, 10)
    ids = dataset.item_ids()
    lists = stagewise.ask(pipeline, queries, ids)
    answers, _ = pipeline(queries.dense, queries.categorical)
    assert [[ids[row] for row in rows] for rows in lists.rank] == [
        [item.decode() for item in row] for row in answers
    ]
    assert sorted(lists.retrieve[0].tolist()) == [*range(40)]
    with pytest.raises(EvaluationError, match="which is not in the catalogue"):
        stagewise.ask(pipeline, queries, np.array([*ids[:39], "another"], object))
