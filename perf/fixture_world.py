"""Items in clusters and users who are interested in some of them, as a trained pair of towers
would see them.

Every cluster has a centre in a latent space of `LATENT` dimensions and prefers a few values of
every item feature. An item takes most of its values from what its cluster prefers and the others
from everywhere, so clusters have no sharp edge and run into each other. A user is interested in
one cluster most of all and in two more besides. `fit` then finds one vector for every value, such
that the sum over a row's values comes near to the row's place: what training the embeddings of
both towers would lead to, without the training. Users thus lie where items are; the queries of a
random pair of towers lie elsewhere, and no index looks good on those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from tqdm import tqdm

from perf.fixture_tables import skewed

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[Any]  # int32 or int64

LATENT = 8
CLUSTERS_PER_ROOT = 1.5  # clusters per sqrt(N)
CLUSTER_SKEW = 0.5  # the r-th largest cluster has r ^ -0.5 of the items of the largest
PREFERRED = 4  # values of every feature that a cluster prefers, each half as often as the last
FOREIGN = 0.15  # share of an item's values that come from everywhere
INTERESTS = (0.7, 0.2, 0.1)  # of a user in the clusters that he likes
FITTED_ITEMS = 200_000
SWEEPS = 30
CHUNK = 131_072


@dataclass(frozen=True)
class World:
    """centres float32 [C, LATENT], the share of the items in each cluster [C], and the cluster of
    every item int32 [N]."""

    centres: Floats
    shares: npt.NDArray[np.float64]
    of_item: Ids

    @classmethod
    def draw(cls, random: np.random.Generator, items: int) -> World:
        """Clusters for so many items."""
        count = max(4, round(CLUSTERS_PER_ROOT * items**0.5))
        shares = np.arange(1, count + 1) ** -CLUSTER_SKEW
        shares /= shares.sum()
        centres = random.standard_normal((count, LATENT), dtype=np.float32)
        return cls(centres, shares, random.choice(count, items, p=shares).astype(np.int32))

    def item_codes(self, random: np.random.Generator, sizes: list[int]) -> Ids:
        """[N, features]: every item's values as codes below the features' `sizes`."""
        codes = np.empty((len(self.of_item), len(sizes)), np.int32)
        shape = (len(self.centres), PREFERRED)
        preferred = [skewed(random, size, shape) for size in sizes]
        chances = 0.5 ** np.arange(PREFERRED)
        chances /= chances.sum()
        with tqdm(total=len(codes), desc="items", unit=" items", unit_scale=True) as bar:
            for start in range(0, len(codes), CHUNK):
                cluster = self.of_item[start : start + CHUNK]
                for column, size in enumerate(sizes):
                    which = random.choice(PREFERRED, len(cluster), p=chances)
                    values = preferred[column][cluster, which]
                    foreign = np.flatnonzero(random.random(len(cluster)) < FOREIGN)
                    values[foreign] = skewed(random, size, len(foreign))
                    codes[start : start + CHUNK, column] = values
                bar.update(len(cluster))
        return codes

    def interests(self, random: np.random.Generator, users: int) -> tuple[Floats, Ids]:
        """Users by what they like -> their places [B, LATENT] and first clusters [B]."""
        liked = random.choice(len(self.centres), (users, len(INTERESTS)), p=self.shares)
        weights = np.asarray(INTERESTS, np.float32)
        return np.einsum("bkl,k->bl", self.centres[liked], weights), liked[:, 0]


@dataclass(frozen=True)
class Values:
    """The vectors [n, LATENT] of those values of one side that were seen, and their rows [n] in
    the side's one embedding table."""

    rows: Ids
    vectors: Floats


def fit(ids: Ids, places: Floats, cardinalities: list[int]) -> Values:
    """Vectors of values whose sum over a row comes near to the row's place.

    Simultaneous iterative reconstruction (Gilbert, J. Theor. Biol. 36, 1972): every value moves by
    the mean of what its rows miss, divided by the number of features. A value of many rows ends
    near their mean, which says little; a rare one near what tells its rows from others.

    Args:
        ids: [B, F] encoded. places: [B, LATENT]. cardinalities: [F], of the features' tables.
    """
    features = ids.shape[1]
    offsets = np.concatenate(([0], np.cumsum(cardinalities)[:-1]))
    rows, columns = np.unique((ids + offsets).ravel(), return_inverse=True)
    ones = np.ones(columns.size, np.float32)
    starts = np.arange(0, columns.size + 1, features)
    shown = csr_array((ones, columns.ravel(), starts), shape=(len(ids), len(rows)))
    by_value = shown.T.tocsr()
    step = 1 / (features * np.maximum(by_value.sum(axis=1), 1)).astype(np.float32)
    vectors = np.zeros((len(rows), places.shape[1]), np.float32)
    for _ in range(SWEEPS):
        vectors += step[:, None] * (by_value @ (places - shown @ vectors))
    return Values(rows, vectors)


def fit_items(world: World, ids: Ids, cardinalities: list[int]) -> Values:
    """`fit` on as many items as it takes: they are in no order, so the first ones will do."""
    some = slice(0, FITTED_ITEMS)
    return fit(ids[some], world.centres[world.of_item[some]], cardinalities)
