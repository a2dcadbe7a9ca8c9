"""Clicks drawn from a planted model in the Criteo schema, so that the best possible answer is known.

    logit(user, item) = bias + a(user) + c(item) + <u(user), v(item)>

`a` and `u` are nonlinear in the user's numbers and additive in the user's categories; `c` and `v`
are additive in the item's categories. A logistic regression can learn `a` and `c` but not the
product, which is what a cascade exists for. Items are shown with a Zipf-like popularity, whatever
the user. A missing value is a value of its own, so the probability is a function of what is
observed and no model can do better than it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cascade.data.criteo import SCHEMA
from cascade.data.source import DataError, Split

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

CHUNK_ROWS = 131_072
LATENT = 3
MISSING_SHARE = 0.05
# Distinct values of each category; the last item feature tells items apart and says nothing else.
USER_CATEGORIES = (50, 30, 20, 100, 400, 1000)
ITEM_CATEGORIES = (100, 50, 30, 20, 200, 500, *(10, 25, 60, 150, 400, 1000, 5) * 2)[:19]
INFORMATIVE_NUMBERS, INFORMATIVE_USER, INFORMATIVE_ITEM = 3, 3, 4
USER_STD, ITEM_STD, PRODUCT_STD, BIAS = 0.5, 0.5, 1.2, -1.6


@dataclass(frozen=True)
class Users:
    """numbers float [B, 13], NaN = missing; categories [B, 6], -1 = missing."""

    numbers: Floats
    categories: Codes


@dataclass(frozen=True)
class Synthetic:
    """The planted world: `rows` impressions of `items` items, all drawn from `seed`."""

    rows: int = 1_400_000
    items: int = 100_000
    seed: int = 0

    schema = SCHEMA

    @classmethod
    def parse(cls, options: str) -> Synthetic:
        """Read `rows=…,items=…,seed=…`; what is absent keeps its default."""
        values: dict[str, int] = {}
        for option in filter(None, options.split(",")):
            name, _, value = option.partition("=")
            if name not in ("rows", "items", "seed") or not value.isdigit():
                raise DataError(
                    f"synthetic data: {option!r} is not an option; give rows=…, items=…, seed=… "
                    "as whole numbers, separated by commas"
                )
            values[name] = int(value)
        if values.get("rows", 100) < 100 or values.get("items", 1) < 1:
            raise DataError(f"synthetic data needs 100 rows and 1 item at least; got {options!r}")
        return cls(**values)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"source": "synthetic", "model": 1, **asdict(self)}

    @cached_property
    def _world(self) -> dict[str, Floats]:
        """The planted effects of every category's values; row -1 is that of a missing value."""
        random = np.random.default_rng(self.seed)

        def effects(sizes: tuple[int, ...], informative: int, name: str) -> dict[str, Floats]:
            scale = (informative * LATENT**0.5) ** -0.5 * PRODUCT_STD**0.5
            tables = {}
            for feature in range(informative):
                rows = sizes[feature] + 1
                tables[f"{name}{feature}"] = random.normal(0, scale, (rows, LATENT))
                tables[f"{name}_bias{feature}"] = random.normal(0, informative**-0.5, rows)
            return tables

        return {
            **effects(USER_CATEGORIES, INFORMATIVE_USER, "user"),
            **effects(ITEM_CATEGORIES, INFORMATIVE_ITEM, "item"),
            "numbers": random.normal(0, 0.3, (INFORMATIVE_NUMBERS, LATENT)),
            "curve": random.normal(0, 0.3, INFORMATIVE_NUMBERS),
        }

    @cached_property
    def item_categories(self) -> Codes:
        """[N, 20]: the values of every item, -1 = missing; the last is the item's own."""
        random = np.random.default_rng((self.seed, 1))
        columns = [_skewed(random, size, self.items) for size in ITEM_CATEGORIES]
        codes = np.stack(columns, axis=1)
        codes[random.random(codes.shape) < MISSING_SHARE] = -1
        return np.concatenate((codes, np.arange(self.items)[:, None]), axis=1)

    @cached_property
    def _item_effects(self) -> tuple[Floats, Floats]:
        """-> v [N, L] and c [N]."""
        v, c = np.zeros((self.items, LATENT)), np.zeros(self.items)
        for feature in range(INFORMATIVE_ITEM):
            codes = self.item_categories[:, feature]
            v += self._world[f"item{feature}"][codes]
            c += self._world[f"item_bias{feature}"][codes]
        return v, ITEM_STD * c

    def _user_effects(self, users: Users) -> tuple[Floats, Floats]:
        """-> u [B, L] and a [B]."""
        z = np.log1p(users.numbers[:, :INFORMATIVE_NUMBERS]) - 2.0  # about standard normal
        z = np.nan_to_num(z, nan=0.0)
        u = np.tanh(z) @ self._world["numbers"]
        a = (np.abs(z) - 0.8) @ self._world["curve"] / USER_STD
        for feature in range(INFORMATIVE_USER):
            u += self._world[f"user{feature}"][users.categories[:, feature]]
            a += self._world[f"user_bias{feature}"][users.categories[:, feature]]
        return u, USER_STD * a

    def probability(self, users: Users, items: Codes | None = None) -> Floats:
        """The true click probability of B users: [B] with one item row for each, or [B, N] with
        every item of the catalogue."""
        u, a = self._user_effects(users)
        v, c = self._item_effects
        if items is None:
            logit = BIAS + a[:, None] + c[None, :] + u @ v.T
        else:
            logit = BIAS + a + c[items] + (u * v[items]).sum(1)
        result: Floats = 1 / (1 + np.exp(-logit))
        return result

    def users(self, random: np.random.Generator, count: int) -> Users:
        """Draw users."""
        numbers = np.floor(np.exp(random.normal(2.0, 1.0, (count, 13))))
        numbers[random.random(numbers.shape) < MISSING_SHARE] = np.nan
        categories = np.stack([_skewed(random, size, count) for size in USER_CATEGORIES], axis=1)
        categories[random.random(categories.shape) < MISSING_SHARE] = -1
        return Users(numbers, categories)

    def chunks(self, split: Split) -> Iterator[pa.Table]:
        """Rows of a split: the last seventh is held out, half for validation, half for testing."""
        held_out = self.rows // 7
        half = held_out // 2
        rows = {"train": self.rows - held_out, "validation": half, "test": held_out - half}[split]
        number = ("train", "validation", "test").index(split)
        order = np.random.default_rng((self.seed, 2)).permutation(self.items)
        for chunk, start in enumerate(range(0, rows, CHUNK_ROWS)):
            random = np.random.default_rng((self.seed, 3, number, chunk))
            count = min(CHUNK_ROWS, rows - start)
            users = self.users(random, count)
            items = order[_skewed(random, self.items, count)]
            probability = self.probability(users, items)
            columns: dict[str, Any] = {
                "label": (random.random(count) < probability).astype(np.float32),
                "item_id": items,
                "probability": probability.astype(np.float32),
                **_user_columns(users),
                **_hex_columns(7, self.item_categories[items], (*ITEM_CATEGORIES, self.items)),
            }
            yield pa.table(columns)

    def catalogue(self) -> pa.Table:
        """Every item, shown or not."""
        sizes = (*ITEM_CATEGORIES, self.items)
        columns = _hex_columns(7, self.item_categories, sizes)
        return pa.table({"item_id": np.arange(self.items), **columns})


def _skewed(random: np.random.Generator, size: int, count: int) -> Codes:
    """Codes below `size`, the low ones far more often: density falls like rank^-0.5."""
    return (size * random.random(count) ** 2).astype(np.int64)


def _user_columns(users: Users) -> dict[str, Any]:
    numbers = {f"I{i + 1}": users.numbers[:, i].astype(np.float32) for i in range(13)}
    return {**numbers, **_hex_columns(1, users.categories, USER_CATEGORIES)}


def _hex_columns(first: int, codes: Codes, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Codes as eight hex digits, in columns C<first>, C<first + 1>, …; missing as empty."""
    columns = {}
    for position, size in enumerate(sizes):
        start = (first + position) * 0x1234567
        values = [f"{(start + code * 2654435761) % 2**32:08x}" for code in range(size)]
        names = pa.array([*values, ""])
        columns[f"C{first + position}"] = names.take(pa.array(codes[:, position] % (size + 1)))
    return columns
