"""Filters: are the answers right, and what does it cost to leave out what a user has seen?

A right answer is the ranker's own order of the whole catalogue without the items that are filtered
out. The comparison takes a small cascade whose candidates and survivors cover its catalogue.

The cost is measured at a catalogue of its usual sizes, through the server: requests with filters
and without take turns, of one user after the other. The 500 excluded items are the best of the
user's own candidates, so that each of them has to be replaced.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cascade.client import Recommendation, Recommender
from cascade.config import Serving
from cascade.encoding import FIRST, Encoder
from cascade.server.launcher import Server
from cascade.spec import DENY_LIST, RANK, Sizes
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from export.context import read_catalogue
from perf.harness.artifacts import Artifacts
from perf.harness.table import number
from tests.cascades import Cascade
from tests.filter_cases import Shop, column, draw
from tests.resilience.claims import Record

ITEMS, CASES, ROUNDS = 400, 1000, 10
SLACK = 1e-4  # the models are served by another runtime than the reference uses
EXCLUDED, USERS = 500, 48


def test_answers_are_the_filtered_order(
    make_cascade: Callable[..., Cascade], record: Record
) -> None:
    """Random filters for the stages in this process, under one deny list after the other."""
    covering = Sizes(candidates=ITEMS, survivors=ITEMS)
    made = make_cascade(items=ITEMS, users=USERS, index="flat", sizes=covering)
    shop, random = Shop.of(made.checkpoints, made.schema), np.random.default_rng(0)
    scores = _reference(made)
    wrong = 0
    for turn in range(ROUNDS):
        denied = random.random(ITEMS) < turn / (2 * ROUNDS)
        deny_list = "".join(f"{item}\n" for item in shop.ids[denied])
        (made.repository / DENY_LIST).write_text(deny_list)
        users = random.integers(USERS, size=CASES // ROUNDS)
        cases = [draw(shop, random) for _ in users]
        filters = map(column, map(list, zip(*(case.wire for case in cases), strict=True)))
        found = made.pipeline()(made.dense[users], made.categorical[users], *filters)
        for user, case, ids, got in zip(users, cases, *found, strict=True):
            left = np.isin(shop.ids, [*shop.left(case, {*shop.ids[denied].tolist()})])
            wrong += not answer_is_right(shop.ids, scores[user], left, ids, got)
    record(filters_wrong=float(wrong))


def _reference(made: Cascade) -> Any:
    """[B, N]: the click probability of every user and item, from the ranker's three methods."""
    users = made.pipeline().retrieve(made.dense, made.categorical)[:2]
    ranker = checkpoint.load(made.checkpoints / RANK, made.schema)
    items = read_catalogue(made.checkpoints)
    with torch.inference_mode():
        states = ranker.item(torch.from_numpy(items.dense), torch.from_numpy(items.ids))
        user = ranker.user(*map(torch.from_numpy, users))
        return torch.sigmoid(ranker.cross(user, states.expand(len(user), -1, -1))).numpy()


def answer_is_right(ids: Any, scores: Any, left: Any, found: Any, found_scores: Any) -> bool:
    """Whether an answer holds the best items that are left, each once; an item of equal score may
    stand in for another.

    Args:
        ids, scores, left: of the catalogue, [N] each; `left` is False for what is filtered out.
        found, found_scores: the answer, [R] each; the id -1 fills up a short answer.
    """
    best = np.sort(scores[left])[::-1][: len(found)]
    real = found >= 0
    mine = np.flatnonzero(np.isin(ids, found[real]))
    return bool(
        real.sum() == len(best) == len(mine)
        and left[mine].all()
        and np.allclose(found_scores[real], best, rtol=0, atol=SLACK)
    )


def test_excluding_what_a_user_has_seen_costs_little(
    fused: Artifacts, thorough: bool, record: Record
) -> None:
    users = [json.loads(line) for line in fused.users_file.open()][:USERS]
    seen, (allow, share) = _best_candidates(fused), _most_common_value(fused)
    with Server(fused.repository) as server, Recommender(server.url, deadline_s=30) as client:
        ways: dict[str, Callable[[int], Recommendation]] = {
            "no filter": lambda user: client.recommend(users[user]),
            f"exclude {EXCLUDED}": lambda user: client.recommend(users[user], exclude=seen[user]),
            f"allow {share:.0%}": lambda user: client.recommend(users[user], allow=allow),
        }
        times_ms: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(-20, 1000 if thorough else 250):
            for place, (way, ask) in enumerate(ways.items()):
                start = time.perf_counter_ns()
                ask((turn + 7 * place) % len(users))
                if turn >= 0:
                    times_ms[way].append((time.perf_counter_ns() - start) / 1e6)
    p50_ms = {way: float(np.median(ms)) for way, ms in times_ms.items()}
    plain_ms, exclude_ms, _ = p50_ms.values()
    rows = [
        [way, number(p50), number(float(np.percentile(times_ms[way], 99))), number(p50 / plain_ms)]
        for way, p50 in p50_ms.items()
    ]
    record.table([f"{fused.items:,} items", "p50 ms", "p99 ms", "p50 over no filter"], rows)
    record(exclude_p50_ratio=exclude_ms / plain_ms)


def _best_candidates(made: Artifacts) -> list[list[int]]:
    """By user, the ids of the candidates to exclude."""
    sent = made.users()
    pipeline = Pipeline.load(made.repository, serving=Serving(threads=1))
    rows = pipeline.retrieve(sent.dense[:USERS], sent.categorical[:USERS])[2]
    return [pipeline.item_ids[mine[:EXCLUDED]].tolist() for mine in rows]


def _most_common_value(made: Artifacts) -> tuple[dict[str, list[str]], float]:
    """A filter by the first item feature, and the share of items that it allows."""
    encoder = Encoder.load(made.checkpoints)
    feature = encoder.schema.ids("item")[0]
    values = read_catalogue(made.checkpoints).ids[:, 0]
    common = int(np.bincount(values).argmax())
    word = [*encoder.vocabulary(feature)][common - FIRST].decode()
    return {feature.name: [word]}, float(np.mean(values == common))
