"""`cascade.yaml`: reads a cascade of models that were trained elsewhere, and writes the folder of
checkpoints that `export.build` reads."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cascade.artifact import Array
from cascade.data.parts import fixed_size_list
from cascade.encoding import InvalidInput
from cascade.located import Node, load
from cascade.spec import PRERANK, RANK, RETRIEVE
from export.context import Catalogue, read_catalogue
from export.described import features as feature_lists
from export.described import golden, models, people, tables, vectors
from export.described.forms import Form
from export.described.trained import Checkpoints, Trained, is_checkpoint
from export.foreign import towers
from export.foreign.inputs import ForeignError, InputMap
from export.foreign.onnx_model import Foreign, flat_rows

STAGE_KEYS = ("retrieve", "prerank", "rank", "golden")
KEYS = ("name", "features", "items", "users", "held_out", *STAGE_KEYS)
FORMULAS = {RANK: "score", PRERANK: "prerank_score"}  # fields of `Product`
PROBE_ROWS = 64
MARK = "described.yaml"  # a copy of the file: marks a folder that may be written anew


@dataclass
class Described:
    """What was written: the ONNX file and the JSON of each scoring stage, whether there is a
    preranker, and what the export should say aloud."""

    folder: Path
    foreign: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    preranks: bool = True
    preranker: str = PRERANK  # the subfolder of its checkpoint
    formulas: dict[str, str] = field(default_factory=dict)  # by field of `Product`
    notes: list[str] = field(default_factory=list)


def write(path: Path, folder: Path) -> Described:
    """Read the file, prove its models and write the folder, anew. Raises LocatedError: names the
    line, what came, what was expected."""
    return _Writer(load(path), folder).write()


class _Writer:
    def __init__(self, root: Node, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.made = Described(folder)
        self.checkpoints: Checkpoints | None = None

    def write(self) -> Described:
        self._clear()
        if "checkpoints" in self.root.mapping():
            self.root.only("checkpoints", *STAGE_KEYS)
            ids = self._read_checkpoints()
        else:
            self.root.only(*KEYS)
            ids = self._read_tables()
            self._retrieve(self.root.take("retrieve", lambda n: n), ids)
        self._golden(self._stages(), ids)
        for name in self.features.refusing:
            self.made.notes.append(
                f"feature {name} has no row for unknown values (`unknown: ID`): a request with one "
                "is refused"
            )
        return self.made

    def _clear(self) -> None:
        if self.folder.exists():
            if any(self.folder.iterdir()) and not (self.folder / MARK).exists():
                raise self.root.error(
                    f"{self.folder} holds other files; name a new folder by --checkpoints"
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        (self.folder / MARK).write_bytes(self.root.file.read_bytes())

    def _read_checkpoints(self) -> pa.Array:
        """Features, items and users of training; only scoring stages may come from elsewhere."""
        found = self.checkpoints = Checkpoints(self.root.mapping()["checkpoints"])
        self.made.folder = found.folder
        self.features, self.catalogue = found.features, found.source.items
        self.users, self.raw_users = found.source.users, found.raw_users
        retriever = self.root.take("retrieve", lambda n: n, None)
        if not is_checkpoint(retriever) or found.name(RETRIEVE, retriever) != RETRIEVE:
            assert retriever is not None
            raise retriever.error(
                f"beside `checkpoints` the retriever is theirs: leave it out, or say `checkpoint: "
                f"{RETRIEVE}`"
            )
        return found.ids

    def _read_tables(self) -> pa.Array:
        node = self.root.take("items", lambda n: n)
        node.only("file", "id", "title")
        table, ids = self._items(node)
        self.features = feature_lists.read(
            self.root.take("features", lambda n: n),
            self.root.take("name", Node.text, "cascade"),
            pa.types.is_large_string(ids.type),
        )
        self.catalogue = self._encoded(node, table, ids)
        self._users()
        if held_out := self.root.take("held_out", lambda n: n, None):
            people.write_held_out(held_out, self.features, self._encode, ids, self.folder)
        return ids

    def _stages(self) -> Foreign | Trained:
        """Write the scoring models from elsewhere -> the ranker."""
        rows = self._probe()
        stages = {name: self.root.take(name, lambda n: n, None) for name in (PRERANK, RANK)}
        said = {n: one for n, one in stages.items() if one is None or one.value != "none"}
        given = said if self.checkpoints else {n: one for n, one in said.items() if one is not None}
        if not given:
            raise self.root.error("neither `prerank` nor `rank` came; expected a model that ranks")
        self.made.preranks = len(given) == 2
        found = [self._stage(name, node, rows) for name, node in given.items()]
        if not self.made.preranks and PRERANK in given:  # a preranker alone ranks
            if isinstance(found[0], Trained):
                raise self.root.error("a checkpoint that ranks stands under `rank`, not `prerank`")
            self.made.foreign[RANK] = self.made.foreign.pop(PRERANK)
            self.made.formulas = dict(zip(["score"], self.made.formulas.values(), strict=False))
        return found[-1]

    def _stage(self, name: str, node: Node | None, rows: Any) -> Foreign | Trained:
        if self.checkpoints and is_checkpoint(node):
            folder = self.checkpoints.name(name, node)
            if name == PRERANK:
                self.made.preranker = folder
            elif folder != RANK:
                raise self.root.mapping()[RANK].error(f"the checkpoint that ranks is called {RANK}")
            return self.checkpoints.scored(folder)
        assert node is not None
        foreign = self._score(node, name, rows)
        self.made.foreign[name] = (foreign.path, foreign.path.with_suffix(".json"))
        if foreign.formula:
            self.made.formulas[FORMULAS[name]] = foreign.formula.text
        return foreign

    def _items(self, node: Node) -> tuple[pa.Table, pa.Array]:
        file, name = node.take("file", lambda n: n), node.take("id", Node.text, "item_id")
        listed = [n for n in self.root.take("features", Node.members) if "name" in n.mapping()]
        texts = {n.take("column", Node.text, n.take("name", Node.text)) for n in listed
                 if n.take("kind", Node.text, "dense") != "dense"}  # fmt: skip
        table = tables.read(file, texts)
        return table, tables.item_ids(file, name, tables.column(file, table, name))

    def _encoded(self, node: Node, table: pa.Table, ids: pa.Array) -> Catalogue:
        self.features.check(table)
        raw = tables.features(node, table, self.features.wanted("item"))
        if "title" in node.mapping():
            title = node.mapping()["title"]
            texts = tables.texts(title, title.text(), tables.column(title, table, title.text()))
            names = pa.table({"item_id": ids, "title": texts})
            pa.csv.write_csv(names, self.folder / "titles.csv")
        dense, codes = self._encode("item", raw)
        self.features.encoder.save(self.folder)
        columns = {
            "item_id": ids,
            "dense": fixed_size_list(dense),
            "ids": fixed_size_list(codes),
            **{f.name: raw[f.name] for f in self.features.schema.ids("item")},
        }
        pq.write_table(pa.table(columns), self.folder / "catalogue.parquet")
        return read_catalogue(self.folder)

    def _encode(self, side: Any, raw: pa.Table) -> tuple[Array, Array]:
        try:
            return self.features.encoder.encode_table(side, raw)
        except InvalidInput as error:
            raise self.root.mapping()["features"].error(
                f"in the {side}s' table: {error}"
            ) from error

    def _users(self) -> None:
        node = self.root.take("users", lambda n: n, None)
        if node is None:
            self.made.notes.append(
                "no `users` came: the index is tuned, and the release tried, on users that were "
                "drawn from the vocabularies"
            )
            raw = people.drawn(self.features)
        else:
            node.only("file", "id")
            file = node.take("file", lambda n: n)
            wanted = self.features.wanted("user")
            table = tables.read(file, self.features.texts("user"))
            self.features.check(table)
            raw = people.sample(tables.features(file, table, wanted))
            if not len(raw):
                raise file.error("the table has no rows; expected users")
        self.users = self._encode("user", raw)
        self.raw_users = raw
        people.write(raw, self.features.schema, self.folder)

    def _probe(self) -> Any:
        """Encoded rows of users beside items."""
        random = np.random.default_rng(0)
        some = random.integers(len(self.users[1]), size=PROBE_ROWS)
        dense, codes = (values[some] for values in self.users)
        rows = random.integers(len(self.catalogue), size=PROBE_ROWS)
        return flat_rows(dense, codes, self.catalogue, rows)

    def _score(self, node: Node, name: str, rows: Any) -> Foreign:
        form = Form(node, self.features, ("user", "item"))
        foreign = models.write(form, self.features, rows, self.folder / name / f"{name}.onnx")
        models.check_ids(foreign, self.features, rows, node)
        return foreign

    def _retrieve(self, node: Node, ids: pa.Array) -> None:
        node.only("user", "item", "metric", "index")
        folder, rows = self.folder / RETRIEVE, self._probe()
        folder.mkdir()
        metric: Any = node.take("metric", lambda n: n.choice("metric", towers.METRICS))
        width = self._user_side(node.take("user", lambda n: n), folder, rows)
        item = node.take("item", lambda n: n)
        if "vectors" in item.mapping():
            found = self._item_vectors(item, ids, width)
            np.save(folder / towers.VECTORS, found)
            np.save(folder / towers.KEYS, self.catalogue.item_ids)
        else:
            form = Form(item, self.features, ("item",))
            tower = models.write(form, self.features, rows, folder / towers.ITEM)
            models.check_ids(tower, self.features, rows, item)
            if (other := tower.run(rows).reshape(PROBE_ROWS, -1).shape[1]) != width:
                raise item.error(f"items have vectors of width {other}, users of width {width}")
        towers.save(folder, metric, width)
        index = node.take("index", lambda n: n, None)
        retriever = towers.ForeignRetriever(folder, self.features.schema)
        try:
            own = np.concatenate([*retriever.item_vectors(self.catalogue)])
        except ForeignError as error:
            raise item.error(str(error)) from error
        if index is not None:
            plain = own[:, :width] if metric == "l2" else own
            faiss.write_index(vectors.own_index(index, plain, metric), str(folder / towers.INDEX))
            towers.save(folder, metric, width)

    def _user_side(self, node: Node, folder: Path, rows: Any) -> int:
        """Write the user tower -> the width of its vectors."""
        if "vectors" not in node.mapping():
            form = Form(node, self.features, ("user",))
            tower = models.write(form, self.features, rows, folder / towers.USER)
            models.check_ids(tower, self.features, rows, node)
            found = tower.run(rows)
            if len(found) != PROBE_ROWS or found.reshape(PROBE_ROWS, -1).shape[1] < 2:
                raise node.error(f"{form.name} gives {found.shape}; expected vectors [n, D]")
            return int(found.reshape(PROBE_ROWS, -1).shape[1])
        name = node.take("feature", lambda n: n)
        wanted = self.features.wanted("user")
        if name.text() not in wanted or wanted[name.text()][0].kind != "categorical":
            raise name.error(f"{name.value} came; expected a categorical feature of the user")
        ids, found = vectors.read(node)
        feature = wanted[name.text()][0]
        codes = self.features.encoder.ids(
            feature, [text.encode() for text in tables.texts(name, "ids", ids).to_pylist()]
        )[:, 0]
        table = np.repeat(found.mean(axis=0, keepdims=True), feature.cardinality, axis=0)
        table[codes] = found
        towers.table_tower(table, folder / towers.USER)
        mapping = InputMap(node.file, {"user": [feature.name]}, "vector", "value", "user")
        mapping.save((folder / towers.USER).with_suffix(".json"))
        self.made.notes.append("a user without a ready vector gets the mean of all of them")
        return int(found.shape[1])

    def _item_vectors(self, node: Node, ids: pa.Array, width: int) -> Array:
        """The ready vectors in the order of the catalogue."""
        own, found = vectors.read(node, ids)
        source = node.mapping()["vectors"]
        if found.shape[1] != width:
            raise source.error(f"items have vectors of width {found.shape[1]}, users of {width}")
        places = pc.index_in(ids, value_set=own)
        if places.null_count:
            first = ids.filter(places.is_null())[0].as_py()
            raise source.error(
                f"{places.null_count} items have no vector, item {first!r} among them"
            )
        return found[places.to_numpy()]

    def _golden(self, ranker: Foreign | Trained, ids: pa.Array) -> None:
        node = self.root.take("golden", lambda n: n, None)
        if node is None and isinstance(ranker, Trained):
            return
        if node is None:
            self.made.notes.append(golden.unproven(self.features, self.raw_users))
            return
        self.made.notes.append(golden.check(node, self.features, self.catalogue, ids, ranker))
