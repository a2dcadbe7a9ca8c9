"""The whole evaluation of a prepared data set, its checkpoints and a release: metrics, intervals,
and a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from cascade.data.dataset import Dataset
from cascade.data.source import Split
from cascade.evaluation import bootstrap, clicks
from cascade.evaluation.baselines.lists import Histories, Ids
from cascade.evaluation.baselines.log import BATCH, Log, encoded
from cascade.evaluation.bootstrap import Floats
from cascade.evaluation.brute_force import Encoded
from cascade.evaluation.clicks import MEASURES
from cascade.evaluation.metrics import Metrics, recalls
from cascade.evaluation.queries import EvaluationError, Queries, held_out
from cascade.evaluation.stagewise import (
    CURVE,
    Lists,
    Values,
    ask,
    kept_values,
    list_values,
    survivors_of,
)
from cascade.evaluation.verdict import FEWEST_USERS, Evidence, Measured, Verdict, judge
from cascade.models.scorer import Scorer
from cascade.spec import STAGES
from cascade.stages.pipeline import Pipeline
from cascade.training.negatives import Negatives, Sampling
from cascade.training.negatives import held_out as negatives_beside

COMPARED = ("prerank_baseline", "prerank_labels", "baseline")  # tried in the preranker's place
SCORED = ("prerank", "baseline")  # beside the ranker, on the test rows
DEPTH = 100  # at which retrievers are compared
NAMES = {  # what the verdict calls them
    "": "rank",
    "_prerank": "the preranker",
    "_baseline": "the trained baseline",
    "_logistic_regression": "logistic regression",
    "_lightgbm": "LightGBM",
    "recent": "recent popularity",
    "neighbours": "item neighbours",
    "ease": "EASE",
    "prerank_labels": "the same model, not distilled",
    "prerank_baseline": "the baseline, distilled",
    "baseline": "the baseline, on labels",
    "retrieve_order": "the retriever's order",
}


@dataclass
class Evaluated:
    """What was found.

    Attributes:
        metrics: by name.
        intervals: of some of them the 95 % interval.
        reliability: by suffix of the model's metrics, mean predictions and shares of positives.
        verdict: what each stage adds, in words.
        notes: what a reader must know.
    """

    metrics: Metrics = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    reliability: dict[str, list[list[float]]] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    notes: list[str] = field(default_factory=list)


def evaluate(
    dataset: Dataset,
    models: dict[str, Scorer],
    cascade: Pipeline,
    *,
    users: int,
    positives: int,
    rows: int | None = None,
    device: str = "cpu",
    sampling: Sampling | None = None,
    impressions: bool = False,
    baselines: bool = True,
) -> Evaluated:
    """Judge the stages of a cascade on the test split.

    Args:
        models: by the name of their checkpoint: `rank`, and what there is of `SCORED` and
            `COMPARED`.
        users: for how many of the queries the ranker scores the whole catalogue.
        positives: how many held-out positives are looked for in the lists.
        rows: of the test split that the click metrics see, rounded up to whole batches; all if
            None.
        sampling: how negatives are drawn beside the test rows of a log of positives only.
        impressions: whether the system showed the items of the rows.
        baselines: whether simple lists and models are fitted, too, and judged beside the stages.
    """
    items = Encoded(*dataset.items())
    found = Evaluated({"items": len(items)})
    queries = held_out(dataset, max(users, positives))
    log = Log.of(dataset)
    evidence = Evidence(0, impressions=impressions)
    negatives = None if dataset.has_negatives else Negatives(dataset, sampling or Sampling())
    _rows(found, evidence, log, models, items, negatives, rows, device, baselines)
    _lists(found, evidence, log, models, cascade, queries, items, users, device, baselines)
    found.notes += log.notes
    found.verdict = judge(evidence)
    return found


def _rows(
    found: Evaluated,
    evidence: Evidence,
    log: Log,
    models: Mapping[str, Scorer],
    items: Encoded,
    negatives: Negatives | None,
    rows: int | None,
    device: str,
    baselines: bool,
) -> None:
    """Models of clicks on the test rows."""
    limit = None if rows is None else -(-rows // BATCH)
    scorers = {
        "": models["rank"],
        **{f"_{name}": models[name] for name in SCORED if name in models},
    }
    batches = islice(log.dataset.batches("test", BATCH), limit)
    scored = clicks.score(scorers, negatives_beside(batches, negatives), items, device)
    if baselines:
        fitted = log.scores(encoded(scored.batches, items.dense, items.ids), negatives)
        scored.predicted |= {f"_{name}": p for name, p in fitted.probabilities.items()}
        found.notes += fitted.notes
    found.metrics |= scored.metrics()
    if scored.named:
        found.metrics["test_users"] = len(np.unique(scored.user))
    if negatives is not None:
        each = negatives.sampling.per_positive
        found.metrics["test_negatives_sampled"] = found.metrics["test_rows"] * each // (1 + each)
    found.reliability = scored.reliability()
    measured = scored.measured(found.metrics)
    for measure, by_suffix in measured.items():
        for suffix, figure in by_suffix.items():
            found.intervals[f"{measure}{suffix}"] = bootstrap.ends(figure.draws)
    evidence.scorers = {
        MEASURES[measure]: {
            NAMES[suffix]: figure for suffix, figure in by_suffix.items() if suffix != "_prerank"
        }
        for measure, by_suffix in measured.items()
    }


def _lists(
    found: Evaluated,
    evidence: Evidence,
    log: Log,
    models: Mapping[str, Scorer],
    cascade: Pipeline,
    queries: Queries,
    items: Encoded,
    users: int,
    device: str,
    baselines: bool,
) -> None:
    """What the stages and the baselines list, and what the stages keep."""
    queries, seen = of_unseen(found, log, queries, "test")
    item_ids, owner = log.dataset.item_ids(), queries.owner
    lists = ask(cascade, queries, item_ids, seen)
    plain = lists if seen is None else ask(cascade, queries, item_ids)
    named = log.lists(queries, CURVE[-1]) if baselines else {}
    more = {} if seen is None else {"with_seen": plain.rank}
    add_lists(found, evidence, queries, lists, named, more)
    found.metrics["users"] = min(users, len(queries))
    others = {name: models[name] for name in COMPARED if name in models}
    handed = survivors_of(lists, items, others, device)
    add_survivors(found, evidence, queries, lists.retrieve.shape[1], handed)
    first = slice(users)
    some = np.arange(len(queries))[first]
    values = kept_values(
        lists.take(first),
        models["rank"],
        items,
        others,
        device,
        None if seen is None else seen.take(some),
        None if seen is None else plain.rank[first],
    )
    add_kept(found, evidence, values, owner[first], handed)


def of_unseen(
    found: Evaluated, log: Log, queries: Queries, split: Split
) -> tuple[Queries, Histories | None]:
    """The queries of a split whose positive its user had not seen, and what each user had seen;
    None where the log does not say. Raises EvaluationError: there is no such query."""
    seen = log.seen(queries, split)
    if seen is None:
        return queries, None
    new = np.flatnonzero(~seen.hold(queries.positives).any(axis=1))
    if not len(new):
        raise EvaluationError(
            f"{log.dataset.root}: every positive of the {split} split is of an item that its user "
            "had seen, so no list without what was seen can hold one; prepare more rows"
        )
    if len(new) < len(queries):
        found.notes.append(
            f"{len(queries) - len(new):,} of {len(queries):,} positives were drawn of items "
            "that their user had seen, and are left out"
        )
    return queries.take(new), seen.take(new)


def add_lists(
    found: Evaluated,
    evidence: Evidence,
    queries: Queries,
    lists: Lists,
    baselines: Mapping[str, Ids],
    more: Mapping[str, Ids],
) -> None:
    """Where held-out positives are in the lists of the stages, of baselines of the retriever, and
    in `more`, which nothing is compared with; [B, K] by name."""
    named = {**baselines, **{stage: getattr(lists, stage) for stage in STAGES}, **more}
    drawn = _add(found, list_values(named, queries.positives), queries.owner)
    evidence.users = len(np.unique(queries.owner))
    found.metrics |= {"positives": len(queries), "distinct_users": evidence.users}
    evidence.stages = _measured(found, drawn, "ndcg_at_10_{}", STAGES)
    depth = max(k for k in CURVE if k <= min(DEPTH, max(10, lists.retrieve.shape[1])))
    evidence.depth_measure = f"recall@{depth}"
    retrievers = (*baselines, "retrieve")
    evidence.retrievers = _measured(found, drawn, f"recall_at_{depth}_{{}}", retrievers)


def add_survivors(
    found: Evaluated, evidence: Evidence, queries: Queries, came: int, handed: Mapping[str, Ids]
) -> None:
    """Where held-out positives are among what each preranker hands on, [B, K] by name, of as many
    candidates as came."""
    keep = handed["prerank"].shape[1]
    if keep >= came:
        return
    values: Values = {
        f"recall_of_survivors_{name}": recalls(rows, queries.positives, keep)
        for name, rows in handed.items()
    }
    drawn = _add(found, values, queries.owner)
    measured = _measured(found, drawn, "recall_of_survivors_{}", handed)
    evidence.prerankers = {**evidence.prerankers, f"recall@{keep}": measured}


def add_kept(
    found: Evaluated, evidence: Evidence, values: Values, owner: Any, prerankers: Iterable[str]
) -> None:
    """What the stages keep of the ranker's best, by query, and the prerankers by `kept_by_NAME`."""
    drawn = _add(found, values, owner)
    if len(np.unique(owner)) >= FEWEST_USERS:
        measured = _measured(found, drawn, "kept_by_{}", prerankers)
        measure = "share kept of the ranker's top 10"
        evidence.prerankers = {**evidence.prerankers, measure: measured}


def _measured(
    found: Evaluated, drawn: Mapping[str, Floats], pattern: str, names: Iterable[str]
) -> dict[str, Measured]:
    """Figures that are there, by what the verdict calls them."""
    keys = {NAMES.get(name, name): pattern.format(name) for name in names}
    return {name: Measured(found.metrics[k], drawn[k]) for name, k in keys.items() if k in drawn}


def _add(found: Evaluated, values: Values, owner: Any) -> dict[str, Floats]:
    """Values of queries become means over users, with their intervals; -> the draws, by name."""
    by_user = bootstrap.of_users(np.stack([*values.values()], axis=1), owner)
    drawn = bootstrap.means(by_user)
    found.metrics |= dict(zip(values, np.nanmean(by_user, axis=0).tolist(), strict=True))
    found.intervals |= {name: bootstrap.ends(drawn[:, i]) for i, name in enumerate(values)}
    return {name: drawn[:, i] for i, name in enumerate(values)}
