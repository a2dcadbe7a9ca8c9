"""EASE, the closed form of which items users like together, and a retriever that begins with it.

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
from cascade.models.two_tower import TwoTower
from cascade.schema import Feature

Floats = npt.NDArray[np.floating[Any]]

MOST_OF_USER = 500  # the newest positives of a user that say which items go together
L2 = 300.0  # of the EASE that training begins with
ITEMS = 8_192  # most liked, that it is made of: an inverse of some seconds
USERS = 50_000  # drawn, that it is made of
SHARPNESS = 30.0  # of its scores, as logits over a catalogue
ROWS = 2_000  # of the log, which tell whether a list holds what its user liked


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


def users_by_items(events: Events) -> tuple[sp.csr_matrix, Ids]:
    """-> 1 where a user liked an item [U, M], the M items with a positive."""
    liked = events.liked().sorted()
    users, starts, size = np.unique(liked.user, return_index=True, return_counts=True)
    from_end = np.repeat(starts + size, size) - np.arange(len(liked.user))
    newest = from_end <= MOST_OF_USER
    active, item = np.unique(liked.item[newest], return_inverse=True)
    user = np.searchsorted(users, liked.user[newest])
    ones = np.ones(len(user), np.float32)
    matrix = sp.csr_matrix((ones, (user, item.ravel())), (len(users), len(active)))
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


def begin(retriever: TwoTower, dataset: Dataset) -> str:
    """Give a retriever of factors the singular vectors of EASE; -> in words what was done, or why
    nothing was."""
    events = Events.read(dataset, "train").known()
    members, own = members_of(dataset, events), own_ids(dataset)
    if members is None:
        return "no list of the user holds items, which the vectors of EASE would stand for"
    if own is None:
        return "no feature tells items apart, which a vector of EASE would stand for"
    feature, ids = own
    events = events.take((members.of_item > 0)[events.item] & (ids >= FIRST)[events.item])
    matrix, items = users_by_items(_fewer(events))
    width = min(retriever.item_width - 1, len(items) - 1)
    if width < 1:
        return "too few items were liked for EASE"
    left, size, right = randomized_svd(weights(matrix, L2), width, n_iter=4, random_state=0)
    root = np.sqrt(size * SHARPNESS)
    for tower, of, rows, vectors in (
        (retriever.user_tower, members.feature, members.of_item[items], left * root),
        (retriever.item_tower, feature, ids[items], right.T * root),
    ):
        tower.begin(of, torch.from_numpy(rows), torch.from_numpy(vectors.astype(np.float32)))
    return (
        f"begins with the vectors of EASE for {len(items):,} items and as members of "
        f"{members.feature.name}"
    )


def members_of(dataset: Dataset, events: Events) -> Members | None:
    """The list of the user that holds what the user liked before, if there is one."""
    drawn = dataset.sample("train", ROWS)
    if drawn.user is None:
        return None
    offsets, liked = Seen.made(events.liked(), dataset).before(drawn.user, drawn.time, "train")
    row = np.repeat(np.arange(len(drawn)), np.diff(offsets))
    for feature in dataset.schema.ids("user"):
        if feature.multivalued and feature.encoding == "vocabulary":
            start = dataset.schema.first_column(feature)
            held = drawn.user_ids[:, start : start + feature.length]
            count = (held >= FIRST).sum()
            for of_item in _ids_in(dataset, feature):
                known = of_item[liked] > 0
                pairs = row[known] * feature.cardinality + of_item[liked][known]
                asked = np.arange(len(held))[:, None] * feature.cardinality + held
                if (np.isin(asked, pairs) & (held >= FIRST)).sum() > count / 2:
                    return Members(feature, of_item)
    return None


def own_ids(dataset: Dataset) -> tuple[Feature, Ids] | None:
    """The feature that tells items apart, and the id of each item in it [N]."""
    ids = dataset.items()[1]
    for feature in dataset.schema.ids("item"):
        column = ids[:, dataset.schema.first_column(feature)]
        known = column[column >= FIRST]
        if not feature.multivalued and len(np.unique(known)) > 0.95 * len(known) > 0:
            return feature, column
    return None


def _ids_in(dataset: Dataset, feature: Feature) -> Iterator[Ids]:
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
    users = np.unique(liked.user)
    if len(users) > USERS:
        drawn = np.random.default_rng(0).choice(users, USERS, replace=False)
        liked = liked.take(np.isin(liked.user, drawn))
    return liked
