"""Filters: are the answers right, and what does it cost to leave out what a user has seen?

Right is the ranker's own order of the whole catalogue without the items that are filtered out. To
compare with it, a small cascade is exported whose candidates and survivors cover its catalogue.

The cost is measured at a catalogue of its usual sizes, through the server: requests with filters
and without take turns, of one user after the other. The 500 excluded items are the best of the
user's own candidates, so that every one of them has to be replaced.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade.client import Recommendation, Recommender
from cascade.config import Serving
from cascade.encoding import FIRST, Encoder
from cascade.server.launcher import Server
from cascade.spec import DENY_LIST, RANK
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from export.build import read_catalogue
from perf.artifacts import Artifacts, Wish, make
from perf.table import number, table
from tests.resilience import diversity
from tests.resilience.stock import QUICK, Stock

ITEMS, CASES, ROUNDS = 400, 1000, 10
SLACK = 1e-4  # the models are served by another runtime than the reference uses
EXCLUDED, USERS = 500, 48


def run(work: Path, stock: Stock) -> dict[str, float]:
    """`filters_wrong`: answers of 1,000 that are not the filtered order; `exclude_p50_ratio`:
    median latency with 500 excluded items over that without. A thorough stock adds what
    `diversity.compare` finds, which takes another export.
    """
    covering = ("--candidates", str(ITEMS), "--survivors", str(ITEMS))
    small = make(Wish(ITEMS, "tiny", export=(*QUICK, "--index", "flat", *covering)), work / "order")
    wrong = count_wrong(small)
    made, thorough = stock.fused, stock.thorough
    times_ms = measure(made, requests=1000 if thorough else 250)
    plain_ms = float(np.median(times_ms["no filter"]))
    rows = [
        [name, *(number(float(np.percentile(ms, p))) for p in (50, 99)), number(p50 / plain_ms)]
        for name, ms in times_ms.items()
        for p50 in [float(np.median(ms))]
    ]
    print(f"\n{wrong} of {CASES} random cases differ from the ranker's order, filtered\n")
    print(table([f"{made.items:,} items", "p50 ms", "p99 ms", "p50 over no filter"], rows))
    ratio = float(np.median(times_ms[f"exclude {EXCLUDED}"])) / plain_ms
    diverse = diversity.compare(made, work / "diverse", QUICK) if thorough else {}
    return {"filters_wrong": float(wrong), "exclude_p50_ratio": ratio, **diverse}


@dataclass(frozen=True)
class Items:
    """The items of a fixture: ids [N], and the values of its features as ids [N, F]."""

    ids: Any
    values: Any
    features: tuple[str, ...]
    encoder: Encoder

    @classmethod
    def of(cls, checkpoints: Path) -> Items:
        encoder, found = Encoder.load(checkpoints), read_catalogue(checkpoints)
        names = tuple(feature.name for feature in encoder.schema.ids("item"))
        return cls(found.item_ids, found.ids, names, encoder)

    def draw(self, random: np.random.Generator) -> tuple[bytes, bytes, Any]:
        """Filters as they are sent, and what they leave: bool [N]."""
        left = np.ones(len(self.ids), bool)
        excluded = random.permutation(len(self.ids))[: random.choice([0, 5, 200, len(self.ids)])]
        left[excluded] = False
        allow: dict[str, list[str]] = {}
        for column in random.permutation(len(self.features))[: random.integers(3)]:
            wanted = np.unique(random.choice(self.values[:, column], random.choice([1, 5, 100])))
            left &= np.isin(self.values[:, column], wanted)
            feature = self.encoder.schema.ids("item")[column]
            known = self.encoder.vocabulary(feature)
            allow[feature.name] = [known[value - FIRST].decode() for value in wanted]
        packed = self.ids[excluded].astype("<i8").tobytes()
        return packed, json.dumps(allow).encode() if allow else b"", left


def count_wrong(made: Artifacts) -> int:
    """Ask the stages in this process; one deny list after the other."""
    items, random = Items.of(made.checkpoints), np.random.default_rng(0)
    users = made.users()
    scores = reference(made, users.dense[:USERS], users.categorical[:USERS])
    wrong = 0
    path = made.repository / DENY_LIST
    for turn in range(ROUNDS):
        denied = random.random(len(items.ids)) < turn / (2 * ROUNDS)
        path.write_text("".join(f"{item}\n" for item in items.ids[denied]))
        pipeline = Pipeline.load(made.repository, serving=Serving(threads=1))
        some = random.integers(USERS, size=CASES // ROUNDS)
        drawn = [items.draw(random) for _ in some]
        filters = np.array([(exclude, allow) for exclude, allow, _ in drawn], object)
        found = pipeline(users.dense[some], users.categorical[some], filters[:, :1], filters[:, 1:])
        for row, (user, (_, _, left)) in enumerate(zip(some, drawn, strict=True)):
            right = _right(items.ids, scores[user], left & ~denied, found[0][row], found[1][row])
            wrong += not right
    path.unlink()
    return wrong


def reference(made: Artifacts, dense: Any, categorical: Any) -> Any:
    """[B, N]: the click probability of every user and item, from the ranker's three methods."""
    pipeline = Pipeline.load(made.repository, serving=Serving(threads=1))
    users = pipeline.retrieve(dense, categorical)[:2]
    ranker = checkpoint.load(made.checkpoints / RANK, pipeline.schema)
    items = read_catalogue(made.checkpoints)
    with torch.inference_mode():
        states = ranker.item(torch.from_numpy(items.dense), torch.from_numpy(items.ids))
        user = ranker.user(*map(torch.from_numpy, users))
        logits = ranker.cross(user, states.expand(len(user), -1, -1))
        return torch.sigmoid(logits).numpy()


def _right(ids: Any, scores: Any, left: Any, found: Any, found_scores: Any) -> bool:
    """Whether an answer holds the best that are left, each once; equal scores may stand in."""
    best = np.sort(scores[left])[::-1][: len(found)]
    real = found >= 0
    mine = np.flatnonzero(np.isin(ids, found[real]))
    return bool(
        real.sum() == len(best) == len(mine)
        and left[mine].all()
        and np.allclose(found_scores[real], best, rtol=0, atol=SLACK)
    )


def measure(made: Artifacts, requests: int) -> dict[str, list[float]]:
    """Milliseconds of every request, by what it asked for."""
    users = [json.loads(line) for line in made.users_file.open()][:USERS]
    sent = made.users()
    pipeline = Pipeline.load(made.repository, serving=Serving(threads=1))
    rows = pipeline.retrieve(sent.dense[:USERS], sent.categorical[:USERS])[2]
    seen = [pipeline.item_ids[mine[:EXCLUDED]].tolist() for mine in rows]
    items = Items.of(made.checkpoints)
    name, values = items.features[0], items.values[:, 0]
    common = np.bincount(values).argmax()
    feature = items.encoder.schema.ids("item")[0]
    allow = {name: [items.encoder.vocabulary(feature)[common - FIRST].decode()]}
    share = f"allow {np.mean(values == common):.0%}"
    del pipeline
    with Server(made.repository) as server, Recommender(server.url, deadline_s=30) as client:
        ways: dict[str, Callable[[int], Recommendation]] = {
            "no filter": lambda user: client.recommend(users[user]),
            f"exclude {EXCLUDED}": lambda user: client.recommend(users[user], exclude=seen[user]),
            share: lambda user: client.recommend(users[user], allow=allow),
        }
        times_ms: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(-20, requests):
            for place, (way, ask) in enumerate(ways.items()):
                start = time.perf_counter_ns()
                ask((turn + 7 * place) % len(users))
                if turn >= 0:
                    times_ms[way].append((time.perf_counter_ns() - start) / 1e6)
    return times_ms
