"""The sizes and search efforts that a plan measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascade.errors import CascadeError
from cascade.spec import Sizes

CANDIDATES = (100, 200, 500, 1000, 2000)
SURVIVORS = (20, 50, 100, 200, 500)
EFFORTS = (0.25, 0.5, 1.0, 2.0)  # times the effort that the index was tuned to


class PlanError(CascadeError, ValueError):
    """A plan that cannot be made of what came."""


@dataclass(frozen=True, order=True)
class Setting:
    """How many items leave the first two stages, and the lists that an IVF index probes or the
    queue of an HNSW graph; None for an index that looks at every item."""

    candidates: int
    survivors: int
    effort: int | None = None


@dataclass(frozen=True)
class Tried:
    """The sizes that are asked for."""

    candidates: Sequence[int] = CANDIDATES
    survivors: Sequence[int] = SURVIVORS

    def check(self, least: int) -> None:
        """Raises PlanError: all of them are below the `least` that an answer is chosen from."""
        for name, sizes in vars(self).items():
            if max(sizes) < least:
                raise PlanError(
                    f"--try-{name} {max(sizes)}: expected {least} or more, as many as an answer is "
                    "chosen from"
                )


@dataclass(frozen=True)
class Limits:
    """What sizes have to fit in.

    Args:
        items: of the catalogue; no stage hands on more.
        least: the results, or the pool from which they are chosen; every stage hands on as many.
        effort: that the index was tuned to, None if it has none.
        most_effort: at which the index looks at every item.
        preranks: False where the ranker scores all candidates.
    """

    items: int
    least: int
    effort: int | None
    most_effort: int
    preranks: bool

    def setting(self, sizes: Sizes) -> Setting:
        """The sizes of a release that was exported without a plan."""
        return self._within(sizes.candidates, sizes.survivors, self.effort)

    def settings(self, sizes: Sizes, tried: Tried) -> list[Setting]:
        """Every combination of what is tried, and the sizes of the release."""
        default = self.setting(sizes)
        pairs = {
            (candidates, survivors if self.preranks else candidates)
            for candidates in (*tried.candidates, default.candidates)
            for survivors in (*tried.survivors, default.survivors)
            if self.least <= survivors <= candidates
        }
        found = {self._within(*pair, effort) for pair in pairs for effort in self._efforts()}
        return sorted(found, key=lambda s: (s.candidates, s.survivors, s.effort or 0))

    def _efforts(self) -> set[int | None]:
        if self.effort is None:
            return {None}
        efforts = (round(self.effort * times) for times in EFFORTS)
        return {self.effort, *(min(max(1, effort), self.most_effort) for effort in efforts)}

    def _within(self, candidates: int, survivors: int, effort: int | None) -> Setting:
        most = max(self.items, self.least)
        return Setting(min(candidates, most), min(survivors, candidates, most), effort)
