"""What may be wrong about a cascade that is described by a file: a change of the folder and of what
cascade.yaml holds, and a part of the message that says so."""

import json

import faiss
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import numpy_helper

from tests.export.described_files import FLOAT, ITEMS, USERS


def own_vectors(folder):
    table = numpy_helper.to_array(onnx.load(folder / "item.onnx").graph.initializer[0])
    items = pq.read_table(folder / "items.parquet").to_pydict()
    rows = json.loads((folder / "sku.json").read_text())
    vectors = table[[rows[s] for s in items["sku"]]] * np.array(items["price"], "f4")[:, None]
    return np.array(items["id"]), np.ascontiguousarray(vectors, np.float32)


# What is refused: how the files change, and what the error says.


def wrong_vocabulary(folder, described):
    values = sorted(json.loads((folder / "sku.json").read_text()))
    (folder / "sku.json").write_text(json.dumps({v: i + 2 for i, v in enumerate(values)}))


def larger_vocabulary(folder, described):
    values = json.loads((folder / "sku.json").read_text())
    (folder / "sku.json").write_text(json.dumps({**values, "new": ITEMS + 9}))


def two_ids(folder, described):
    (folder / "user.txt").write_text("a\nb\na\n")
    described["features"][0]["vocabulary"] = "user.txt"


def vocabulary(text):
    return lambda folder, described: (folder / "user.json").write_text(text)


def items_of(change):
    def apply(folder, described):
        table = change(pq.read_table(folder / "items.parquet"))
        pq.write_table(table, folder / "items.parquet")

    return apply


def model_of(name, change):
    def apply(folder, described):
        model = onnx.load(folder / name)
        change(model)
        onnx.save(model, folder / name)

    return apply


def ignored_input(folder, described):
    model = onnx.load(folder / "rank.onnx")
    model.graph.input.append(onnx.helper.make_tensor_value_info("extra", FLOAT, ["n", 1]))
    onnx.save(model, folder / "rank.onnx")
    described["rank"]["inputs"]["extra"] = ["price"]


def weights(name, value):
    def change(model):
        tensor = model.graph.initializer[0]
        values = numpy_helper.to_array(tensor).copy()
        values[3] = value
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return model_of(name, change)


def newer(model):
    model.opset_import[0].version = 25


def own_operator(model):
    model.graph.node[-1].op_type = "OursAlone"


def vectors_of(change, **more):
    def apply(folder, described):
        ids, vectors = own_vectors(folder)
        ids, vectors = change(ids, vectors)
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "ids.npy", ids)
        described["retrieve"] |= {"item": {"vectors": "vectors.npy", "ids": "ids.npy"}, **more}

    return apply


def index_of(change, metric="inner product"):
    def apply(folder, described):
        ids, vectors = own_vectors(folder)
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "ids.npy", ids)
        found = change(vectors)
        index = faiss.IndexFlatIP(found.shape[1])
        index.add(np.ascontiguousarray(found))
        faiss.write_index(index, str(folder / "own.faiss"))
        described["retrieve"] |= {
            "item": {"vectors": "vectors.npy", "ids": "ids.npy"},
            "index": "own.faiss",
            "metric": metric,
        }

    return apply


def put(path, value):
    def apply(folder, described):
        *parents, last = path
        inner = described
        for key in parents:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value

    return apply


def zero(ids, vectors):
    vectors[5] = 0
    return ids, vectors


def infinite(ids, vectors):
    vectors[5] = np.inf
    return ids, vectors


RANK = ("rank", "inputs")
WRONG = {
    "no such key": (put(["raank"], {}), "unknown key 'raank': did you mean 'rank'"),
    "no features": (put(["features"], None), "the key 'features' is missing"),
    "a user without a value": (
        put(["features", 0, "missing"], None),
        "features[0]: say as `missing: ID` which row a user without this value gets",
    ),
    "another type of values": (
        put(["features", 2, "dtype"], "integer"),
        "features[2]: dtype is integer, and the column sku holds string, as 's0'",
    ),
    "a kind": (put(["features", 0, "kind"], "categoric"), "features[0].kind: unknown kind"),
    "no way to an id": (
        put(["features", 0, "vocabulary"], None),
        "features[0]: no way came by which a value becomes an id",
    ),
    "a bag without pads": (
        put(["features", 2], {"name": "b", "side": "item", "kind": "bag", "length": 3,
                              "vocabulary": "sku.json"}),
        "features[2]: a bag has pads where it is shorter than 3: say their id as `missing: ID`",
    ),
    "no vocabulary file": (put(["features", 0, "vocabulary"], "x.json"), "there is no file"),
    "a value with two ids": (two_ids, "user.txt has 'a' with the ids 0 and 2"),
    "a value twice": (vocabulary('{"u1": 3, "u1": 4}'), "an object that has 'u1' twice"),
    "an id beyond 64 bits": (vocabulary(f'{{"u1": {-(1 << 64)}}}'), "expected an int of 64 bits"),
    "half a character": (vocabulary(r'{"\ud800": 3}'), "values have no line end and no |, and UTF"),
    "a deep vocabulary": (vocabulary("[" * 100_000), "user.json cannot be read: not JSON that"),
    "an id beyond the rows": (
        put(["features", 0, "rows"], 5),
        f"features[0]: id {USERS + 1} came, but the table has 5 rows",
    ),
    "no items file": (put(["items", "file"], "no.parquet"), "items.file: there is no file"),
    "no id column": (put(["items", "id"], "idd"), "unknown column 'idd': did you mean 'id'"),
    "duplicate ids": (
        items_of(lambda t: pa.concat_tables([t, t.slice(3, 1)])),
        "items.file: id has 103 2 times; ids occur once",
    ),
    "an empty catalogue": (items_of(lambda t: t.slice(0, 0)), "a catalogue needs an item"),
    "ids with a fraction": (
        items_of(lambda t: t.set_column(0, "id", t["id"].cast(pa.float64()))),
        "column id is double; expected integers or strings",
    ),
    "an unknown feature": (put([*RANK, "age"], ["agee"]), "rank.inputs.age: unknown feature"),
    "an unfed input": (put([*RANK, "age"], None), "rank.onnx also takes age"),
    "a fed input too many": (
        put([*RANK, "colour"], ["price"]),
        "rank.inputs.colour: rank.onnx does not read its input colour; its inputs are user, age",
    ),
    "an ignored input": (ignored_input, "rank.onnx does not read its input extra"),
    "a feature of the other side": (
        put(["retrieve", "user", "inputs", "user"], "sku"),
        "retrieve.user.inputs.user: sku is a feature of the item, which this model does not see",
    ),
    "too many columns": (
        put([*RANK, "age"], ["age", "price"]),
        "takes 1 columns, but ['age', 'price'] have 2",
    ),
    "no meaning": (put(["rank", "output"], None), "rank: say what the output means"),
    "an id beyond a table": (
        larger_vocabulary,
        f"features[2]: the vocabulary has the id {ITEMS + 9}, which retrieve.item",
    ),
    "another vocabulary": (wrong_vocabulary, "golden.file: "),
    "weights that are not finite": (
        weights("rank.onnx", np.nan),
        "rank: the weights users of rank.onnx have values that are not finite",
    ),
    "an opset that is too new": (model_of("rank.onnx", newer), "rank: "),
    "an operator of their own": (
        model_of("rank.onnx", own_operator),
        "rank.onnx uses the operator OursAlone, which ONNX does not define",
    ),
    "not ONNX": (lambda f, d: (f / "rank.onnx").write_text("x"), "rank.onnx: "),
    "a vector that is not finite": (vectors_of(infinite), "the vector of 105 (row 5)"),
    "a vector without a direction": (
        vectors_of(zero, metric="cosine"),
        "retrieve.item: the vector of item 105 has length 0, which has no cosine",
    ),
    "fewer vectors than items": (
        vectors_of(lambda i, v: (i[:9], v[:9])),
        "31 items have no vector, item 109 among them",
    ),
    "more ids than vectors": (vectors_of(lambda i, v: (i, v[:9])), "9 vectors and 40 ids came"),
    "another width": (
        vectors_of(lambda i, v: (i, v[:, :3])),
        "items have vectors of width 3, users of 4",
    ),
    "an index over other vectors": (
        index_of(lambda v: np.random.default_rng(0).normal(size=v.shape).astype("f4")),
        "is it built over these vectors, in this order?",
    ),
    "an index of another size": (index_of(lambda v: v[:7]), "own.faiss holds 7 vectors"),
    "an index of another metric": (
        index_of(lambda v: v, "l2"),
        "own.faiss orders by inner product or cosine, and `metric` says l2",
    ),
    "an unknown metric": (put(["retrieve", "metric"], "euclid"), "retrieve.metric: unknown metric"),
    "no ranker": (put(["rank"], "none"), "neither `prerank` nor `rank` came"),
    "two outputs without a formula": (
        put(["rank"], {"onnx": "both.onnx", "inputs": {"user": "user"},
                       "outputs": {"logit": "logit", "engagement": "probability"}}),
        "rank: 2 outputs came; say by `score` which formula of them orders the items",
    ),
    "no golden file": (put(["golden", "file"], "no.parquet"), "golden.file: there is no file"),
}  # fmt: skip
