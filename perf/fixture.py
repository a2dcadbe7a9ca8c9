"""`python -m perf.fixture --items 1000000 --out DIR`: checkpoints of a chosen size to measure with.

DIR holds what `python -m cascade.training` leaves. Speed depends on the sizes of the models, which
are real ones, less on quality: each is trained for `STEPS` batches of `cascade.data.synthetic`. Of
its items, which are independent of each other, no index could make use, so an item takes most of
its values from one of `CLUSTERS_PER_ROOT` * sqrt(N) prototypes. The held-out clicks are drawn from
the ranker's own probabilities, so that an export can show what it does to the AUC.

`--ranker paper` hashes eight features into tables as large as Criteo Kaggle's in the DLRM paper:
33.7 million rows, 540 million parameters in the ranker. The items' share of them ends in the item
states; a server maps the 12.3 million rows of the users' features.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from cascade.data.criteo import SCHEMA
from cascade.data.parts import fixed_size_list, regrouped, write_file
from cascade.data.synthetic import Synthetic
from cascade.encoding import Encoder
from cascade.errors import run
from cascade.models import build, preset
from cascade.models.scorer import Scorer
from cascade.schema import Feature, Schema
from cascade.spec import PRERANK, RANK, RETRIEVE
from cascade.training import bundle, checkpoint
from cascade.training.optimization.hyperparameters import Hyperparameters
from cascade.training.optimization.optimizers import make_optimizers

RANKERS = ("criteo", "paper", "rmc2", "rmc3", "small", "tiny")
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
# Both take the tables' gradients sparse: a step must not touch all rows of a large table.
RANKING = Hyperparameters(optimizer="adagrad", lr=1e-2, embedding_lr=0.3)
RETRIEVAL = Hyperparameters(optimizer="adam", lr=1e-3, embedding_lr=5e-2)
Loss = Callable[[Scorer, list[Tensor], Tensor], Tensor]


def write(
    folder: Path, items: int, ranker: str = "criteo", users: int = USERS, seed: int = 0
) -> None:
    """Write a folder of checkpoints: the ranker is a preset of the DLRM, or `paper`: `criteo` over
    large tables; users.jsonl has `users` lines, at most `HELD_OUT_ROWS`."""
    folder.mkdir(parents=True, exist_ok=True)
    world = Synthetic(rows=14 * HELD_OUT_ROWS, items=items, seed=seed)
    shown = next(world.chunks("train")).slice(0, ROWS)
    held_out = pa.concat_tables(world.chunks("test"))
    catalogue = clustered(world.catalogue(), seed)
    encoder = fit_encoder(ranker == "paper", shown, catalogue)
    schema = encoder.schema
    encoder.save(folder)
    asked = held_out.slice(0, users).select([feature.name for feature in schema.side("user")])
    pq.write_table(asked, folder / "users.parquet")
    lines = (json.dumps(user) + "\n" for user in bundle.as_sent(schema, asked))
    (folder / "users.jsonl").write_text("".join(lines))
    dense, ids = encoder.encode_table("item", catalogue)
    (folder / "catalogue.parquet").unlink(missing_ok=True)  # may be a hard link
    made = {"dense": fixed_size_list(dense), "ids": fixed_size_list(ids.astype(np.int32))}
    encoded = pa.table({"item_id": catalogue["item_id"], **made})
    write_file(folder / "catalogue.parquet", regrouped([encoded]))

    labels = shown["label"].to_numpy()
    rows = [*encoder.encode_table("user", shown), *encoder.encode_table("item", shown), labels]
    clicks = [column[labels == 1] for column in rows]
    _train("two_tower:default", schema, clicks, in_batch_loss, seed, folder / RETRIEVE)
    _train("dlrm:small", schema, rows, click_loss, seed, folder / PRERANK)
    size = "criteo" if ranker == "paper" else ranker
    scorer = _train(f"dlrm:{size}", schema, rows, click_loss, seed, folder / RANK)
    item = held_out["item_id"].to_numpy()
    columns = (*encoder.encode_table("user", held_out), dense[item], ids[item])
    with torch.inference_mode():
        chances = torch.sigmoid(scorer(*map(torch.from_numpy, columns))).numpy()
    clicked = np.random.default_rng((seed, 1)).random(len(item)) < chances
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


def fit_encoder(paper: bool, shown: pa.Table, catalogue: pa.Table) -> Encoder:
    """Vocabularies of the most frequent values; large tables for hashed ones."""

    def sized(feature: Feature) -> Feature:
        if paper and feature.name in PAPER_BUCKETS:
            feature = replace(feature, encoding="hash", buckets=PAPER_BUCKETS[feature.name])
        return replace(feature, min_count=1)

    def frequent(values: pa.ChunkedArray) -> list[bytes]:
        found = pa.table(values.combine_chunks().value_counts().flatten(), ["value", "count"])
        longest = found.sort_by([("count", "descending")])["value"][: LONGEST_VOCABULARY + 1]
        return [value.encode() for value in longest.to_pylist() if value][:LONGEST_VOCABULARY]

    schema = Schema(SCHEMA.name, tuple(map(sized, SCHEMA.features)))
    vocabularies = {
        feature.name: frequent((shown if feature.side == "user" else catalogue)[feature.name])
        for feature in schema.features
        if feature.encoding == "vocabulary"
    }
    return Encoder.fit(schema, vocabularies)


def in_batch_loss(model: Scorer, columns: list[Tensor], labels: Tensor) -> Tensor:
    """Softmax over the items of the batch: user i clicked item i."""
    user, item = model.user(*columns[:2]), model.item(*columns[2:])
    return nn.functional.cross_entropy(user @ item.T / TEMPERATURE, torch.arange(len(user)))


def click_loss(model: Scorer, columns: list[Tensor], labels: Tensor) -> Tensor:
    """Binary cross-entropy of the clicks."""
    return nn.functional.binary_cross_entropy_with_logits(model(*columns), labels)


def _train(
    name: str, schema: Schema, columns: list[Any], loss: Loss, seed: int, folder: Path
) -> Scorer:
    """Train `model:preset` for a few random batches of the columns and save it: in the order of a
    `Scorer`, dense float32 [B, F] and ids int64 [B, C] of user and item; and the labels [B]."""
    model, _, size = name.partition(":")
    torch.manual_seed(seed)
    warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
    scorer = build(model, preset(model, size), schema)
    hyper = RETRIEVAL if loss is in_batch_loss else RANKING
    optimizers, random = make_optimizers(scorer, hyper), np.random.default_rng(seed)
    for _ in range(STEPS):
        rows = random.integers(len(columns[0]), size=BATCH)
        batch = [torch.from_numpy(column[rows]) for column in columns]
        torch.autograd.backward(loss(scorer, batch[:-1], batch[-1]))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    made_from = {"model": model, "config": preset(model, size), "schema_hash": schema.hash}
    checkpoint.save(folder, scorer, {**made_from, "metrics": {}})
    return scorer


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.fixture", description=__doc__)
    add = parser.add_argument
    add("--items", type=int, required=True)
    add("--out", type=Path, required=True, help="folder of checkpoints to write")
    add("--ranker", choices=RANKERS, default="criteo")
    add("--users", type=int, default=USERS, help="in users.jsonl [%(default)s]")
    add("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.items < LEAST_ITEMS:
        parser.error(f"--items {args.items}: a fixture has at least {LEAST_ITEMS} items")
    if not 0 < args.users <= HELD_OUT_ROWS:
        parser.error(f"--users {args.users}: a fixture has 1 to {HELD_OUT_ROWS:,} users")
    write(args.out, args.items, args.ranker, args.users, args.seed)
    print(f"wrote {args.items:,} items, {args.users:,} users, ranker {args.ranker}: {args.out}")


if __name__ == "__main__":
    run(main, to_end=True)
