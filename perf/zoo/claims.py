"""What is claimed of the models, beside what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from statistics import fmean
from typing import Any

from cascade.models import MODELS as REGISTERED
from perf.harness.table import RELATIONS
from perf.zoo.serve import SPEEDUP
from perf.zoo.sets import ALONE, FRONT, SETS, SEVERAL, TEXTBOOK, named, retrieves

MODELS, PARITY, GAP, TASK_GAP, SEQUENCE = 16, 1e-5, 0.01, 0.005, 1.05
NEAR_BEST = ("dcnv2", "deepfm", "dlrm")  # on the planted clicks

Figures = Mapping[str, Mapping[str, Any]]  # by model


@dataclass(frozen=True)
class Checked:
    """A claim and what was found; None where what it speaks of was not run."""

    key: str
    meaning: str
    figure: float | None
    relation: str
    target: float

    @property
    def holds(self) -> bool:
        return self.figure is None or bool(RELATIONS[self.relation](self.figure, self.target))


def summary(found: Mapping[str, Figures], served_on: str) -> dict[str, Any]:
    """The whole summary, with its claims."""
    parts = (_choices(found), _planted(found), _several(found))
    served = {n: f for figures in found.values() for n, f in figures.items() if "served" in f}
    checked = [*_all_models(found, served), *chain(*parts)]
    known = [claim for claim in checked if claim.figure is not None]
    return {
        "models": len({n for figures in found.values() for n in figures if n in REGISTERED}),
        "parity_max_abs": max(figures["parity_max_abs"] for figures in served.values()),
        "served": [name for name, figures in served.items() if figures["served"]],
        "served_on": served_on,
        "results": found,
        "claims": [{**asdict(claim), "holds": claim.holds} for claim in known],
        "slow_splits": slow_splits(served),
        "holds": all(claim.holds for claim in known),
    }


def slow_splits(figures: Figures) -> dict[str, str]:
    """The rankers whose split form gains less than `SPEEDUP`, and what that computes per
    candidate."""
    found = {}
    for name, figure in figures.items():
        if not retrieves(name) and figure["split_vs_flat"] < SPEEDUP:
            kept = ", ".join(f"{count}x {text}" for text, count in figure["kept"].items())
            found[name] = kept or "nothing that one side has a part of"
    return found


def _all_models(found: Mapping[str, Figures], served: Figures) -> list[Checked]:
    models = {name for figures in found.values() for name in figures if name in REGISTERED}
    parity = max(figures["parity_max_abs"] for figures in served.values())
    unserved = sum(not figures["served"] for figures in served.values())
    return [
        Checked("models", "registered models that were trained", len(models), ">=", MODELS),
        Checked("parity_max_abs", "exported graph beside the model", parity, "<=", PARITY),
        Checked("unserved", "models that tritonserver answers otherwise", unserved, "=", 0),
    ]


def _choices(found: Mapping[str, Figures]) -> list[Checked]:
    checked = []
    for name, figures in found.items():
        if SETS[name].choices:
            recall = {m: f["recall_at_100"] for m, f in figures.items() if "recall_at_100" in f}
            ndcg = {m: f["ndcg_at_10"] for m, f in figures.items() if "ndcg_at_10" in f}
            beside = [f["ndcg_at_10_beside"] for f in figures.values() if "ndcg_at_10_beside" in f]
            gain = fmean(beside) / max(ndcg[FRONT], 1e-12) if beside and FRONT in ndcg else None
            checked += [
                Checked(
                    f"sasrec_recall100_over_{other.replace(':', '_')}",
                    f"recall@100 on {name}, beside {named(other, True)}",
                    _ratio(recall, "sasrec", other),
                    *(">=", SEQUENCE),
                )
                for other in (TEXTBOOK, FRONT)
            ] + [
                Checked(
                    "din_ndcg10_over_dlrm",
                    f"NDCG@10 on {name}, beside dlrm",
                    _ratio(ndcg, "din", "dlrm"),
                    *(">=", 1.0),
                ),
                Checked(
                    "rankers_ndcg10_over_two_tower",
                    f"NDCG@10 on {name}, the two-tower plus a ranker beside it alone, mean",
                    gain,
                    *(">=", 1.0),
                ),
            ]
    return checked


def _planted(found: Mapping[str, Figures]) -> list[Checked]:
    checked = []
    for name, figures in found.items():
        for model in NEAR_BEST:
            if "best_auc" in figures.get(model, {}):
                gap = figures[model]["best_auc"] - figures[model]["auc"]
                meaning = f"AUC that it lacks of the best possible on {name}"
                checked.append(Checked(f"{model}_auc_gap", meaning, gap, "<=", GAP))
    return checked


def _several(found: Mapping[str, Figures]) -> list[Checked]:
    checked = []
    for name, figures in found.items():
        for model in SEVERAL if SETS[name].several else ():
            apart = [
                figures[f"{ALONE}, {key.removeprefix('auc_')} alone"][key] - auc
                for key, auc in figures.get(model, {}).items()
                if key.startswith("auc_")
            ]
            if apart:
                meaning = "AUC that a task lacks of its model alone, at most"
                checked.append(Checked(f"{model}_auc_gap", meaning, max(apart), "<=", TASK_GAP))
    return checked


def _ratio(figures: Mapping[str, float], one: str, other: str) -> float | None:
    if one not in figures or other not in figures:
        return None
    return figures[one] / max(figures[other], 1e-12)
