"""A planted world of clicks in the Criteo schema, so the best possible answer is known.

    logit(user, item) = bias + a(user) + c(item) + <u(user), v(item)>

`a` bends with the user's numbers and adds up over the user's categories; `c` adds up over the
item's. `u` and `v` have one plane for each pair of a user and an item category, in which all values
are equally long, so no item suits every user. A logistic regression can learn `a` and `c` but not
the product. Items are shown with a skewed popularity, whatever the user. A missing value is a value
of its own, so no model can do better than the probability.

With `tasks=3`, clicked rows may be engaged with, or bring revenue. The chance of either, given the
click, is

    logit_t(user, item) = bias_t + a_t(user) + c_t(item) + <u_t(user), v_t(item)>

with effects of the task's own, in one plane, so that its chance has a part that it shares with the
click and a part of its own. What a purchase brings does not depend on who buys what, so that the
mean revenue orders rows as the chance of a purchase does. `tasks=2` leaves out the revenue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cascade.data.criteo import NUMBERS, SCHEMA
from cascade.data.source import SPLITS, TASK, TRUTH, DataError, Split
from cascade.schema import Schema, Task

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
TASKS = (Task("click"), Task("engagement", weight=0.5), Task("revenue", "amount", 0.3))
GIVEN_CLICK = {"engagement": 0.0, "revenue": -1.0}  # bias_t
AMOUNT_SHAPE, AMOUNT_MEAN = 2.0, 6.0  # of what a purchase brings, gamma distributed


@dataclass(frozen=True)
class Users:
    """numbers float [B, 13], NaN = missing; categories [B, 6], -1 = missing."""

    numbers: Floats
    categories: Codes


@dataclass(frozen=True)
class Synthetic:
    """A source of rows, and the planted world itself: `rows` impressions of `items` items, all
    drawn from `seed`, with the labels of the first `tasks` of `TASKS`. How many tasks there are
    changes no feature and no click."""

    rows: int = 1_400_000
    items: int = 100_000
    seed: int = 0
    tasks: int = 1

    log = "impressions"

    @classmethod
    def parse(cls, options: str) -> Synthetic:
        """Read `rows=…,items=…,seed=…,tasks=…`; what is absent keeps its default."""
        values: dict[str, int] = {}
        for option in filter(None, options.split(",")):
            name, _, value = option.partition("=")
            if name not in ("rows", "items", "seed", "tasks") or not value.isdigit():
                raise DataError(
                    f"synthetic data: {option!r} is not an option; give rows=…, items=…, seed=…, "
                    "tasks=… as whole numbers, separated by commas"
                )
            values[name] = int(value)
        if values.get("rows", 100) < 100 or values.get("items", 1) < 1:
            raise DataError(f"synthetic data needs 100 rows and 1 item at least; got {options!r}")
        if not 1 <= values.get("tasks", 1) <= len(TASKS):
            raise DataError(f"synthetic data has 1 to {len(TASKS)} tasks; got {options!r}")
        return cls(**values)

    @property
    def schema(self) -> Schema:
        return replace(SCHEMA, tasks=TASKS[: self.tasks])

    @property
    def fingerprint(self) -> dict[str, Any]:
        found = {"source": "synthetic", "model": 3, **asdict(self)}
        if self.tasks == 1:  # as it was before there were others
            del found["tasks"]
        return found

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

    @cached_property
    def _own_effects(self) -> dict[str, dict[str, list[Floats]]]:
        """By further task and side, what the values of categories do to it alone: one plane, then
        the biases; row -1 of each array is that of a missing value."""
        random = np.random.default_rng((self.seed, 4))

        def side(sizes: tuple[int, ...], informative: int) -> list[Floats]:
            angle = random.uniform(0, 2 * np.pi, sizes[0] + 1)
            biases = [random.normal(0, informative**-0.5, n + 1) for n in sizes[:informative]]
            return [np.stack((np.cos(angle), np.sin(angle)), 1), *biases]

        return {
            task.name: {
                "user": side(USER_CATEGORIES, INFORMATIVE_USER),
                "item": side(ITEM_CATEGORIES, INFORMATIVE_ITEM),
            }
            for task in TASKS[1:]
        }

    def given_click(self, task: str, users: Users, items: Codes) -> Floats:
        """The true chance [B] that B users, each with one item's row that they clicked, engage with
        it, or buy."""
        effects, categories = self._own_effects[task], self.item_categories[items]
        logits = np.full(len(items), GIVEN_CLICK[task])
        for side, codes, std in (
            ("user", users.categories, USER_STD),
            ("item", categories, ITEM_STD),
        ):
            for k, bias in enumerate(effects[side][1:]):
                logits += std * bias[codes[:, k]]
        u, v = effects["user"][0][users.categories[:, 0]], effects["item"][0][categories[:, 0]]
        logits += PRODUCT_STD * (u * v).sum(1)
        return np.asarray(1 / (1 + np.exp(-logits)))

    def _further(
        self,
        random: np.random.Generator,
        users: Users,
        items: Codes,
        clicked: npt.NDArray[np.bool_],
        probability: Floats,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The columns of the further tasks of B rows: labels, and true chances or means."""
        columns = {}
        for task in TASKS[1 : self.tasks]:
            chance = self.given_click(task.name, users, items)
            label = (clicked & (random.random(len(items)) < chance)).astype(np.float64)
            truth = probability * chance
            if task.kind == "amount":
                label *= random.gamma(AMOUNT_SHAPE, AMOUNT_MEAN / AMOUNT_SHAPE, len(items))
                truth = truth * AMOUNT_MEAN
            columns[f"{TASK}{task.name}"] = label.astype(np.float32)
            columns[f"{TRUTH}{task.name}"] = truth.astype(np.float32)
        return columns

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
            clicked = random.random(count) < probability
            own = np.random.default_rng((self.seed, 5, number, chunk))
            columns: dict[str, Any] = {
                "label": clicked.astype(np.float32),
                "item_id": items,
                "probability": probability.astype(np.float32),
                **self._further(own, users, items, clicked, probability),
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
