"""What a training made, judged on the validation split: the lists of the trained models, with no
index and no export in between, beside lists that cost nothing to make.

A quick look at the end of a training, with baselines that are not tuned. What is served is judged
on the test split, by `python -m cascade.evaluation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cascade.data.dataset import Dataset
from cascade.evaluation import report
from cascade.evaluation.baselines.lists import Histories, Ids, best_unseen
from cascade.evaluation.baselines.log import Log
from cascade.evaluation.brute_force import Encoded, best_candidates, candidate_scores
from cascade.evaluation.evaluate import (
    COMPARED,
    Evaluated,
    add_kept,
    add_lists,
    add_survivors,
    of_unseen,
)
from cascade.evaluation.queries import held_out
from cascade.evaluation.stagewise import CURVE, TOP, Lists, shares_kept
from cascade.evaluation.verdict import Evidence
from cascade.evaluation.verdict import judge as judge_evidence
from cascade.files import write_json
from cascade.models.scorer import Scorer
from cascade.spec import PRERANK, RANK, RETRIEVE, STAGES, Sizes
from cascade.training import checkpoint
from cascade.training.bundle import VERDICT_FILE
from cascade.training.tasks import catalogue, item_states

POSITIVES = 300
KEPT = slice(100)  # of them, for which the ranker scores all candidates
SPLIT: Any = "validation"
Floats = npt.NDArray[np.floating[Any]]


def tell(
    dataset: Dataset,
    models: Mapping[str, Scorer],
    folder: Path,
    device: str,
    impressions: bool = False,
) -> None:
    """Judge the models of a folder of checkpoints, print the verdict and write verdict.json. A
    judgement that fails is a line of text, for the models are as good without."""
    path = folder / VERDICT_FILE
    path.unlink(missing_ok=True)
    try:
        found = judge(dataset, models, device, impressions=impressions)
        more = {
            "split": SPLIT,
            "checkpoints": {name: checkpoint.digest(folder / name) for name in STAGES},
            "notes": found.notes,
            "verdict": found.verdict.content(),
            "warnings": [*found.verdict.warnings],
        }
        write_json(path, report.content(found.metrics, found.intervals, more))
    except Exception as error:
        print(f"no verdict on what was trained: {type(error).__name__}: {error}")
        return
    count = found.metrics
    print(
        f"verdict, by {count['positives']:,} held-out positives of {count['distinct_users']:,} "
        f"users of the {SPLIT} split ({path}):"
    )
    print("\n".join(found.verdict.lines()))


def judge(
    dataset: Dataset,
    models: Mapping[str, Scorer],
    device: str = "cpu",
    positives: int = POSITIVES,
    sizes: Sizes | None = None,
    impressions: bool = False,
) -> Evaluated:
    """Judge trained models on the validation split.

    Args:
        models: by the name of their checkpoint: the three stages, and what there is of `COMPARED`.
        positives: how many held-out positives are looked for.
        sizes: what each stage hands on; by default as an export does.
        impressions: whether the system showed the items of the rows.

    Raises EvaluationError: the split has no positive, or every user had seen theirs.
    """
    sizes, items = sizes or Sizes(), Encoded(*dataset.items())
    found, evidence = Evaluated({"items": len(items)}), Evidence(0, impressions=impressions)
    log = Log.of(dataset)
    queries = held_out(dataset, positives, split=SPLIT)
    queries, seen = of_unseen(found, log, queries, SPLIT)
    users = Encoded(*dataset.encoder.encode("user", queries.dense, queries.categorical))
    with torch.inference_mode():
        states = item_states(models[RETRIEVE], catalogue(dataset, torch.device(device)))
        vectors = models[RETRIEVE].user(*users.tensors(device))

    def scores(some: slice) -> Floats:
        with torch.inference_mode():
            return (vectors[some] @ states.T).float().cpu().numpy()

    seen = seen or Histories.none(len(queries))
    candidates = best_unseen(scores, seen, len(items), min(sizes.candidates, len(items)))
    handed, kept = _survivors(models, users, items, candidates, sizes, device)
    ranked = candidate_scores(models[RANK], users, items, handed[PRERANK], device)
    answer = best_candidates(handed[PRERANK], ranked, sizes.results)
    lists = Lists(users, candidates, handed[PRERANK], answer)
    baselines = log.lists(queries, CURVE[-1], SPLIT, quick=True)
    add_lists(found, evidence, queries, lists, baselines, {})
    add_survivors(found, evidence, queries, candidates.shape[1], handed)
    add_kept(found, evidence, kept, queries.owner[KEPT], handed)
    found.notes += log.notes
    found.verdict = judge_evidence(evidence)
    return found


def _survivors(
    models: Mapping[str, Scorer],
    users: Encoded,
    items: Encoded,
    candidates: Ids,
    sizes: Sizes,
    device: str,
) -> tuple[dict[str, Ids], dict[str, Floats]]:
    """What each preranker at hand keeps of the candidates [B, K]: rows [B, S] by its name, and the
    share that it keeps of the ranker's best for the first queries, by `kept_by_NAME`."""
    keep = min(sizes.survivors, candidates.shape[1])
    wanted = candidate_scores(models[RANK], users.take(KEPT), items, candidates[KEPT], device)
    orders = {"retrieve_order": np.broadcast_to(np.arange(candidates.shape[1]), candidates.shape)}
    for name in (PRERANK, *COMPARED):
        if name in models:
            logits = candidate_scores(models[name], users, items, candidates, device)
            orders[name] = np.argsort(-logits, axis=1, kind="stable")
    handed, kept = {}, {}
    for name, order in orders.items():
        first = order[:, :keep]
        handed[name] = np.take_along_axis(candidates, first, 1)
        scores = np.take_along_axis(wanted, first[KEPT], 1)
        kept[f"kept_by_{name}"] = shares_kept(scores, wanted, TOP)
    return handed, kept
