"""What a cascade finds at every setting of a plan: of the ranker's own best, and of held-out
positives.

The stages are asked once for each retrieval, with the most survivors that are planned for it. A
preranker hands its survivors on best first, and the ranker orders them one by one: so the list of
fewer survivors is the list of more of them without the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cascade.evaluation import metrics
from cascade.evaluation.brute_force import ITEMS_PER_CHUNK, Encoded
from cascade.index.topk import share_kept
from cascade.training.tasks import PAIRS
from export.planning.grid import Setting
from export.planning.opened import Opened

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
USERS_AT_ONCE = 32
NDCG = 10


class Answers(NamedTuple):
    """Rows of the release [B, R], best first, -1 where there are fewer, and the ranker's scores of
    them [B, R], -inf at a pad."""

    rows: Ids
    scores: Floats


def retrieval(setting: Setting) -> tuple[int, int]:
    """What the first stage depends on, in an order."""
    return setting.candidates, setting.effort or 0


def answers(
    opened: Opened, settings: Sequence[Setting], users: Encoded, results: int
) -> dict[Setting, Answers]:
    """What encoded users [B] are answered at every setting, `results` items each."""
    shape = len(users), results
    found = {s: Answers(np.empty(shape, np.int64), np.empty(shape, np.float32)) for s in settings}
    tower = opened.tower()
    parts = [slice(at, at + USERS_AT_ONCE) for at in range(0, len(users), USERS_AT_ONCE)]
    queries = [tower(users.dense[part], users.ids[part])[0] for part in parts]
    groups = [[*group] for _, group in groupby(sorted(settings, key=retrieval), retrieval)]
    for group in tqdm(groups, desc="answers", unit="retrieval"):
        widest = max(group, key=lambda s: s.survivors)
        retrieve, prerank = opened.set_effort(widest), opened.prerank(widest.survivors)
        sorting = opened.sorting(widest.survivors)
        for part, query in zip(parts, queries, strict=True):
            user = users.dense[part], users.ids[part]
            candidates = retrieve.index.search(query, widest.candidates)
            survivors = prerank(*user, candidates)[0]
            ranked, scores = sorting(*user, survivors)
            place = _places_among(survivors, ranked)
            for setting in group:
                order = np.argsort(place >= setting.survivors, axis=1, kind="stable")[:, :results]
                found[setting].rows[part] = np.take_along_axis(ranked, order, 1)
                found[setting].scores[part] = np.take_along_axis(scores, order, 1)
    return found


def _places_among(survivors: Ids, ranked: Ids) -> Ids:
    """Where each of the ranked items [B, S] stands among the survivors [B, S], the same items."""
    place = np.empty_like(ranked)
    order, wanted = (np.argsort(rows, axis=1, kind="stable") for rows in (survivors, ranked))
    np.put_along_axis(place, wanted, order, 1)
    return place


def best_of_all(
    opened: Opened,
    users: Encoded,
    items: int,
    results: int,
    seconds: float = math.inf,
    least: int = 0,
) -> Floats:
    """The ranker's best scores over the whole catalogue, [b, results], of the first b users: all of
    them, or as many as fit in so many seconds, and the `least` in any case. Memory is bounded by a
    chunk of the catalogue."""
    rank, best = opened.sorting(results), []
    step = max(1, PAIRS // min(items, ITEMS_PER_CHUNK))
    chunks = [
        np.arange(start, min(start + ITEMS_PER_CHUNK, items))
        for start in range(0, items, ITEMS_PER_CHUNK)
    ]
    began = time.monotonic()
    with tqdm(desc="full order", total=len(users) * items, unit=" pairs", unit_scale=True) as bar:
        for at in range(0, len(users), step):
            if at >= max(1, least) and time.monotonic() - began > seconds:
                break
            user = users.dense[at : at + step], users.ids[at : at + step]
            found = []
            for chunk in chunks:
                rows = np.pad(chunk, (0, max(0, results - len(chunk))), constant_values=-1)
                found.append(rank(*user, np.tile(rows, (len(user[0]), 1)))[1])
                bar.update(len(user[0]) * len(chunk))
            best.append(-np.sort(-np.concatenate(found, axis=1), axis=1)[:, :results])
    return np.concatenate(best)


def kept(found: Mapping[Setting, Answers], best: Floats) -> npt.NDArray[np.float64]:
    """Of each user's best items, by their scores [B, R], the share in the answers at every setting,
    [B, S]."""
    k, users = best.shape[1], range(len(best))
    shares = [[share_kept(a.scores[[u]], best[[u]], k) for a in found.values()] for u in users]
    return np.array(shares, np.float64)


def ndcg(found: Mapping[Setting, Answers], positives: Ids) -> list[float]:
    """NDCG@10 of held-out positives [B], rows of the release, mean over users, at every setting."""
    return [metrics.ndcg_at(answer.rows, positives[:, None], NDCG) for answer in found.values()]
