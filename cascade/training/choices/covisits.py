"""The co-visitation matrix of a log: which items its users met one soon after the other."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from cascade.data import past
from cascade.data.dataset import Dataset
from cascade.data.seen import Events
from cascade.encoding import FIRST, Ids
from cascade.models.covisitation import BASE, DIGITS, CoVisitationConfig
from cascade.training.choices.ease import CannotBegin, ids_in, newest, of_some_users, own_ids
from cascade.training.choices.rows import Recency

APART = 10  # events of a user, at most, between two that count as met together
PRIOR = 5.0  # visits that every item has in the norm, so that a rare one has no strong neighbours

Floats = npt.NDArray[np.floating[Any]]


class CoVisits:
    """The matrix of a data set, of the training rows of every label; computed when it is asked for.

    Two events of one user count 1 over the square root of their distance, less where they are old,
    and an entry is the sum over the geometric mean of the two items' own sums.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @cached_property
    def config(self) -> CoVisitationConfig | None:
        """Which features tell of the items met and of an item's own id; None: none do."""
        named = {feature.name: feature for feature in self._dataset.schema.ids("user")}
        met = named.get(past.ITEMS.name)
        if met is None or met.encoding != "vocabulary" or met.length < CoVisitationConfig.last:
            return None
        try:
            return CoVisitationConfig(met.name, own_ids(self._dataset)[0].name)
        except CannotBegin:
            return None

    @cached_property
    def neighbours(self) -> tuple[Tensor, Tensor]:
        """For each id of an item met, [M, N]: the ids of the items that are strongest beside it,
        and the strengths."""
        assert self.config is not None
        met = next(f for f in self._dataset.schema.ids("user") if f.name == self.config.met)
        ids, (_, own) = self._of_met(), own_ids(self._dataset)
        matrix = self._matrix((own >= FIRST) & (own < BASE**DIGITS)).tocoo()
        order = np.lexsort((-matrix.data, matrix.row))
        row, column, strength = matrix.row[order], matrix.col[order], matrix.data[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = (place < self.config.neighbours) & (ids[row] >= FIRST)
        shape = met.cardinality, self.config.neighbours
        neighbours, strengths = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        where = ids[row[kept]], place[kept]
        neighbours[where], strengths[where] = own[column[kept]], strength[kept]
        return torch.from_numpy(neighbours), torch.from_numpy(strengths)

    def _of_met(self) -> Ids:
        """The id of each item [N] in the list of the items met; 0 for none."""
        assert self.config is not None
        named = {feature.name: feature for feature in self._dataset.schema.ids("user")}
        ways = ids_in(self._dataset, named[self.config.met])
        return max(ways, key=lambda ids: len(np.unique(ids)))

    def _matrix(self, known: npt.NDArray[np.bool_]) -> sp.csr_matrix:
        """[N, N], of the items that are known by an id."""
        events = self._events(known)
        weight = Recency(self._dataset).weight(events.time, len(events.user))
        count = self._dataset.item_count
        found = sp.csr_matrix((count, count))
        for apart in range(1, APART + 1):
            both = events.user[apart:] == events.user[:-apart]
            both &= events.item[apart:] != events.item[:-apart]
            pair = events.item[:-apart][both], events.item[apart:][both]
            value = weight[apart:][both] / apart**0.5
            found += sp.csr_matrix((value, pair), (count, count))
        found += found.T
        norm = 1 / np.sqrt(np.asarray(found.sum(axis=1)).ravel() + PRIOR)
        return sp.diags_array(norm) @ found @ sp.diags_array(norm)

    def _events(self, known: npt.NDArray[np.bool_]) -> Events:
        """By user, then by time."""
        events = of_some_users(Events.read(self._dataset, "train").known())
        return newest(events.take(known[events.item]).sorted())
