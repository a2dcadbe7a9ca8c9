"""EASE, the closed form of which items users like together, and models that begin with it.

Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019. What the items of a user's
list say of the next one is a matrix of items by items; its singular vectors are vectors of the
list's members and of the items, which training then improves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.sparse as sp
import torch
from sklearn.utils.extmath import randomized_svd

from cascade.data.dataset import Dataset
from cascade.data.seen import Events, Seen
from cascade.encoding import FIRST, Ids
from cascade.errors import CascadeError
from cascade.models.retrieval.two_tower import TwoTower
from cascade.models.scorer import Scorer
from cascade.schema import Feature

Floats = npt.NDArray[np.floating[Any]]

MOST_OF_USER = 500  # the newest positives of a user that say which items go together
L2 = 300.0  # of the EASE that training begins with
ITEMS = 8_192  # most liked, that it is made of: an inverse of some seconds
USERS = 50_000  # drawn, that it is made of
LOGIT = 30.0  # of a score of 1, over a catalogue
ROWS = 2_000  # of the log, which tell whether a list holds what its user liked


class CannotBegin(CascadeError):
    """A log that does not say which items go together, or what they are in a user's list."""


def weights(matrix: sp.csr_matrix, l2: float) -> Floats:
    """Users by items [U, M], 1 where a user liked an item -> [M, M]: row i is what having liked
    item i says of the others."""
    gram = (matrix.T @ matrix).toarray().astype(np.float32)
    diagonal = np.diag_indices(gram.shape[0])
    gram[diagonal] += l2
    inverse = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False)
    found: Floats = inverse / -np.diag(inverse)
    found[diagonal] = 0
    return found


def newest(events: Events) -> Events:
    """Of events by user, then by time: the last `MOST_OF_USER` of each user."""
    _, starts, size = np.unique(events.user, return_index=True, return_counts=True)
    from_end = np.repeat(starts + size, size) - np.arange(len(events.user))
    return events.take(from_end <= MOST_OF_USER)


def of_some_users(events: Events) -> Events:
    """The events of at most `USERS` users, drawn."""
    users = np.unique(events.user)
    if len(users) <= USERS:
        return events
    drawn = np.random.default_rng(0).choice(users, USERS, replace=False)
    return events.take(np.isin(events.user, drawn))


def users_by_items(events: Events) -> tuple[sp.csr_matrix, Ids]:
    """-> 1 where a user liked an item [U, M], the M items with a positive."""
    liked = newest(events.liked().sorted())
    active, item = np.unique(liked.item, return_inverse=True)
    users, user = np.unique(liked.user, return_inverse=True)
    ones = np.ones(len(user), np.float32)
    matrix = sp.csr_matrix((ones, (user.ravel(), item.ravel())), (len(users), len(active)))
    matrix.data[:] = 1
    return matrix, active


@dataclass(frozen=True)
class Members:
    """A list of the user that holds items.

    Attributes:
        feature: the list.
        of_item: [N], the id of each item of the catalogue in it; 0 for none.
    """

    feature: Feature
    of_item: Ids


@dataclass(frozen=True)
class Vectors:
    """The singular vectors of EASE, R numbers each, of M items.

    Attributes:
        members, item: the list of the user that holds items, and the feature that tells them apart.
        member_ids, item_ids: [M], their ids.
        of_members, of_items: [M, R]; a member's times an item's is what the one says of the other.
    """

    members: Feature
    item: Feature
    member_ids: Ids
    item_ids: Ids
    of_members: Floats
    of_items: Floats

    @classmethod
    def of(cls, dataset: Dataset, width: int) -> Vectors:
        """Those of the training rows, `width` numbers at most. Raises CannotBegin: the rows or
        their features do not say what is needed."""
        events = Events.read(dataset, "train").known()
        members, (item, ids) = members_of(dataset, events), own_ids(dataset)
        events = events.take((members.of_item > 0)[events.item] & (ids >= FIRST)[events.item])
        matrix, items = users_by_items(_fewer(events))
        if len(items) <= width:
            raise CannotBegin(f"only {len(items)} items were liked")
        left, size, right = randomized_svd(weights(matrix, L2), width, n_iter=4, random_state=0)
        root = np.sqrt(size * LOGIT).astype(np.float32)
        places = members.feature, item, members.of_item[items], ids[items]
        return cls(*places, left * root, right.T * root)

    def give(self, towers: TwoTower) -> None:
        """Let a retriever of factors begin with these vectors."""
        for feature, ids, vectors in (
            (self.members, self.member_ids, self.of_members),
            (self.item, self.item_ids, self.of_items),
        ):
            towers.begin(feature, torch.from_numpy(ids), torch.from_numpy(vectors))


class Start:
    """EASE of a data set, from which models of factors begin; computed once for each width."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self._vectors = dataset, dict[int, Vectors]()

    def give(self, name: str, scorer: Scorer) -> None:
        """Let a model of factors begin with EASE, where the log has what it is made of, and print
        which, or why not."""
        if not isinstance(scorer, TwoTower) or not scorer.factors:
            return
        width = scorer.item_width - 1  # the last is a bias
        try:
            if width not in self._vectors:
                self._vectors[width] = Vectors.of(self._dataset, width)
        except CannotBegin as error:
            print(f"{name}: begins without EASE, because {error}")
            return
        found = self._vectors[width]
        found.give(scorer)
        print(
            f"{name}: begins with EASE, as vectors of {len(found.item_ids):,} items and of the "
            f"members of {found.members.name}"
        )


def members_of(dataset: Dataset, events: Events) -> Members:
    """The list of the user that holds what the user liked before."""
    drawn = dataset.sample("train", ROWS)
    if drawn.user is None:
        raise CannotBegin("the log does not say whose the rows are")
    offsets, liked = Seen.made(events.liked(), dataset).before(drawn.user, drawn.time, "train")
    row = np.repeat(np.arange(len(drawn)), np.diff(offsets))
    for feature in dataset.schema.ids("user"):
        if feature.multivalued and feature.encoding == "vocabulary":
            start = dataset.schema.first_column(feature)
            held = drawn.user_ids[:, start : start + feature.length]
            count = (held >= FIRST).sum()
            for of_item in ids_in(dataset, feature):
                known = of_item[liked] > 0
                pairs = row[known] * feature.cardinality + of_item[liked][known]
                asked = np.arange(len(held))[:, None] * feature.cardinality + held
                if (np.isin(asked, pairs) & (held >= FIRST)).sum() > count / 2:
                    return Members(feature, of_item)
    raise CannotBegin("no list of the user with a vocabulary holds what the user liked before")


def own_ids(dataset: Dataset) -> tuple[Feature, Ids]:
    """The feature that tells items apart, and the id of each item in it [N]."""
    ids = dataset.items()[1]
    for feature in dataset.schema.ids("item"):
        column = ids[:, dataset.schema.first_column(feature)]
        known = column[column >= FIRST]
        if not feature.multivalued and len(np.unique(known)) > 0.95 * len(known) > 0:
            return feature, column
    raise CannotBegin("no feature tells the items apart")


def ids_in(dataset: Dataset, feature: Feature) -> Iterator[Ids]:
    """The id in a list of each item [N], by the item's id or by the value of a feature of it."""
    vocabulary = dataset.encoder.vocabulary(feature)
    names = [str(item).encode() for item in dataset.item_ids().tolist()]
    yield np.array([vocabulary.get(name, 0) for name in names], np.int64)
    ids = dataset.items()[1]
    for other in dataset.schema.ids("item"):
        if not other.multivalued and other.encoding == "vocabulary":
            table = np.zeros(other.cardinality, np.int64)
            for name, number in dataset.encoder.vocabulary(other).items():
                table[number] = vocabulary.get(name, 0)
            yield table[ids[:, dataset.schema.first_column(other)]]


def _fewer(events: Events) -> Events:
    """The positives of at most `USERS` users and of the `ITEMS` that were liked most."""
    liked = events.liked()
    counts = np.bincount(liked.item)
    if np.count_nonzero(counts) > ITEMS:
        most = np.argsort(-counts, kind="stable")[:ITEMS]
        liked = liked.take(np.isin(liked.item, most))
    return of_some_users(liked)
