"""`python -m perf.fixture --items 1000000 --out DIR`: checkpoints of a chosen size to measure with.

DIR holds what `python -m cascade.training` leaves, so `python -m export` reads it. Speed depends on
the sizes of the models, which are real ones, and on the memory that a request touches, less on
quality: each model is trained for `STEPS` batches of `cascade.data.synthetic` only. The items of
that world are independent of each other, which no index can make use of. A catalogue is not like
that, so an item here takes most of its values from one of `CLUSTERS_PER_ROOT` * sqrt(N) prototypes.
The held-out clicks are drawn from the ranker's own probabilities, so that an export can show what
it does to the AUC.

`--ranker paper` hashes eight features into tables as large as Criteo Kaggle's in the DLRM paper:
33.7 million rows, 540 million parameters in the ranker. The items' share of them ends in the item
states; a server maps the 12.3 million rows of the users' features.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from cascade.data.criteo import SCHEMA
from cascade.data.parts import ROW_GROUP, fixed_size_list
from cascade.data.synthetic import Synthetic
from cascade.encoding import Encoder
from cascade.models import build, preset
from cascade.models.scorer import Scorer
from cascade.schema import Feature, Schema
from cascade.spec import PRERANK, RANK, RETRIEVE
from cascade.training import bundle, checkpoint

RANKERS = ("criteo", "paper", "rmc2", "rmc3", "small", "tiny")
RETRIEVER, PRERANKER = "two_tower:default", "dlrm:small"
# Values of Criteo Kaggle's large features, as the DLRM paper's code prints them.
PAPER_BUCKETS = {
    **{"C3": 10_131_227, "C4": 2_202_608, "C10": 93_145, "C12": 8_351_593},
    **{"C16": 5_461_306, "C21": 7_046_547, "C24": 286_181, "C26": 142_572},
}
CLUSTERS_PER_ROOT = 1.5
FOREIGN = 0.15  # share of an item's values that are not its prototype's
LONGEST_VOCABULARY = 10_000  # a server keeps vocabularies in memory
USERS, HELD_OUT_ROWS, LEAST_ITEMS = 4096, 20_000, 100
ROWS, STEPS, BATCH, TEMPERATURE = 65_536, 80, 384, 0.1
LEARNING_RATE, TABLE_LEARNING_RATE = 1e-3, 0.3
Loss = Callable[[Scorer, list[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """What to make.

    Args:
        items: rows of the catalogue.
        ranker: a preset of the DLRM, or `paper`: the preset `criteo` over large tables.
        users: lines of users.jsonl, at most `HELD_OUT_ROWS`.
    """

    items: int
    ranker: str = "criteo"
    users: int = USERS
    seed: int = 0


@dataclass(frozen=True)
class Impressions:
    """Encoded rows: dense float32 [B, F] and ids int64 [B, C] of user and item, labels [B]."""

    columns: tuple[npt.NDArray[Any], ...]
    labels: npt.NDArray[np.float32]

    def clicks(self) -> Impressions:
        """The rows that were clicked."""
        clicked = self.labels == 1
        return Impressions(tuple(c[clicked] for c in self.columns), self.labels[clicked])

    def batches(self, steps: int, seed: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Random batches in the order that a `Scorer` takes, and their labels."""
        random = np.random.default_rng(seed)
        for _ in range(steps):
            rows = random.integers(len(self.labels), size=BATCH)
            columns = [torch.from_numpy(column[rows]) for column in self.columns]
            yield columns, torch.from_numpy(self.labels[rows])


def write(plan: Plan, folder: Path) -> None:
    """Write a folder of checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    world = Synthetic(rows=14 * HELD_OUT_ROWS, items=plan.items, seed=plan.seed)
    shown, held_out = (
        next(world.chunks("train")).slice(0, ROWS),
        pa.concat_tables(world.chunks("test")),
    )
    catalogue = clustered(world.catalogue(), plan.seed)
    encoder = _fit_encoder(plan.ranker == "paper", shown, catalogue)
    encoder.save(folder)
    _write_users(encoder.schema, held_out.slice(0, plan.users), folder)
    items = encoder.encode_table("item", catalogue)
    _write_catalogue(catalogue["item_id"], *items, folder)
    users = encoder.encode_table("user", shown)
    rows = Impressions((*users, *encoder.encode_table("item", shown)), shown["label"].to_numpy())
    _train(RETRIEVER, encoder.schema, rows.clicks(), in_batch_loss, plan.seed, folder / RETRIEVE)
    _train(PRERANKER, encoder.schema, rows, click_loss, plan.seed, folder / PRERANK)
    name = "dlrm:criteo" if plan.ranker == "paper" else f"dlrm:{plan.ranker}"
    ranker = _train(name, encoder.schema, rows, click_loss, plan.seed, folder / RANK)
    item = held_out["item_id"].to_numpy()
    columns = (*encoder.encode_table("user", held_out), *(part[item] for part in items))
    with torch.inference_mode():
        chances = torch.sigmoid(ranker(*map(torch.from_numpy, columns))).numpy()
    clicked = np.random.default_rng((plan.seed, 1)).random(len(item)) < chances
    bundle.write_held_out(folder, columns[0], columns[1], item, clicked)


def clustered(catalogue: pa.Table, seed: int) -> pa.Table:
    """The same columns; every item has most of its values in common with its prototype."""
    random, count = np.random.default_rng((seed, 0)), catalogue.num_rows
    prototypes = random.integers(count, size=max(4, round(CLUSTERS_PER_ROOT * count**0.5)))
    # The low numbers far more often: large clusters and small ones.
    own = prototypes[(len(prototypes) * random.random(count) ** 2).astype(np.int64)]
    columns = {"item_id": catalogue["item_id"]}
    for name in catalogue.column_names[1:]:
        rows = np.where(random.random(count) < FOREIGN, np.arange(count), own)
        columns[name] = catalogue[name].take(pa.array(rows))
    return pa.table(columns)


def _fit_encoder(paper: bool, shown: pa.Table, catalogue: pa.Table) -> Encoder:
    """Vocabularies of the most frequent values; large tables for hashed ones."""

    def sized(feature: Feature) -> Feature:
        buckets = PAPER_BUCKETS.get(feature.name) if paper else None
        if feature.kind == "dense" or buckets is None:
            return replace(feature, min_count=1)
        return replace(feature, encoding="hash", buckets=buckets, min_count=1)

    schema = Schema(SCHEMA.name, tuple(map(sized, SCHEMA.features)))
    vocabularies = {
        feature.name: _frequent((shown if feature.side == "user" else catalogue)[feature.name])
        for feature in schema.features
        if feature.encoding == "vocabulary"
    }
    return Encoder.fit(schema, vocabularies)


def _frequent(values: pa.ChunkedArray) -> list[bytes]:
    counts = pc.value_counts(values.combine_chunks())
    order = np.argsort(-counts.field("counts").to_numpy(), kind="stable")
    found = counts.field("values").take(pa.array(order[: LONGEST_VOCABULARY + 1])).to_pylist()
    return [value.encode() for value in found if value][:LONGEST_VOCABULARY]


def _write_users(schema: Schema, table: pa.Table, folder: Path) -> None:
    users = table.select([feature.name for feature in schema.side("user")])
    pq.write_table(users, folder / "users.parquet")
    lines = (json.dumps(user) + "\n" for user in bundle.as_sent(schema, users))
    (folder / "users.jsonl").write_text("".join(lines))


def _write_catalogue(item_ids: pa.ChunkedArray, dense: Any, ids: Any, folder: Path) -> None:
    """The encoded items, as `cascade.data` writes them."""
    path = folder / "catalogue.parquet"
    path.unlink(missing_ok=True)  # another folder may hold a hard link to an earlier one
    columns = {
        "item_id": item_ids,
        "dense": fixed_size_list(dense),
        "ids": fixed_size_list(ids.astype(np.int32)),
    }
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP)


def in_batch_loss(model: Scorer, columns: list[Tensor], labels: Tensor) -> Tensor:
    """Softmax over the items of the batch: user i clicked item i."""
    user, item = model.user(*columns[:2]), model.item(*columns[2:])
    return nn.functional.cross_entropy(user @ item.T / TEMPERATURE, torch.arange(len(user)))


def click_loss(model: Scorer, columns: list[Tensor], labels: Tensor) -> Tensor:
    """Binary cross-entropy of the clicks."""
    return nn.functional.binary_cross_entropy_with_logits(model(*columns), labels)


def _train(
    name: str, schema: Schema, rows: Impressions, loss: Loss, seed: int, folder: Path
) -> Scorer:
    """Train `model:preset` for a few batches and save it. Adagrad takes the tables' gradients as
    they come, sparse: a step must not touch all rows of a large table."""
    model, _, size = name.partition(":")
    config = preset(model, size)
    torch.manual_seed(seed)
    warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
    scorer = build(model, config, schema)
    tables = [m.weight for m in scorer.modules() if isinstance(m, nn.Embedding)]
    others = [p for p in scorer.parameters() if all(p is not table for table in tables)]
    optimizers = (
        torch.optim.Adam(others, lr=LEARNING_RATE),
        torch.optim.Adagrad(tables, lr=TABLE_LEARNING_RATE),
    )
    for columns, labels in rows.batches(STEPS, seed):
        torch.autograd.backward(loss(scorer, columns, labels))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    description = {"model": model, "config": config, "schema_hash": schema.hash, "metrics": {}}
    checkpoint.save(folder, scorer, description)
    return scorer


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.fixture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints to write")
    parser.add_argument("--ranker", choices=RANKERS, default="criteo")
    parser.add_argument("--users", type=int, default=USERS, help="in users.jsonl [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.items < LEAST_ITEMS:
        parser.error(f"--items {args.items}: a fixture has at least {LEAST_ITEMS} items")
    if not 0 < args.users <= HELD_OUT_ROWS:
        parser.error(f"--users {args.users}: a fixture has 1 to {HELD_OUT_ROWS:,} users")
    write(Plan(args.items, args.ranker, args.users, args.seed), args.out)
    print(f"wrote {args.items:,} items, {args.users:,} users, ranker {args.ranker}: {args.out}")


if __name__ == "__main__":
    main()
