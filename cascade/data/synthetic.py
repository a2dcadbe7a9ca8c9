"""A planted world of clicks in the Criteo schema, so the best possible answer is known.

    logit(user, item) = bias + a(user) + c(item) + <u(user), v(item)>

`a` bends with the user's numbers and adds up over the user's categories; `c` adds up over the
item's. `u` and `v` have one plane for each pair of a user and an item category, in which all values
are equally long, so no item suits every user. A logistic regression can learn `a` and `c` but not
the product. Items are shown with a skewed popularity, whatever the user. A missing value is a value
of its own, so no model can do better than the probability.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cascade.data.criteo import NUMBERS, SCHEMA
from cascade.data.source import SPLITS, DataError, Split

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

CHUNK_ROWS = 131_072
MISSING_SHARE = 0.05
# Distinct values of each category; the last item feature tells items apart and says nothing else.
USER_CATEGORIES = (50, 30, 20, 100, 400, 1000)
ITEM_CATEGORIES = (100, 50, 30, 20, 200, 500, 10, 25, 60, 5, 12, 40, 30, 8, 80, 20, 16, 100, 50)
PLANES = 3  # category pairs (C1, C7), (C2, C8), … whose directions make the product
INFORMATIVE_NUMBERS, INFORMATIVE_USER, INFORMATIVE_ITEM = 3, 3, 4
USER_STD, ITEM_STD, PRODUCT_STD, BIAS = 0.5, 0.5, 1.2, -1.6


@dataclass(frozen=True)
class Users:
    """numbers float [B, 13], NaN = missing; categories [B, 6], -1 = missing."""

    numbers: Floats
    categories: Codes


@dataclass(frozen=True)
class Synthetic:
    """A source of rows, and the planted world itself: `rows` impressions of `items` items, all
    drawn from `seed`."""

    rows: int = 1_400_000
    items: int = 100_000
    seed: int = 0

    schema = SCHEMA
    log = "impressions"

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
        return {"source": "synthetic", "model": 3, **asdict(self)}

    @property
    def total_rows(self) -> int:
        return self.rows

    @cached_property
    def _effects(self) -> dict[str, list[Floats]]:
        """What the values of categories do; row -1 of each array is that of a missing value."""
        random = np.random.default_rng(self.seed)

        def planes(sizes: tuple[int, ...]) -> list[Floats]:
            angles = [random.uniform(0, 2 * np.pi, size + 1) for size in sizes[:PLANES]]
            return [np.stack((np.cos(a), np.sin(a)), 1) for a in angles]

        def biases(sizes: tuple[int, ...], informative: int) -> list[Floats]:
            return [random.normal(0, informative**-0.5, n + 1) for n in sizes[:informative]]

        return {
            "user": planes(USER_CATEGORIES),
            "item": planes(ITEM_CATEGORIES),
            "user_bias": biases(USER_CATEGORIES, INFORMATIVE_USER),
            "item_bias": biases(ITEM_CATEGORIES, INFORMATIVE_ITEM),
            "curve": [random.normal(0, 0.5, INFORMATIVE_NUMBERS)],
        }

    def _side(self, side: str, codes: Codes) -> tuple[Floats, Floats]:
        """Categories [B, C] -> directions [B, 2 * PLANES] and the sum of the biases [B]."""
        planes, biases = self._effects[side], self._effects[f"{side}_bias"]
        directions = [plane[codes[:, k]] for k, plane in enumerate(planes)]
        total = sum(bias[codes[:, k]] for k, bias in enumerate(biases))
        return np.concatenate(directions, axis=1), np.asarray(total)

    @cached_property
    def item_categories(self) -> Codes:
        """[N, 20]: the values of every item, -1 = missing; the last is the item's own."""
        codes = _categories(np.random.default_rng((self.seed, 1)), ITEM_CATEGORIES, self.items)
        return np.concatenate((codes, np.arange(self.items)[:, None]), axis=1)

    @cached_property
    def item_effects(self) -> tuple[Floats, Floats]:
        """-> v [N, 2 * PLANES] and c [N]."""
        v, c = self._side("item", self.item_categories)
        return v * PRODUCT_STD * (2 / PLANES) ** 0.5, c * ITEM_STD

    def users(self, random: np.random.Generator, count: int) -> Users:
        numbers = np.floor(np.exp(random.normal(2.0, 1.0, (count, 13))))
        numbers[random.random(numbers.shape) < MISSING_SHARE] = np.nan
        return Users(numbers, _categories(random, USER_CATEGORIES, count))

    def user_effects(self, users: Users) -> tuple[Floats, Floats]:
        """-> u [B, 2 * PLANES] and a [B]."""
        u, bias = self._side("user", users.categories)
        z = np.log1p(users.numbers[:, :INFORMATIVE_NUMBERS]) - 2.0  # about standard normal
        bend = np.nan_to_num(np.abs(z) - 0.8, nan=0.0) @ self._effects["curve"][0]
        return u, bias * USER_STD + bend

    def probability(self, users: Users, items: Codes) -> Floats:
        """The true click probability [B] of B users, each with one item's row."""
        u, a = self.user_effects(users)
        v, c = self.item_effects
        logits = BIAS + a + c[items] + (u * v[items]).sum(1)
        return np.asarray(1 / (1 + np.exp(-logits)))

    def chunks(self, split: Split) -> Iterator[pa.Table]:
        """Rows of a split: the last seventh is held out, half for validation, half for testing."""
        held_out = self.rows // 7
        half = held_out // 2
        rows = {"train": self.rows - held_out, "validation": half, "test": held_out - half}[split]
        number = SPLITS.index(split)
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
                **dict(zip(NUMBERS, users.numbers.astype(np.float32).T, strict=True)),
                **_hex_columns(1, users.categories, USER_CATEGORIES),
                **_hex_columns(7, self.item_categories[items], (*ITEM_CATEGORIES, self.items)),
            }
            yield pa.table(columns)

    def catalogue(self) -> pa.Table:
        """Every item, shown or not."""
        columns = _hex_columns(7, self.item_categories, (*ITEM_CATEGORIES, self.items))
        return pa.table({"item_id": np.arange(self.items), **columns})


def _categories(random: np.random.Generator, sizes: tuple[int, ...], count: int) -> Codes:
    """[count, C], -1 = missing."""
    codes = np.stack([_skewed(random, size, count) for size in sizes], axis=1)
    codes[random.random(codes.shape) < MISSING_SHARE] = -1
    return codes


def _skewed(random: np.random.Generator, size: int, count: int) -> Codes:
    """Codes below `size`, the low ones far more often: density falls like rank^-0.5."""
    return (size * random.random(count) ** 2).astype(np.int64)


def _hex_columns(first: int, codes: Codes, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Codes as eight hex digits, in columns C<first>, C<first + 1>, …; missing as empty."""
    columns = {}
    for position, size in enumerate(sizes):
        start = (first + position) * 0x1234567
        values = [f"{(start + code * 2654435761) % 2**32:08x}" for code in range(size)]
        names = pa.array([*values, ""])
        columns[f"C{first + position}"] = names.take(pa.array(codes[:, position] % (size + 1)))
    return columns
