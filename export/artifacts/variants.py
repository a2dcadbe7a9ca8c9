"""Which variant of each scoring stage a release gets: what was asked for, or the fastest that
loses nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from cascade.artifact import Array
from cascade.config import Device
from cascade.errors import CascadeError
from cascade.models.scorer import Scorer
from cascade.schema import Schema
from cascade.spec import PRERANK, RANK, Precision, Sizes, Weights
from export.artifacts.guard import Guard, HeldOut, Verdict
from export.artifacts.stage_files import Catalogue, Variant

GUARD_USERS = 100
NO_SLOWER = 1.03  # of two that differ by less, the smaller one is taken
AUTO: Any = "auto"  # in place of a precision
STATES: tuple[Precision, ...] = get_args(Precision)


class GuardError(CascadeError, ValueError):
    """A variant that was asked for loses too much, or nobody can tell."""


def choose(
    asked: Variant,
    held_out: Path,
    places: Array,
    schema: Schema,
    sizes: Sizes,
    items: Catalogue,
    scorers: dict[str, Scorer],
    users: tuple[Array, Array],
    candidates: Array,
    device: Device,
) -> list[Verdict]:
    """Judge what comes into question.

    Args:
        asked: `auto` in either place leaves the choice to the guard.
        held_out: labelled rows, see `cascade.training.bundle`; `places` [N] says where each row
            of the checkpoints' catalogue is in `items`.
        users, candidates: encoded users and the rows that retrieval found for them.

    Returns:
        All verdicts, the chosen ones marked; none where there is nothing to choose or to judge by.

    Raises:
        GuardError: what was asked for loses too much, or cannot be judged.
    """
    auto = AUTO in (asked.state, asked.weights)
    if asked == Variant():
        return []
    if not held_out.exists():
        if auto:
            print(f"{held_out} is missing, so nothing cheaper than float32 can be judged")
            return []
        raise GuardError(f"{asked} has to be judged by {held_out}, which is missing: train again")
    rows = HeldOut.load(held_out).take(places)
    guard = Guard(schema, sizes, items, scorers, rows, users, candidates)
    found: list[Verdict] = []
    for stage in (PRERANK, RANK):
        variants = [v for v in _variants(asked, device) if v.fits(scorers[stage])]
        if not (variants or auto):
            raise GuardError(f"{stage}: its states hold ids, which {asked} cannot store")
        verdicts = guard.judge(stage, variants)
        chosen = best(verdicts) if auto else verdicts[-1]
        if auto and scorers[stage].recomputes:
            other = replace(chosen.variant, recompute=True)
            # Timed again, side by side: what waits for memory against what waits for products.
            *_, stored, recomputed = guard.judge(stage, [chosen.variant, other])
            verdicts.append(recomputed)
            chosen = recomputed if best([stored, recomputed]) is recomputed else chosen
            print(_explained(stage, stored, recomputed))
        if not chosen.passed:
            raise GuardError(f"{stage} with {asked} loses too much:\n{report(verdicts)}")
        if stage == PRERANK:
            guard.adopt(chosen.variant)
        found += [v.marked() if v is chosen else v for v in verdicts]
    return found


def _variants(asked: Variant, device: Device) -> list[Variant]:
    cheaper: Weights = "float16" if device == "cuda" else "int8"
    states = STATES if asked.state == AUTO else (asked.state,)
    weights: tuple[Weights, ...] = (
        ("float32", cheaper) if asked.weights == AUTO else (asked.weights,)
    )
    return [Variant(s, w) for w in weights for s in states if Variant(s, w) != Variant()]


def _explained(stage: str, stored: Verdict, recomputed: Verdict) -> str:
    """Why a part of the item state is stored, or is not."""
    against = (
        f"{stored.latency_us:.0f} us per user and {stored.bytes_per_item} bytes per item stored, "
        f"{recomputed.latency_us:.0f} us and {recomputed.bytes_per_item} bytes recomputed"
    )
    taken = "recomputed" if best([stored, recomputed]) is recomputed else "stored"
    return f"{stage}: the items' slice of the first layer is {taken} ({against})"


def best(verdicts: list[Verdict]) -> Verdict:
    """The fastest that passes; of those that are hardly slower, the smallest."""
    passed = [v for v in verdicts if v.passed]
    fastest = min(v.latency_us for v in passed)
    near = [v for v in passed if v.latency_us <= NO_SLOWER * fastest]
    return min(near, key=lambda v: (v.bytes_per_item, v.latency_us))


def report(verdicts: list[Verdict]) -> str:
    """A table of what was tried."""
    lines = [
        f"{'stage':9}{'state':10}{'weights':10}{'slice':12}{'AUC loss':>10}{'overlap':>9}"
        f"{'us per user':>13}{'bytes/item':>12}"
    ]
    for v in verdicts:
        mark = "  chosen" if v.chosen else "" if v.passed else "  refused"
        lines.append(
            f"{v.stage:9}{v.variant.state:10}{v.variant.weights:10}"
            f"{'recomputed' if v.variant.recompute else 'stored':12}{v.auc_loss:10.1e}"
            f"{v.overlap:9.4f}{v.latency_us:13.0f}{v.bytes_per_item:12}{mark}"
        )
    return "\n".join(lines)
