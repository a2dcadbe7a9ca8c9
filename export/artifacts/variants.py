"""Chooses how each scoring stage is stored: as asked for, or the fastest variant that loses
nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from tabulate import tabulate

from cascade.artifact import Array
from cascade.errors import CascadeError
from cascade.models.scorer import Scorer
from cascade.spec import PRERANK, RANK, Precision, Weights
from cascade.stages.tasks import formula_of
from cascade.training.bundle import HELD_OUT_FILE
from export.artifacts.graphs import several
from export.artifacts.guard import Apart, Guard, HeldOut, Verdict
from export.artifacts.stage_files import Variant
from export.context import Build, Source

GUARD_USERS = 100
NO_SLOWER = 1.03  # of two variants that differ by less, the smaller one is taken
AUTO: Any = "auto"  # in place of a precision
HEADER = ("stage", "state", "weights", "AUC loss", "overlap", "us/user", "bytes/item", "")


class GuardError(CascadeError, ValueError):
    """A variant that was asked for loses too much, or cannot be judged."""


def choose(
    build: Build,
    source: Source,
    candidates: Array,
    apart: Mapping[str, Apart],
    others: Mapping[str, Scorer],
) -> list[Verdict]:
    """Judge the variants that `build` allows, on the rows [U, K] that retrieval found for the first
    users; `apart` has the models that were taken apart, `others` those that were trained elsewhere,
    which are served flat where they are not in both -> all verdicts, the chosen marked; none
    where there is nothing to choose or to judge by. Raises GuardError: what was asked for loses too
    much, or cannot be judged."""
    asked: Any = Variant(build.state, build.weights)  # type: ignore[arg-type]
    auto = AUTO in (asked.state, asked.weights)
    if asked == Variant():
        return []
    held_out = source.folder / HELD_OUT_FILE
    rows = HeldOut.load(held_out, source.places, source.schema) if held_out.exists() else None
    if rows is None or len(np.unique(rows.labels)) < 2:
        fault = "is missing" if rows is None else "has rows of one label only"
        if auto:
            print(f"{held_out} {fault}, so nothing cheaper than float32 can be judged")
            return []
        raise GuardError(
            f"{asked} has to be judged by {held_out}, which {fault}: train again, or give "
            "`held_out` in cascade.yaml"
        )
    scorers = {
        stage: others.get(stage) or source.scorer(build.checkpoint(stage))
        for stage in ((PRERANK, RANK) if build.preranks else (RANK,))
    }
    judged = [stage for stage in scorers if stage in apart or stage not in others]
    formulas = {name: formula_of(name, several(s), build.product) for name, s in scorers.items()}
    scorers.setdefault(PRERANK, scorers[RANK])  # all candidates survive
    formulas.setdefault(PRERANK, formulas[RANK])
    dense, ids = (values[:GUARD_USERS] for values in source.users)
    given = (source.items, scorers, rows, (dense, ids), candidates, apart, formulas)
    guard = Guard(source.schema, build.sizes, *given)
    found: list[Verdict] = []
    for stage in judged:
        variants = _variants(asked, build.serving.device == "cuda")
        variants = [v for v in variants if v.fits(scorers[stage], stage in apart)]
        if not (variants or auto):
            raise GuardError(f"{stage}: {asked} cannot store its states, or compute it")
        verdicts = guard.judge(stage, variants)
        chosen = best(verdicts) if auto else verdicts[-1]
        if not chosen.passed:
            raise GuardError(f"{stage} with {asked} loses too much:\n{report(verdicts)}")
        if stage == PRERANK:
            guard.adopt(chosen.variant)
        found += [replace(v, chosen=v is chosen) for v in verdicts]
    return found


def _variants(asked: Variant, on_gpu: bool) -> list[Variant]:
    cheaper: Weights = "float16" if on_gpu else "int8"
    states = get_args(Precision) if asked.state == AUTO else (asked.state,)
    weights: Any = ("float32", cheaper) if asked.weights == AUTO else (asked.weights,)
    return [Variant(s, w) for w in weights for s in states if Variant(s, w) != Variant()]


def best(verdicts: list[Verdict]) -> Verdict:
    """The fastest that passes; of those that are hardly slower, the smallest."""
    passed = [v for v in verdicts if v.passed]
    fastest = min(v.latency_us for v in passed)
    near = [v for v in passed if v.latency_us <= NO_SLOWER * fastest]
    return min(near, key=lambda v: (v.bytes_per_item, v.latency_us))


def report(verdicts: list[Verdict]) -> str:
    """A table of what was tried."""
    rows = [
        (
            *(v.stage, v.variant.state, v.variant.weights),
            *(f"{v.auc_loss:.1e}", f"{v.overlap:.4f}", f"{v.latency_us:.0f}", v.bytes_per_item),
            "chosen" if v.chosen else "" if v.passed else "refused",
        )
        for v in verdicts
    ]
    return tabulate(rows, HEADER, tablefmt="plain", disable_numparse=True)
