"""Cascades of any schema without any training, and what is needed to draw, export and ask them.

The weights are drawn, not learnt: what export and serving have to prove is that the answers stay
the same, whatever they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cascade.config import Product, Runtime, Serving
from cascade.data.criteo import SCHEMA as CRITEO
from cascade.data.parts import fixed_size_list
from cascade.encoding import Encoder
from cascade.models import build as build_model
from cascade.models import preset
from cascade.models.embeddings import Embeddings
from cascade.schema import Feature, Schema, Side
from cascade.spec import Sizes
from cascade.stages.pipeline import Pipeline
from cascade.training import bundle, checkpoint
from export.build import write_release
from export.context import Build

LABELS = 1000
WORDS = 20  # values of every categorical and bag
FIRST_ITEM_ID, ITEM_ID_STEP = 5_000_000_000, 3  # neither a row number nor a 32-bit number
MODELS = {"retrieve": ("two_tower", "tiny"), "prerank": ("dlrm", "tiny"), "rank": ("dlrm", "small")}


@dataclass(frozen=True, eq=False)
class Cascade:
    """An exported cascade, and users to ask it with.

    Args:
        dense: float32 [B, F_dense], NaN = missing. categorical: object [B, F_cat], of bytes.
    """

    checkpoints: Path
    repository: Path
    schema: Schema
    dense: Any
    categorical: Any
    sizes: Sizes
    serving: Serving

    def pipeline(self, **options: Any) -> Pipeline:
        """The cascade in this process."""
        return Pipeline.load(self.repository, serving=Serving(threads=1, **options))

    def ask(self, pipeline: Pipeline, start: int = 0, stop: int | None = None) -> tuple[Any, Any]:
        """What the cascade answers to some of the users: item_ids and scores, [B, 10] each."""
        rows = slice(start, stop)
        return pipeline(self.dense[rows], self.categorical[rows])

    @property
    def users(self) -> list[dict[str, Any]]:
        """The same users as a client would send them."""
        return [json.loads(line) for line in (self.checkpoints / "users.jsonl").open()]


@dataclass(frozen=True)
class Plan:
    """What to draw and how to export it."""

    schema: Schema = CRITEO
    items: int = 1500
    users: int = 240
    seed: int = 0
    models: dict[str, tuple[str, str]] = field(default_factory=lambda: MODELS)
    sizes: Sizes = field(default_factory=Sizes)
    serving: Serving = field(default_factory=lambda: Serving(max_batch_size=32))
    product: Product = field(default_factory=Product)
    index: Any = "ivf"
    state: Any = "float32"
    weights: Any = "float32"
    also: tuple[Runtime, ...] = ("torchscript",)
    filter_features: tuple[str, ...] | None = None
    raw: bool = True  # whether the catalogue holds the items as they came


def raw_rows(schema: Schema, side: Side, count: int, random: np.random.Generator) -> Any:
    """-> dense [B, F_dense] and categorical [B, F_cat] as on the wire: some values are missing,
    some unknown to the vocabulary, and some bags longer than what is read of them."""
    dense = random.lognormal(1, 1, (count, schema.dense_width(side))).astype(np.float32)
    dense[random.random(dense.shape) < 0.1] = np.nan
    categorical = np.full((count, schema.wire_width(side)), b"", object)
    for column, feature in enumerate(schema.ids(side)):
        for row in range(count):
            members = random.integers(feature.length + 2) if feature.multivalued else 1
            words = random.integers(-1, WORDS + 1, members)  # -1 is missing, the last unknown
            named = schema.owner(feature)
            categorical[row, column] = b"|".join(_word(named, word) for word in words)
    return dense, categorical


def _word(feature: Feature, code: int) -> bytes:
    return b"" if code < 0 else f"{feature.name}-{code}".encode()


def table_of(schema: Schema, side: Side, dense: Any, categorical: Any) -> pa.Table:
    columns = {f.name: dense[:, i] for i, f in enumerate(schema.dense(side))}
    columns |= {
        f.name: [value.decode() for value in categorical[:, i]]
        for i, f in enumerate(schema.ids(side))
    }
    return pa.table(columns)


def string_id(item: int) -> str:
    """The id of an item where ids are strings, by the integer that it otherwise has."""
    return f"Größe-{item}"


def spread(scorer: torch.nn.Module) -> None:
    """Draw the embeddings wide enough that scores differ; a fresh table is nearly zero."""
    for module in scorer.modules():
        if isinstance(module, Embeddings):
            torch.nn.init.normal_(module.table.weight, std=0.5)


def write_checkpoints(plan: Plan, folder: Path) -> tuple[Any, Any]:
    """Everything that `python -m export` reads. Returns the raw users."""
    random = np.random.default_rng(plan.seed)
    words = {f.name: [_word(f, code) for code in range(WORDS)] for f in plan.schema.features}
    encoder = Encoder.fit(plan.schema, words)
    schema = encoder.schema
    folder.mkdir()
    encoder.save(folder)
    items = table_of(schema, "item", *raw_rows(schema, "item", plan.items, random))
    dense, ids = encoder.encode_table("item", items)
    item_ids: Any = FIRST_ITEM_ID + ITEM_ID_STEP * np.arange(plan.items)
    if schema.string_ids:
        item_ids = [string_id(item) for item in item_ids]
    lists = {"dense": fixed_size_list(dense), "ids": fixed_size_list(ids.astype(np.int32))}
    raw = {n: items[n] for n in items.column_names} if plan.raw else {}
    pq.write_table(pa.table({"item_id": item_ids, **raw, **lists}), folder / "catalogue.parquet")
    users = raw_rows(schema, "user", plan.users, random)
    table = table_of(schema, "user", *users)
    pq.write_table(table, folder / "users.parquet")
    lines = (json.dumps(user) + "\n" for user in bundle.as_sent(schema, table))
    (folder / "users.jsonl").write_text("".join(lines))
    torch.manual_seed(plan.seed)
    for stage, (model, size) in plan.models.items():
        sizes = preset(model, size)
        scorer = build_model(model, sizes, schema)
        spread(scorer)
        description = {"model": model, "config": sizes, "schema_hash": schema.hash, "metrics": {}}
        checkpoint.save(folder / stage, scorer, description)
    _write_labels(folder, schema, encoder.encode_table("user", table), (dense, ids), random)
    return users


def _write_labels(
    folder: Path, schema: Schema, users: Any, items: Any, random: np.random.Generator
) -> None:
    """Held-out clicks, drawn as probably as the ranker thinks they are."""
    user = random.integers(len(users[0]), size=LABELS)
    item = random.integers(len(items[0]), size=LABELS)
    ranker = checkpoint.load(folder / "rank", schema)
    rows = (torch.from_numpy(x[i]) for side, i in ((users, user), (items, item)) for x in side)
    with torch.inference_mode():
        probability = torch.sigmoid(ranker.score_rows(*rows)).numpy()
    label = random.random(LABELS) < probability
    bundle.write_held_out(folder, users[0][user], users[1][user], item, label)


def export_cascade(plan: Plan, folder: Path) -> Cascade:
    """Draw a cascade and export it."""
    dense, categorical = write_checkpoints(plan, folder / "checkpoints")
    build = Build(
        checkpoints=folder / "checkpoints",
        repository=folder / "repository",
        sizes=plan.sizes,
        serving=plan.serving,
        product=plan.product,
        index=plan.index,
        state=plan.state,
        weights=plan.weights,
        filter_features=plan.filter_features,
        also=plan.also,
        measure_batching=False,
    )
    write_release(build)
    return Cascade(
        build.checkpoints,
        build.repository,
        Encoder.load(build.checkpoints).schema,
        dense,
        categorical,
        plan.sizes,
        plan.serving,
    )


# A user of every kind of feature, an item without numbers.
BAGS = Schema(
    "bags",
    (
        Feature("age", "user", "dense", "identity"),
        Feature("visits", "user", "dense", "log1p"),
        Feature("city", "user", "categorical", "vocabulary"),
        Feature("agent", "user", "categorical", "hash", buckets=9),
        Feature("history", "user", "bag", "vocabulary", length=4),
        Feature("tags", "user", "bag", "hash", length=2, buckets=9),
        Feature("genres", "item", "bag", "vocabulary", length=3),
        Feature("brand", "item", "categorical", "vocabulary"),
        Feature("shop", "item", "categorical", "vocabulary"),
    ),
)
SHOP = Schema(  # has what every registered model reads
    "shop",
    (
        Feature("age", "user", "dense", "log1p"),
        Feature("city", "user", "categorical", "vocabulary"),
        Feature("bought", "user", "sequence", "vocabulary", 5, shares="product"),
        Feature("price", "item", "dense", "log1p"),
        Feature("product", "item", "categorical", "vocabulary"),
        Feature("tags", "item", "bag", "vocabulary", length=3),
    ),
)
PLAIN = Schema(
    "categories alone",
    (
        Feature("city", "user", "categorical", "vocabulary"),
        Feature("history", "user", "bag", "vocabulary", length=4),
        *(Feature(f"property {i}", "item", "categorical", "vocabulary") for i in range(5)),
    ),
)
