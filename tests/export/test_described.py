"""A cascade of models that were trained elsewhere, by one file: what is taken, what is refused."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import faiss
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import numpy_helper
from pyarrow import csv
from safetensors.torch import save_file

from cascade.config import Product
from cascade.encoding import InvalidInput
from cascade.layout import RequestLayout
from cascade.located import LocatedError
from cascade.spec import Sizes
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from export import __main__ as export_command
from export.artifacts.variants import GuardError
from export.build import write_release
from export.context import Build
from export.described import file
from export.foreign import flat
from export.releases.items import read_items
from export.releases.refresh import Refresh, change
from export.releases.rewire import rewire, settings_of
from tests.export.described_files import FLOAT, INT, ITEMS, USERS, WIDTH, Tower, dump, save, write
from tests.export.wrong_files import WRONG, own_vectors

SIZES = Sizes(candidates=20, survivors=20, results=10)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return folder, write(folder)


@pytest.fixture
def small(made, tmp_path):
    """A folder that a test may change, and what its cascade.yaml is to hold."""
    folder, described = made
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path, copy.deepcopy(described)


def export(folder, described, **options):
    found = file.write(dump(described, folder), folder / "checkpoints")
    build = Build(
        folder / "checkpoints", folder / "repository", sizes=options.pop("sizes", SIZES),
        index="flat", state=options.pop("state", "float32"), weights="float32",
        measure_batching=False, foreign=found.foreign, preranks=found.preranks,
        product=Product(**found.formulas), **options,
    )  # fmt: skip
    write_release(build)
    return found, Pipeline.load(build.repository)


def answers(pipeline, users):
    dense, categorical = RequestLayout.of(pipeline.schema).arrays(users)
    return pipeline(dense, categorical)


def expected(folder, users, metric="inner product", formula=None):
    """What plain NumPy answers: ids and scores of the ten best of the twenty nearest."""
    weights = onnx.load(folder / "rank.onnx").graph.initializer
    tables = {tensor.name: numpy_helper.to_array(tensor) for tensor in weights}
    rows = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("user", "sku")}
    items = pq.read_table(folder / "items.parquet").to_pydict()
    vectors = tables["items"][[rows["sku"][s] for s in items["sku"]]]
    vectors = vectors * np.array(items["price"], np.float32)[:, None]
    found = []
    for user in users:
        query = tables["users"][rows["user"].get(user["user"], 1)]
        if metric == "cosine":
            near = vectors @ query / np.linalg.norm(vectors, axis=1)
        elif metric == "l2":
            near = -((vectors - query) ** 2).sum(axis=1)
        else:
            near = vectors @ query
        chosen = np.argsort(-near, kind="stable")[:20]
        aged = np.float32(0.01 * user["age"])
        scores = 1 / (1 + np.exp(-(vectors[chosen] @ query + aged)))
        if formula:
            scores = formula(scores, 1 / (1 + np.exp(-aged)))
        best = np.argsort(-scores, kind="stable")[:10]
        found.append(([items["id"][chosen[i]] for i in best], scores[best]))
    return found


def people(folder):
    return [*pq.read_table(folder / "users.parquet").to_pylist(), {"user": "stranger", "age": 30.0}]


def check(pipeline, folder, **how):
    users = people(folder)
    ids, scores = answers(pipeline, users)
    for row, (wanted, own) in enumerate(expected(folder, users, **how)):
        assert ids[row].tolist() == wanted
        np.testing.assert_allclose(scores[row], own, atol=1e-5)


def test_raw_users_get_what_the_teams_own_code_gives(small):
    folder, described = small
    found, pipeline = export(folder, described)
    assert any(note.startswith("golden: 20 scores from raw values equal") for note in found.notes)
    check(pipeline, folder)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_other_metrics_order_as_they_say(small, metric):
    folder, described = small
    described["retrieve"]["metric"] = metric
    check(export(folder, described)[1], folder, metric=metric)


@pytest.mark.parametrize(
    ("metric", "kind"), [("inner product", faiss.IndexFlatIP), ("l2", faiss.IndexFlatL2)]
)
def test_ready_vectors_and_a_ready_index(small, metric, kind):
    folder, described = small
    ids, vectors = own_vectors(folder)
    order = np.random.default_rng(1).permutation(len(ids))
    np.save(folder / "vectors.npy", vectors[order])
    np.save(folder / "ids.npy", ids[order])
    described["retrieve"] |= {
        "metric": metric,
        "item": {"vectors": "vectors.npy", "ids": "ids.npy"},
    }
    check(export(folder, described)[1], folder, metric=metric)
    index = kind(WIDTH)
    index.add(vectors)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "ids.npy", ids)
    faiss.write_index(index, str(folder / "own.faiss"))
    described["retrieve"]["index"] = "own.faiss"
    check(export(folder, described)[1], folder, metric=metric)


@pytest.mark.parametrize("form", ["torchscript", "pt2", "module"])
def test_a_tower_in_every_form(small, form):
    folder, described = small
    tower = Tower().eval()
    tower.users.weight.data = torch.from_numpy(
        numpy_helper.to_array(onnx.load(folder / "user.onnx").graph.initializer[0]).copy()
    )
    some, rows = (torch.tensor([2, 3]),), ({0: torch.export.Dim("rows")},)
    if form == "torchscript":
        torch.jit.trace(tower, some).save(folder / "tower.pt")
        entry = {form: "tower.pt"}
    elif form == "pt2":
        torch.export.save(torch.export.export(tower, some, dynamic_shapes=rows), folder / "t.pt2")
        entry = {form: "t.pt2"}
    else:
        save_file(tower.state_dict(), folder / "tower.safetensors")
        entry = {form: "tests.export.described_files:Tower", "weights": "tower.safetensors"}
    described["retrieve"]["user"] = {**entry, "inputs": {"user": "user"}}
    check(export(folder, described)[1], folder)


def test_ready_vectors_of_users_need_no_tower(small):
    folder, described = small
    table = numpy_helper.to_array(onnx.load(folder / "user.onnx").graph.initializer[0])
    rows = json.loads((folder / "user.json").read_text())
    pq.write_table(
        pa.table({"id": [*rows], "vector": table[[*rows.values()]].tolist()}),
        folder / "user_vectors.parquet",
    )
    described["retrieve"]["user"] = {"vectors": "user_vectors.parquet", "feature": "user"}
    _, pipeline = export(folder, described)
    users = people(folder)[:-1]
    ids, _ = answers(pipeline, users)
    assert ids.tolist() == [wanted for wanted, _ in expected(folder, users)]


def test_several_outputs_and_a_formula(small):
    folder, described = small
    inputs = described["rank"]["inputs"]
    described["rank"] = {
        "onnx": "both.onnx", "inputs": inputs, "score": "logit * (0.7 + 0.3 * engagement)",
        "outputs": {"logit": "logit", "engagement": "probability"},
    }  # fmt: skip
    described.pop("golden")
    found, pipeline = export(folder, described)
    check(pipeline, folder, formula=lambda ctr, engagement: ctr * (0.7 + 0.3 * engagement))
    serving, product = settings_of(folder / "repository")
    assert product.score == "logit * (0.7 + 0.3 * engagement)"
    product = replace(product, score="engagement / logit")
    rewire(folder / "repository", folder / "other", serving, product)
    other = Pipeline.load(folder / "other")
    check(other, folder, formula=lambda ctr, engagement: engagement / ctr)
    tasks = other.answer(*RequestLayout.of(other.schema).arrays(people(folder)))["task_scores"]
    assert tasks.shape[1:] == (10, 2)
    assert any("THE ENCODING IS UNPROVEN" in note for note in found.notes)


def test_a_preranker_and_a_ranker(small):
    folder, described = small
    described["prerank"] = copy.deepcopy(described["rank"])
    sizes = Sizes(candidates=20, survivors=15, results=10)
    check(export(folder, described, sizes=sizes)[1], folder)


def test_a_value_without_a_row_is_refused_in_a_request(small):
    folder, described = small
    del described["features"][0]["unknown"]
    found, pipeline = export(folder, described)
    assert any(note.startswith("feature user has no row for unknown") for note in found.notes)
    with pytest.raises(InvalidInput, match="feature user: 'stranger' came"):
        answers(pipeline, [{"user": "stranger"}])


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_line(small, case):
    folder, described = small
    change, message = WRONG[case]
    change(folder, described)
    path = dump(described, folder)
    with pytest.raises(LocatedError) as caught:
        file.write(path, folder / "checkpoints")
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert text.startswith(f"{path}, line ")


def test_a_flag_wins_over_the_formula_of_the_file(small):
    """Of the only output, too."""
    folder, described = small
    described["rank"] |= {"onnx": "both.onnx", "score": "exp(logit)", "outputs": {"logit": "logit"}}
    described["rank"].pop("output")
    described.pop("golden")
    path = dump(described, folder)
    for name, flags in (("file", ()), ("flag", ("--score=-logit",))):
        words = ["build", "--cascade", path, "--repository", folder / name, "--untuned", *flags]
        sizes = ["--candidates", "20", "--survivors", "20", "--index", "flat"]
        export_command.main([str(word) for word in (*words, *sizes)])
    check(Pipeline.load(folder / "file"), folder, formula=lambda ctr, _: np.exp(ctr))
    check(Pipeline.load(folder / "flag"), folder, formula=lambda ctr, _: -ctr)
    assert settings_of(folder / "file")[1].score == "exp(logit)"


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("ctr * 2", "unknown output 'ctr'"),
        ("__import__('os')", "is no part of a formula"),
        ("logit +", "is no formula"),
        ("logit if engagement else 1", "is no part of a formula"),
    ],
)
def test_a_formula_that_is_none(small, formula, message):
    folder, described = small
    described["rank"] |= {
        "onnx": "both.onnx", "score": formula,
        "outputs": {"logit": "logit", "engagement": "probability"},
    }  # fmt: skip
    described["rank"].pop("output")
    with pytest.raises(LocatedError, match=message):
        file.write(dump(described, folder), folder / "checkpoints")


def test_a_folder_with_other_files_is_not_written_over(small):
    folder, described = small
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "thesis.txt").touch()
    with pytest.raises(LocatedError, match="holds other files"):
        file.write(dump(described, folder), folder / "checkpoints")


def test_the_command_says_it_in_one_line(small):
    folder, described = small
    described["rank"]["onnx"] = "no.onnx"
    words = ["build", "--cascade", dump(described, folder), "--repository", folder / "repository"]
    ended = subprocess.run(
        [sys.executable, "-m", "export", *map(str, words)], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "rank.onnx: there is no file" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_integer_ids_take_a_number_that_is_an_id(small):
    folder, described = small
    described["features"][0] = {
        "name": "user", "side": "user", "kind": "categorical", "unknown": 1, "missing": 0,
        "integer": {"offset": 2, "size": USERS + 2},
    }  # fmt: skip
    rows = json.loads((folder / "user.json").read_text())
    table = pq.read_table(folder / "users.parquet").to_pydict()
    plain = {"user": [rows[u] - 2 for u in table["user"]], "age": table["age"]}
    pq.write_table(pa.table(plain), folder / "users.parquet")
    described.pop("golden")
    _, pipeline = export(folder, described)
    ids, _ = answers(pipeline, [{"user": rows[u] - 2, "age": 30.0} for u in table["user"]])
    wanted = expected(folder, [{"user": u, "age": 30.0} for u in table["user"]])
    assert ids.tolist() == [best for best, _ in wanted]


def test_string_ids_come_back_as_they_are(small):
    folder, described = small
    described["items"]["id"] = "sku"
    described.pop("golden")
    _, pipeline = export(folder, described)
    items = pq.read_table(folder / "items.parquet").to_pydict()
    names = dict(zip(items["id"], items["sku"], strict=True))
    users = people(folder)
    ids, _ = answers(pipeline, users)
    for row, (wanted, _) in enumerate(expected(folder, users)):
        assert [name.decode() for name in ids[row]] == [names[i] for i in wanted]


def test_a_graph_of_another_input_type(small):
    folder, described = small
    tables = {"t": np.zeros((3, 2), np.float32)}
    save(folder / "user.onnx", [("Gather", ["t", "user"], "u")], "u", tables, user=INT)
    described["retrieve"]["user"]["inputs"] = {"user": ["user", "age"]}
    with pytest.raises(LocatedError, match="have 2"):
        file.write(dump(described, folder), folder / "checkpoints")


@pytest.mark.parametrize("stage", ["rank", "prerank"])
def test_our_own_checkpoints_are_one_more_form(seven, tmp_path, stage, assert_same_answers):
    """The other scoring stage comes as a flat graph of the same model."""
    scorer = checkpoint.load(seven.checkpoints / stage, seven.schema)
    entry = flat.flat_onnx(scorer, seven.schema, tmp_path / "own.onnx")
    described = {
        "checkpoints": str(seven.checkpoints),
        "prerank": {"checkpoint": "prerank"},
        stage: {"onnx": "own.onnx", "inputs": entry["inputs"], "output": "logit"},
    }
    found = file.write(dump(described, tmp_path), tmp_path / "written")
    assert found.folder == seven.checkpoints
    assert [*found.foreign] == [stage]
    build = Build(
        found.folder, tmp_path / "repository", sizes=seven.sizes, index="flat", state="float32",
        weights="float32", measure_batching=False, foreign=found.foreign, preranker=found.preranker,
    )  # fmt: skip
    write_release(build)
    users = seven.dense[:20], seven.categorical[:20]
    own, trained = (Pipeline.load(path)(*users) for path in (build.repository, seven.repository))
    assert_same_answers(own, trained, 1e-5)


def test_a_missing_checkpoint_is_named(seven, tmp_path):
    described = {"checkpoints": str(seven.checkpoints), "prerank": {"checkpoint": "nothing"}}
    with pytest.raises(LocatedError, match=r"line 3: prerank: .*nothing holds no finished model"):
        file.write(dump(described, tmp_path), tmp_path / "written")


def test_columns_of_one_output_and_the_order_of_several(small):
    folder, described = small
    inputs = described["rank"]["inputs"]
    model = onnx.load(folder / "both.onnx")
    model.graph.node.append(
        onnx.helper.make_node("Concat", ["logit", "engagement"], ["tasks"], axis=1)
    )
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("tasks", FLOAT, ["n", 2]))
    onnx.save(model, folder / "tasks.onnx")
    described["rank"] = {
        "onnx": "tasks.onnx", "inputs": inputs, "score": "ctr * (0.7 + 0.3 * engagement)",
        "outputs": {"ctr": "logit", "engagement": "probability"},
    }  # fmt: skip
    described.pop("golden")
    _, pipeline = export(folder, described)
    check(pipeline, folder, formula=lambda ctr, engagement: ctr * (0.7 + 0.3 * engagement))


def test_new_items_go_through_the_teams_models(small):
    folder, described = small
    export(folder, described)
    new = {"item_id": [900, 901], "sku": ["s3", "s4"], "price": [9.0, 7.5]}
    pq.write_table(pa.table(new), folder / "new.parquet")
    refresh = Refresh(folder / "repository", 1, folder / "checkpoints")
    added = read_items(folder / "new.parquet", refresh.encoder, refresh.checkpoints)
    refresh.write(folder / "next", 2, change(refresh.item_ids, added, np.array([100])))
    items = pq.read_table(folder / "items.parquet")
    left = items.slice(1)
    grown = pa.table({"id": new["item_id"], "sku": new["sku"], "price": new["price"]})
    pq.write_table(pa.concat_tables([left, grown.cast(left.schema)]), folder / "items.parquet")
    check(Pipeline.load(folder / "next", 2), folder)


def judged(folder, described):
    """Labelled rows that the ranker's own scores order."""
    rows = pq.read_table(folder / "golden.parquet").to_pydict()
    label = [int(score > np.median(rows["score"])) for score in rows["score"]]
    columns = {name: rows[name] for name in ("user", "age", "id")}
    pq.write_table(pa.table({**columns, "label": label}), folder / "held_out.parquet")
    described["held_out"] = {"file": "held_out.parquet", "item": "id"}


def release_of(folder):
    return json.loads((folder / "repository" / "recommend" / "1" / "release.json").read_text())


def test_the_teams_ranker_is_stored_in_the_variant_that_the_guard_passes(small):
    folder, described = small
    judged(folder, described)
    _, pipeline = export(folder, described, state="float16")
    release = release_of(folder)
    assert release["stages"]["rank"]["variant"]["state"] == "float16"
    assert [v["stage"] for v in release["variants"] if v["chosen"]] == ["rank"]
    assert all(p["quantised"] for p in release["parity"] if p["stage"] == "rank")
    said = [line for line in release["verdict"] if line["by"] == "held_out"]
    assert next((line["name"], line["other"]) for line in said) == ("rank", "retrieve")
    users = people(folder)
    ids, scores = answers(pipeline, users)
    for row, (wanted, own) in enumerate(expected(folder, users)):
        assert len({*ids[row].tolist()} & {*wanted}) >= 9
        np.testing.assert_allclose(scores[row], own, atol=2e-3)


def test_a_variant_needs_rows_to_be_judged_by(small):
    folder, described = small
    with pytest.raises(GuardError, match="or give `held_out` in cascade"):
        export(folder, described, state="float16")


def test_what_is_served_flat_has_no_variants(small):
    folder, described = small
    judged(folder, described)
    export(folder, described, state="auto", flat=True)
    release = release_of(folder)
    assert release["variants"] == []
    assert release["stages"]["rank"]["flat"] == "as --flat says"


def test_held_out_labels_are_checked(small):
    folder, described = small
    judged(folder, described)
    described["held_out"]["label"] = "age"
    with pytest.raises(LocatedError, match=r"held_out.file: column age, row 1, is .*; expected a "):
        file.write(dump(described, folder), folder / "checkpoints")


def change_column(path, name, change):
    table = pq.read_table(path)
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, pa.array(change(table[name].to_pylist()))), path)


def ready_vectors(folder, described):
    ids, vectors = own_vectors(folder)
    lists = pa.array([*vectors], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ids, "vector": lists}), folder / "vectors.parquet")
    described["retrieve"]["item"] = {"vectors": "vectors.parquet"}


NO_IDS = {
    "text of integers": lambda ids: [str(item) for item in ids],
    "text": lambda ids: ["x"] * len(ids),
    "whole floats": lambda ids: [float(item) for item in ids],
    "a fraction": lambda ids: [100.5] * len(ids),
    "beyond 64 bits": lambda ids: pa.array([*ids[:-1], 2**63], pa.uint64()),
    "codes beyond 64 bits": lambda ids: pa.array(
        [*ids[:-1], 2**64 - 1], pa.uint64()
    ).dictionary_encode(),
    "booleans": lambda ids: [True] * len(ids),
    "lists": lambda ids: [[item] for item in ids],
    "missing": lambda ids: [*ids[:-1], None],
    "negative": lambda ids: [*ids[:-1], -1],
}


@pytest.mark.parametrize("name", ["held_out", "golden", "vectors"])
@pytest.mark.parametrize("case", NO_IDS)
def test_ids_of_items_are_read_by_one_rule(small, name, case):
    folder, described = small
    judged(folder, described)
    ready_vectors(folder, described)
    change_column(folder / f"{name}.parquet", "id", NO_IDS[case])
    where = (
        rf"line \d+: .*{name}.*: column id(, row \d+,)? is .*; expected .*integers from 0 to 2\^63"
    )
    with pytest.raises(LocatedError, match=where):
        file.write(dump(described, folder), folder / "checkpoints")


def test_an_item_that_is_not_there_is_named(small):
    folder, described = small
    change_column(folder / "golden.parquet", "id", lambda ids: [*ids[:-2], 7, 8])
    with pytest.raises(LocatedError, match=r"2 rows of column id have an item .*, 7 among them"):
        file.write(dump(described, folder), folder / "checkpoints")


def test_labels_may_be_booleans(small):
    folder, described = small
    judged(folder, described)
    change_column(folder / "held_out.parquet", "label", lambda labels: [*map(bool, labels)])
    file.write(dump(described, folder), folder / "checkpoints")


def test_ids_and_labels_of_files_of_text(small):
    folder, described = small
    judged(folder, described)
    ids, vectors = own_vectors(folder)
    np.save(folder / "vectors.npy", vectors)
    (folder / "ids.txt").write_text("".join(f"{item}\n" for item in ids))
    described["retrieve"]["item"] = {"vectors": "vectors.npy", "ids": "ids.txt"}
    for name in ("held_out", "golden"):
        described[name]["file"] = f"{name}.csv"
        csv.write_csv(pq.read_table(folder / f"{name}.parquet"), folder / f"{name}.csv")
    file.write(dump(described, folder), folder / "checkpoints")
    change_column(folder / "held_out.parquet", "label", lambda labels: [*map(bool, labels)])
    csv.write_csv(pq.read_table(folder / "held_out.parquet"), folder / "held_out.csv")
    with pytest.raises(LocatedError, match=r"column label, row 1, is '.*'; expected a label, 0 or"):
        file.write(dump(described, folder), folder / "checkpoints")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (b"100\n\xff\n", "ids.txt is not UTF-8"),
        (np.array([2**63] * ITEMS, np.uint64), "column of ids, row 1, is 9223372036854775808"),
        (
            np.array([[1, 2]] * ITEMS),
            r"ids.npy holds int64 \[40, 2\]; expected integers or strings",
        ),
        (np.array(["x"] * ITEMS), "column of ids is large_string; expected item ids as the items"),
    ],
)
def test_the_ids_of_ready_vectors_are_ids(small, ids, message):
    folder, described = small
    np.save(folder / "vectors.npy", own_vectors(folder)[1])
    name = "ids.txt" if isinstance(ids, bytes) else "ids.npy"
    (folder / name).write_bytes(ids) if isinstance(ids, bytes) else np.save(folder / name, ids)
    described["retrieve"]["item"] = {"vectors": "vectors.npy", "ids": name}
    with pytest.raises(LocatedError, match=message):
        file.write(dump(described, folder), folder / "checkpoints")


def test_a_column_of_vectors_holds_vectors(small):
    folder, described = small
    ready_vectors(folder, described)
    change_column(folder / "vectors.parquet", "vector", lambda vectors: [1] * len(vectors))
    with pytest.raises(LocatedError, match=r"holds int64 \[40\]; expected numbers \[n, D\]"):
        file.write(dump(described, folder), folder / "checkpoints")
