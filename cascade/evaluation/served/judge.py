"""An exported repository, judged on a held-out table alone: no prepared data and no checkpoint.

The stages are those that the server runs, in this process. Lists: where the positives of users are
after each stage. Rows with labels: the ranker's score of the item in the row, which it gives as it
gives any candidate's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cascade.encoding import InvalidInput
from cascade.evaluation import metrics
from cascade.evaluation.metrics import Floats, Ids, Metrics
from cascade.evaluation.queries import Queries
from cascade.evaluation.served.table import HeldOut, HeldOutError, read
from cascade.evaluation.stagewise import REQUEST_USERS, TOP, ask, places_of, rows_of
from cascade.item_keys import as_keys
from cascade.release import newest_version, read_release
from cascade.spec import RANK, STAGES, Sizes, sizes_from
from cascade.stages.pipeline import Pipeline

LIST_METRICS = {  # by name, before `_STAGE`: its values for users, [B]
    f"recall_at_{TOP}": partial(metrics.recalls, k=TOP),
    f"ndcg_at_{TOP}": partial(metrics.ndcgs, k=TOP),
    f"mrr_at_{TOP}": partial(metrics.reciprocal_ranks, k=TOP),
}
LARGEST = 1 - 2**-25  # what float32 rounds to 1 begins here


@dataclass
class Judged:
    """What was found: metrics by name, of some the 95 % interval, and what a reader must know."""

    metrics: Metrics = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def judge(
    repository: Path,
    table: Path,
    *,
    item: str | None = None,
    label: str | None = None,
    users: int = 2000,
    rows: int | None = None,
) -> Judged:
    """Judge the newest release of a repository.

    Args:
        item, label: columns of the table, as `table.read` takes them.
        users: how many users with a positive are asked, drawn at random.
        rows: how many rows are scored, drawn at random; all if None.

    Raises HeldOutError: the table cannot be used, or names no item of the catalogue.
    """
    version = newest_version(repository)
    release = read_release(repository, version)
    cascade = Pipeline.load(repository, version)
    held = read(table, cascade.schema, item, label)
    item_ids = np.asarray(cascade.item_ids)
    places = places_of(held.item, item_ids)
    judged = Judged({"release": version, "items": len(item_ids), "table_rows": len(held)})
    _say_left_out(judged, held, places)
    try:
        _lists(judged, cascade, held, places, users)
        _rows(judged, cascade, held, places, release, rows)
    except InvalidInput as error:
        raise HeldOutError(f"{table}: the release refuses a user: {error}") from error
    return judged


def _say_left_out(judged: Judged, held: HeldOut, places: Ids) -> None:
    lost = places < 0
    judged.metrics["rows_of_unknown_items"] = int(lost.sum())
    if not (held.positive & ~lost).any():
        raise HeldOutError(
            f"{held.path}: no positive is of an item of the catalogue; item {held.item[0]} came "
            "first. Does the column hold the ids that the release knows its items by?"
        )
    if lost.any():
        distinct = len(np.unique(held.item[lost]))
        judged.notes.append(
            f"{lost.sum():,} rows, of {distinct:,} items that are not in the catalogue, are left "
            "out of all figures"
        )
    if held.absent:
        judged.notes.append(f"no such column, taken as missing: {', '.join(held.absent)}")


def _lists(judged: Judged, cascade: Pipeline, held: HeldOut, places: Ids, count: int) -> None:
    """Where the positives of up to `count` users are after each stage."""
    wanted = held.positive & (places >= 0)
    having = np.unique(held.user[wanted])
    drawn = np.sort(np.random.default_rng(0).permutation(having)[:count])
    of_drawn = wanted & np.isin(held.user, drawn)
    positives = padded(np.searchsorted(drawn, held.user[of_drawn]), places[of_drawn], len(drawn))
    queries = Queries(held.dense[drawn], held.categorical[drawn], positives)
    answered = ask(cascade, queries, np.asarray(cascade.item_ids))
    named = {stage: getattr(answered, stage) for stage in STAGES}
    others = places[wanted & ~of_drawn]
    judged.metrics |= {
        "users_with_positives": len(having),
        "users": len(drawn),
        "positives": int((positives >= 0).sum()),
        "popularity_rows": len(others),
    }
    if len(others):
        popular = popular_of(others, answered.retrieve.shape[1])
        named = {"popularity": np.broadcast_to(popular, (len(drawn), len(popular))), **named}
        judged.notes.append(
            f"popularity counts the {len(others):,} positives of the users who were not asked"
        )
    else:
        judged.notes.append(
            "there is no popularity list to compare with: the positives of all users were looked "
            "for; a smaller --users leaves some to count"
        )
    found: dict[str, Floats] = {}
    for stage, lists in named.items():
        judged.metrics[f"size_{stage}"] = lists.shape[1]
        found[f"left_{stage}"] = metrics.recalls(lists, positives, lists.shape[1])
        found |= {f"{name}_{stage}": of(lists, positives) for name, of in LIST_METRICS.items()}
    values = np.stack([*found.values()], axis=1)  # [B, M]
    judged.metrics |= dict(zip(found, values.mean(axis=0).tolist(), strict=True))
    bounds = metrics.interval(lambda users: values[users].mean(axis=0), len(values))
    _add_intervals(judged, [*found], bounds)


def _rows(
    judged: Judged,
    cascade: Pipeline,
    held: HeldOut,
    places: Ids,
    release: dict[str, Any],
    count: int | None,
) -> None:
    """The ranker on rows with labels."""
    known = np.flatnonzero(places >= 0)
    if count is not None:
        known = np.sort(np.random.default_rng(0).permutation(known)[:count])
    if not held.labelled:
        judged.notes.append("the table has no labels: AUC and what else needs them is left out")
        return
    labels = held.positive[known].astype(np.float64)
    judged.metrics |= {"scored_rows": len(known), "positive_rate": float(labels.mean())}
    if labels.all() or not labels.any():
        judged.notes.append("all rows have one label: AUC and what else needs both is left out")
        return
    scores = row_scores(cascade, held, known, places[known], sizes_from(release["sizes"]))
    kind = release["stages"][RANK].get("output_is", "probability")
    low, high = float(scores.min()), float(scores.max())
    if kind == "value" or low < 0 or high > 1:
        judged.notes.append(
            "log loss, NE and calibration are left out: the ranker's output is a value, and no "
            f"probability (from {low:.4g} to {high:.4g} in these rows)"
        )
        found = partial(_auc_alone, labels, scores)
    else:
        # A certain model is rounded to 1 in float32, and would lose without bound where it errs.
        found = partial(_of_rows, labels, np.minimum(scores, LARGEST))
    all_rows = np.arange(len(known))
    values = found(all_rows)
    judged.metrics |= values
    distinct, owner = np.unique(held.user[known], return_inverse=True)

    def of_users(users: Ids) -> Floats:
        times = np.bincount(users, minlength=len(distinct))[owner.ravel()]
        return np.array([*found(np.repeat(all_rows, times)).values()])

    _add_intervals(judged, [*values], metrics.interval(of_users, len(distinct)))


def _of_rows(labels: Floats, scores: Floats, some: Ids) -> Metrics:
    return metrics.row_metrics(labels[some], scores[some])


def _auc_alone(labels: Floats, scores: Floats, some: Ids) -> Metrics:
    return {"auc": metrics.auc(labels[some], scores[some])}


def _add_intervals(judged: Judged, names: list[str], bounds: tuple[Floats, Floats]) -> None:
    both = zip(*(side.tolist() for side in bounds), strict=True)
    judged.intervals |= dict(zip(names, both, strict=True))


def popular_of(rows: Ids, k: int) -> Ids:
    """The rows that occur most often, up to k of them; ties go to the lower row."""
    found, counts = np.unique(rows, return_counts=True)
    popular: Ids = found[np.argsort(-counts, kind="stable")[:k]]
    return popular


def padded(owners: Ids, values: Ids, count: int) -> Ids:
    """Values [n] of owners [n], numbers below `count` -> [count, P], each owner's distinct values
    in a line, padded with -1."""
    pairs = np.unique(np.stack((owners, values), axis=1), axis=0)
    sizes = np.bincount(pairs[:, 0], minlength=count)
    found = np.full((count, int(sizes.max(initial=0))), -1, np.int64)
    found[np.arange(found.shape[1]) < sizes[:, None]] = pairs[:, 1]
    return found


def row_scores(
    cascade: Pipeline, held: HeldOut, rows: Ids, places: Ids, sizes: Sizes
) -> npt.NDArray[np.float64]:
    """The ranker's score of the users and items of some rows of a table, [m].

    A user's items, as many as an answer holds, are the only candidates of one request: then all of
    them come back, each with its score.

    Args:
        places: [m], the catalogue rows of the items.
    """
    item_ids = np.asarray(cascade.item_ids)
    items = len(item_ids)
    pairs, of_row = np.unique(held.user[rows] * items + places, return_inverse=True)
    user, place = pairs // items, pairs % items
    _, start, each = np.unique(user, return_index=True, return_counts=True)
    nth = np.arange(len(pairs)) - np.repeat(start, each)  # of the user's items
    asked = np.flatnonzero(nth % sizes.results == 0)  # where a request begins
    request = np.repeat(np.arange(len(asked)), np.diff(np.append(asked, len(pairs))))
    candidates = np.full((len(asked), sizes.survivors), -1, np.int64)
    candidates[request, nth % sizes.results] = place
    wanted = request * items + place  # ascending, as the pairs are
    scores = np.full(len(pairs), np.nan)
    for begin in tqdm(range(0, len(asked), REQUEST_USERS), desc="rows", unit="batch"):
        some = slice(begin, begin + REQUEST_USERS)
        users = user[asked[some]]
        encoded = cascade.encode(held.dense[users], held.categorical[users])
        ids, given = cascade.rank(*encoded, candidates[some])
        answered = rows_of(as_keys(ids), item_ids)
        line, column = np.nonzero(answered >= 0)
        came = (begin + line) * items + answered[line, column]
        scores[np.searchsorted(wanted, came)] = given[line, column]
    if np.isnan(scores).any():
        lost = item_ids[place[np.isnan(scores)][0]]
        raise HeldOutError(f"the ranker gives no score for item {lost}: export the release again")
    found: npt.NDArray[np.float64] = scores[of_row.ravel()]
    return found
