"""What an evaluation says in words: what each stage adds to the one before, and warnings of what
is no better than something simpler. The figures come with their draws
(`cascade.evaluation.bootstrap`), so that a difference within chance is called a tie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cascade.evaluation.bootstrap import difference

Result = Literal["better", "worse", "tie"]
SHOWN = "the log is of impressions, whose positives follow what was shown and say little of a list"
FEWEST_USERS = 10  # whose differences say something


@dataclass(frozen=True)
class Measured:
    """A figure, and its value in each draw of the users [D]; of a loss, lower is better."""

    value: float
    draws: npt.NDArray[np.floating[Any]]
    loss: bool = False


@dataclass(frozen=True)
class Comparison:
    """One model beside another by one measure. `low` and `high` bound the difference, value minus
    other value, at 95 %; NaN where they cannot be told."""

    name: str
    other: str
    measure: str
    value: float
    other_value: float
    low: float
    high: float
    result: Result

    def __str__(self) -> str:
        figures = f"{self.measure} {self.value:.4f} against {self.other_value:.4f}"
        more = f"{self.value - self.other_value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"
        if self.low != self.low:
            more = "too few users to tell"
        word = "a tie" if self.result == "tie" else self.result
        return f"{self.name} over {self.other}: {figures}, {more}: {word}"


@dataclass(frozen=True)
class Verdict:
    """All comparisons, and the sentences that should stop a release."""

    comparisons: tuple[Comparison, ...] = ()
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A sentence for each comparison, then the warnings, each behind `WARNING:`."""
        return [*map(str, self.comparisons), *(f"WARNING: {text}" for text in self.warnings)]

    def content(self) -> list[dict[str, Any]]:
        """The comparisons as JSON: bounds that cannot be told are left out."""
        return [
            {name: value for name, value in asdict(found).items() if value == value}
            | {"sentence": str(found)}
            for found in self.comparisons
        ]


@dataclass
class Evidence:
    """What a verdict is made from, by name; what was not measured is left empty.

    Attributes:
        users: how many distinct users the draws are of.
        stages: the held-out lists after each stage, in the order of the stages.
        list_measure: what `stages` are measured by.
        retrievers: the list that the retriever hands on, under `retrieve`, and those of baselines.
        depth_measure: what `retrievers` are measured by.
        prerankers: the served preranker, under `prerank`, and those that could take its place; by
            measure.
        scorers: the ranker, under `rank`, and the baselines of rows; by measure.
        impressions: whether the system showed the items of the rows, so that a positive is one of
            what was shown; a warning of held-out lists then says so.
    """

    users: int
    list_measure: str = "NDCG@10"
    depth_measure: str = "recall@100"
    stages: Mapping[str, Measured] = field(default_factory=dict)
    retrievers: Mapping[str, Measured] = field(default_factory=dict)
    prerankers: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    scorers: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)
    impressions: bool = False


def judge(evidence: Evidence) -> Verdict:
    """Compare each stage with the one before, the retriever with its best baseline, the preranker
    with everything at hand, and the ranker with the best baseline of rows."""
    found: list[Comparison] = []
    warnings: list[str] = []
    shown = f"; {SHOWN}" if evidence.impressions else ""

    def compared(
        measured: Mapping[str, Measured], name: str, others: Sequence[str], measure: str, so: str
    ) -> None:
        for other in others:
            pair = compare(name, measured[name], other, measured[other], measure, evidence.users)
            found.append(pair)
            if pair.result == "worse":
                warnings.append(
                    f"{name} is worse than {other}: {measure} {pair.value:.4f} against "
                    f"{pair.other_value:.4f} ({pair.low:+.4f} to {pair.high:+.4f}); {so}"
                )

    stages = [*evidence.stages]
    for before, stage in pairwise(stages):
        so = f"the stage {stage} makes held-out lists worse{shown}"
        compared(evidence.stages, stage, [before], evidence.list_measure, so)
    best = _best(evidence.retrievers, "retrieve")
    so = f"the simpler list is the better retriever{shown}"
    compared(evidence.retrievers, "retrieve", best, evidence.depth_measure, so)
    for measure, measured in evidence.prerankers.items():
        others = [name for name in measured if name != "prerank"]
        so = "a better preranker is at hand" + (shown if measure.startswith("recall@") else "")
        compared(measured, "prerank", others, measure, so)
    for measure, measured in evidence.scorers.items():
        so = "the simpler model is the better ranker of rows"
        compared(measured, "rank", _best(measured, "rank"), measure, so)
    return Verdict(tuple(found), tuple(warnings))


def compare(
    name: str, one: Measured, other_name: str, other: Measured, measure: str, users: int
) -> Comparison:
    """One model beside another on the same draws of `users` users. Fewer users than `FEWEST_USERS`
    make a tie."""
    low, high = difference(one.draws, other.draws)
    if users < FEWEST_USERS:
        low = high = float("nan")
    result: Result = "tie"
    if low > 0 or high < 0:
        result = "better" if (low > 0) != one.loss else "worse"
    return Comparison(name, other_name, measure, one.value, other.value, low, high, result)


def _best(measured: Mapping[str, Measured], name: str) -> list[str]:
    """The best of the others, if there is one to compare with."""
    others = [other for other in measured if other != name]
    if name not in measured or not others:
        return []
    sign = -1 if measured[name].loss else 1
    return [max(others, key=lambda other: sign * measured[other].value)]
