"""`python -m perf.fixture --items 1000000 --out DIR`: checkpoints to measure with, not trained.

What it leaves is what `python -m cascade.training` leaves, so `python -m export` reads it. How fast
a cascade is depends on its sizes and on which memory its requests touch, not on how well it
recommends; so the sizes are real ones and the values skewed as real ones are, the items lie in
clusters and the users among them (`fixture_world`), and the models' weights are drawn
(`fixture_models`). Clicks are drawn from the ranker's own probabilities, so that what an export
does to the AUC can be judged.

`--ranker paper` has tables as large as Criteo Kaggle's in the DLRM paper: 33.8 million rows, for
the ranker 540 million parameters. Those of the items end up in item states; what is served is the
12.3 million rows of the users' six features. The other rankers have no table over 10,000 values.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.data.parts import ROW_GROUP, fixed_size_list
from cascade.data.source import DataError
from cascade.encoding import FIRST, Encoder
from cascade.models import preset
from cascade.models.scorer import Scorer
from cascade.schema import Schema, Side
from cascade.spec import PRERANK, RANK, RETRIEVE
from cascade.training import bundle, checkpoint
from perf import fixture_tables, fixture_users
from perf.fixture_models import Drawer, Rows, logits
from perf.fixture_users import Users
from perf.fixture_world import Ids, Values, World, fit, fit_items

RANKERS = {
    **dict.fromkeys(("criteo", "paper"), "criteo"),
    **{name: name for name in ("rmc2", "rmc3", "small", "tiny")},
}
RETRIEVER, PRERANKER = "default", "small"
USERS, HELD_OUT_ROWS = 4096, 20_000
FIRST_ITEM_ID = 1_000_000_000  # an id that is no row number
LEAST_ITEMS = 100


@dataclass(frozen=True)
class Plan:
    """What to draw.

    Args:
        items: N. users: different ones in users.jsonl; fewer where the file has no more.
        ranker: one of `RANKERS`.
        rows: a file in Criteo's format whose users are taken; None: they are made up.
    """

    items: int
    ranker: str = "criteo"
    users: int = USERS
    rows: Path | None = None
    seed: int = 0

    def random(self, part: int) -> np.random.Generator:
        """A stream of its own for every part, so that a change of one leaves the others."""
        return np.random.default_rng((self.seed, part))


def write(plan: Plan, folder: Path) -> None:
    """Write a folder of checkpoints.

    Raises:
        DataError: the file of rows cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sizes = fixture_tables.sizes(plan.ranker == "paper")
    if plan.rows:
        users = fixture_users.read(plan.rows)
    else:
        users = fixture_users.draw(plan.random(0), max(plan.users, HELD_OUT_ROWS), sizes)
    encoder = fixture_tables.fit(sizes, users.seen())
    encoder.save(folder)
    _write_users(encoder.schema, users, plan.users, folder)
    world = World.draw(plan.random(1), plan.items)
    item_features = encoder.schema.ids("item")
    items = world.item_codes(plan.random(2), [sizes[f.name] for f in item_features])
    items += FIRST
    _write_catalogue(encoder.schema, items, folder)
    _write_models(plan, encoder, world, users, items, folder)


def _write_users(schema: Schema, users: Users, count: int, folder: Path) -> None:
    table = bundle.user_table(schema, users.dense[:count], users.categorical[:count])
    pq.write_table(table, folder / "users.parquet")
    with (folder / "users.jsonl").open("w") as file:
        for user in bundle.as_sent(schema, table):
            file.write(json.dumps(user) + "\n")


def _write_catalogue(schema: Schema, ids: Ids, folder: Path) -> None:
    """The encoded items, as `cascade.data` writes them."""
    width = schema.dense_width("item")
    columns = {
        "item_id": FIRST_ITEM_ID + np.arange(len(ids)),
        "dense": fixed_size_list(np.zeros((len(ids), width), np.float32)),
        "ids": fixed_size_list(ids),
    }
    # A file that another folder may be linked to is not written over.
    (folder / "catalogue.parquet").unlink(missing_ok=True)
    pq.write_table(pa.table(columns), folder / "catalogue.parquet", row_group_size=ROW_GROUP)


def _write_models(
    plan: Plan, encoder: Encoder, world: World, users: Users, items: Ids, folder: Path
) -> None:
    """The three models, one in memory at a time, and the clicks."""
    schema, random = encoder.schema, plan.random(3)
    table = bundle.user_table(schema, users.dense, users.categorical)
    dense, ids = encoder.encode_table("user", table)
    places, liked = world.interests(random, len(users))
    user = random.integers(len(users), size=HELD_OUT_ROWS)
    item = _shown(random, world, liked[user])
    no_numbers = np.zeros((len(item), schema.dense_width("item")), np.float32)
    rows = Rows(dense[user], ids[user], no_numbers, items[item])
    values: dict[Side, Values] = {
        "user": fit(ids, places, _cardinalities(schema, "user")),
        "item": fit_items(world, items, _cardinalities(schema, "item")),
    }
    drawer = Drawer(schema, values, plan.seed)
    _save(drawer.two_tower(RETRIEVER, rows), RETRIEVER, schema, folder / RETRIEVE)
    _save(drawer.dlrm(PRERANKER, rows, 0), PRERANKER, schema, folder / PRERANK)
    size = RANKERS[plan.ranker]
    ranker = drawer.dlrm(size, rows, 1)
    chances = 1 / (1 + np.exp(-logits(ranker, rows)))
    clicked = random.random(len(chances)) < chances
    bundle.write_held_out(folder, rows.user_dense, rows.user_ids, item, clicked)
    _save(ranker, size, schema, folder / RANK)


def _shown(random: np.random.Generator, world: World, liked: Ids) -> Ids:
    """Catalogue rows [B] that users were shown: every other one from the cluster that the user
    likes, where it has items, the rest by a skewed popularity."""
    count = len(world.of_item)
    rows = random.permutation(count)[(count * random.random(len(liked)) ** 2).astype(np.int64)]
    by_cluster = np.argsort(world.of_item, kind="stable")
    ends = np.cumsum(np.bincount(world.of_item, minlength=len(world.centres)))
    starts = np.concatenate(([0], ends[:-1]))
    size = ends - starts
    own = starts[liked] + (random.random(len(liked)) * size[liked]).astype(np.int64)
    takes = (size[liked] > 0) & (np.arange(len(liked)) % 2 == 0)
    rows[takes] = by_cluster[own[takes]]
    return rows


def _cardinalities(schema: Schema, side: Side) -> list[int]:
    return [feature.cardinality for feature in schema.ids(side)]


def _save(scorer: Scorer, size: str, schema: Schema, folder: Path) -> None:
    model = "dlrm" if folder.name != RETRIEVE else "two_tower"
    description: dict[str, Any] = {
        "model": model,
        "config": preset(model, size),
        "schema_hash": schema.hash,
        "metrics": {},
        "trained": False,
    }
    checkpoint.save(folder, scorer, description)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.fixture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints to write")
    parser.add_argument("--ranker", choices=RANKERS, default="criteo")
    parser.add_argument("--users", type=int, default=USERS, help="in users.jsonl [%(default)s]")
    parser.add_argument("--rows", type=Path, help="Criteo file whose users to take [made up]")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.items < LEAST_ITEMS:
        parser.error(f"--items {args.items}: a fixture has at least {LEAST_ITEMS} items")
    plan = Plan(args.items, args.ranker, args.users, args.rows, args.seed)
    write(plan, args.out)
    count = sum(1 for _ in (args.out / "users.jsonl").open())
    print(f"wrote {args.items:,} items, {count:,} users and a {args.ranker} ranker to {args.out}")


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(f"error: {error}")
