"""A team that does not know this repository: plain PyTorch, its own vocabularies, pads and code.

What a team has: raw tables, dictionaries of value to embedding row in its own numbering, two
towers, a preranker and a ranker, and a function that answers a raw user with ten items.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

USERS, ITEMS, LENGTH, TAGS = 300, 1500, 8, 3
BRANDS, WIDTH = 50, 16
CANDIDATES, SURVIVORS, RESULTS = 400, 100, 10
AGE_MEAN, AGE_STD = 38.0, 14.0


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Items(nn.Module):
    """sku [n], category [n], brand [n], tags [n, TAGS], price [n] -> [n, 4 * WIDTH + 1]."""

    def __init__(self, skus: int, categories: int, tags: int) -> None:
        super().__init__()
        self.sku = nn.Embedding(skus, WIDTH)
        self.category = nn.Embedding(categories, WIDTH)
        self.brand = nn.Embedding(BRANDS + 1, WIDTH)
        self.tags = nn.EmbeddingBag(tags, WIDTH, mode="mean", padding_idx=0)

    def forward(
        self, sku: Tensor, category: Tensor, brand: Tensor, tags: Tensor, price: Tensor
    ) -> Tensor:
        parts = (self.sku(sku), self.category(category), self.brand(brand), self.tags(tags))
        return torch.cat((*parts, price.unsqueeze(1)), dim=1)


class Users(nn.Module):
    """user [n], country [n], history [n, LENGTH], numbers [n, 2] -> [n, 3 * WIDTH + 2]. The history
    is looked up in the table of the items, and averaged over what is no pad."""

    def __init__(self, users: int, countries: int, sku: nn.Embedding) -> None:
        super().__init__()
        self.user = nn.Embedding(users, WIDTH)
        self.country = nn.Embedding(countries, WIDTH)
        self.sku = sku
        self.normal = nn.BatchNorm1d(2)

    def forward(self, user: Tensor, country: Tensor, history: Tensor, numbers: Tensor) -> Tensor:
        real = (history != 0).unsqueeze(-1).to(numbers.dtype)
        seen = (self.sku(history) * real).sum(1) / real.sum(1).clamp(min=1)
        return torch.cat(
            (self.user(user), self.country(country), seen, self.normal(numbers)), dim=1
        )


class TwoTower(nn.Module):
    """Vectors that are not normalised."""

    def __init__(self, sizes: dict[str, int], width: int = 24) -> None:
        super().__init__()
        self.items = Items(sizes["sku"], sizes["category"], sizes["tag"])
        self.users = Users(sizes["user"], sizes["country"], self.items.sku)
        self.user_layers = mlp(3 * WIDTH + 2, 64, width)
        self.item_layers = mlp(4 * WIDTH + 1, 64, width)


class UserTower(TwoTower):
    """The half that a request needs."""

    def forward(self, user: Tensor, country: Tensor, history: Tensor, numbers: Tensor) -> Tensor:
        return self.user_layers(self.users(user, country, history, numbers))


class ItemTower(TwoTower):
    """The half that the catalogue needs."""

    def forward(
        self, sku: Tensor, category: Tensor, brand: Tensor, tags: Tensor, price: Tensor
    ) -> Tensor:
        return self.item_layers(self.items(sku, category, brand, tags, price))


class Ranker(nn.Module):
    """An MLP over all features of a pair -> logit [n]."""

    def __init__(self, sizes: dict[str, int], hidden: list[int]) -> None:
        super().__init__()
        self.items = Items(sizes["sku"], sizes["category"], sizes["tag"])
        self.users = Users(sizes["user"], sizes["country"], self.items.sku)
        self.layers = mlp(7 * WIDTH + 3, *hidden, 1)

    def forward(
        self, user: Tensor, country: Tensor, history: Tensor, numbers: Tensor,
        sku: Tensor, category: Tensor, brand: Tensor, tags: Tensor, price: Tensor,
    ) -> Tensor:  # fmt: skip
        users = self.users(user, country, history, numbers)
        items = self.items(sku, category, brand, tags, price)
        return self.layers(torch.cat((users, items), dim=1)).squeeze(1)


@dataclass
class Team:
    """Raw users and items, dictionaries, models, and the code that answers."""

    users: list[dict[str, Any]]
    items: list[dict[str, Any]]
    dictionaries: dict[str, dict[str, int]]
    tower: TwoTower
    preranker: Ranker
    ranker: Ranker

    @classmethod
    def made(cls, seed: int = 0, users: int = USERS, items: int = ITEMS) -> Team:
        """Draw the tables, number the values in an order of the team's own, train for a moment."""
        random = np.random.default_rng(seed)
        torch.manual_seed(seed)
        skus = [f"SKU-{i:05d}" for i in range(items)]
        names = [f"user{i}" for i in range(users)]
        countries = ["de", "fr", "it", "jp", "us", "中国"]
        categories, tags = [f"c{i}" for i in range(20)], [f"t{i}" for i in range(30)]
        goods = [
            {
                "id": (1 << 53) + 7 * number,  # no float64 holds all of these
                "sku": sku,
                "category": categories[random.integers(20)],
                "brand": f"brand {random.integers(200)}",
                "tags": random.choice(tags, random.integers(0, TAGS + 1), replace=False).tolist(),
                "price": round(float(random.lognormal(3, 1)), 2),
            }
            for number, sku in enumerate(skus)
        ]
        people = [
            {
                "user": name if random.random() > 0.1 else f"guest{i}",
                "country": countries[random.integers(6)] if random.random() > 0.05 else None,
                "history": random.choice(skus, random.integers(0, LENGTH + 4)).tolist(),
                "age": float(random.integers(16, 80)) if random.random() > 0.2 else None,
                "visits": float(random.integers(0, 500)),
            }
            for i, name in enumerate(names)
        ]
        numbered = {"sku": skus, "user": names, "country": countries, "category": categories}
        dictionaries = {}
        for key, values in {**numbered, "tag": tags}.items():
            order = random.permutation(len(values))  # pad and unknown first, then in no order
            dictionaries[key] = {value: 2 + int(i) for value, i in zip(values, order, strict=True)}
        sizes = {key: len(values) + 2 for key, values in dictionaries.items()}
        tower, small, large = TwoTower(sizes), Ranker(sizes, [16]), Ranker(sizes, [64, 32])
        team = cls(people, goods, dictionaries, tower, small, large)
        team._train(random)
        return team

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each embedding table."""
        return {key: len(values) + 2 for key, values in self.dictionaries.items()}

    def user_rows(self, users: list[dict[str, Any]]) -> tuple[Tensor, ...]:
        """Raw users -> user, country, history, numbers."""
        user, country, sku = (self.dictionaries[key] for key in ("user", "country", "sku"))
        histories = torch.zeros(len(users), LENGTH, dtype=torch.long)
        for row, one in enumerate(users):
            seen = [sku.get(value, 1) for value in one["history"][-LENGTH:]]
            histories[row, : len(seen)] = torch.tensor(seen, dtype=torch.long)
        ages = [AGE_MEAN if one["age"] is None else one["age"] for one in users]
        numbers = torch.stack(
            (
                (torch.tensor(ages) - AGE_MEAN) / AGE_STD,
                torch.log1p(torch.tensor([one["visits"] for one in users])),
            ),
            dim=1,
        )
        return (
            torch.tensor([user.get(one["user"], 1) for one in users]),
            torch.tensor(
                [0 if one["country"] is None else country.get(one["country"], 1) for one in users]
            ),
            histories,
            numbers.float(),
        )

    def item_rows(self, items: list[dict[str, Any]]) -> tuple[Tensor, ...]:
        """Raw items -> sku, category, brand, tags, price."""
        sku, category, tag = (self.dictionaries[key] for key in ("sku", "category", "tag"))
        tags = torch.zeros(len(items), TAGS, dtype=torch.long)
        for row, one in enumerate(items):
            known = [tag.get(value, 1) for value in one["tags"]]
            tags[row, : len(known)] = torch.tensor(known, dtype=torch.long)
        brands = [1 + zlib.crc32(one["brand"].encode()) % BRANDS for one in items]
        prices = torch.log1p(torch.tensor([one["price"] for one in items])).float()
        return (
            torch.tensor([sku.get(one["sku"], 1) for one in items]),
            torch.tensor([category.get(one["category"], 1) for one in items]),
            torch.tensor(brands),
            tags,
            (prices - 3) / 1.5,
        )

    def vectors(self) -> tuple[Tensor, Tensor]:
        """The vectors of all users and items."""
        with torch.inference_mode():
            users = self.tower.user_layers(self.tower.users(*self.user_rows(self.users)))
            return users, self.tower.item_layers(self.tower.items(*self.item_rows(self.items)))

    def scores(self, model: Ranker, user: dict[str, Any], items: list[int]) -> Tensor:
        """Click probabilities [n]."""
        users = (x.expand(len(items), *x.shape[1:]) for x in self.user_rows([user]))
        with torch.inference_mode():
            return torch.sigmoid(model(*users, *self.item_rows([self.items[i] for i in items])))

    def answer(self, user: dict[str, Any], items: Tensor) -> tuple[list[int], list[float]]:
        """The ten best items by position, and their scores; `items` are the vectors of all."""
        with torch.inference_mode():
            query = self.tower.user_layers(self.tower.users(*self.user_rows([user])))[0]
        rows = torch.topk(items @ query, CANDIDATES).indices.tolist()
        places = torch.topk(self.scores(self.preranker, user, rows), SURVIVORS).indices.tolist()
        rows = [rows[i] for i in places]
        best = torch.topk(self.scores(self.ranker, user, rows), RESULTS)
        return [rows[i] for i in best.indices], best.values.tolist()

    def _train(self, random: np.random.Generator, steps: int = 40, batch: int = 256) -> None:
        """So that weights and running statistics are those of a trained model."""
        models = (self.tower, self.preranker, self.ranker)
        optimiser = torch.optim.Adam([p for m in models for p in m.parameters()], lr=1e-2)
        all_users, all_items = self.user_rows(self.users), self.item_rows(self.items)
        hidden = random.normal(size=(2, max(len(self.users), len(self.items)), 4))
        for _ in range(steps):
            u = random.integers(len(self.users), size=batch)
            i = random.integers(len(self.items), size=batch)
            odds = (hidden[0, u] * hidden[1, i]).sum(1)
            label = torch.from_numpy((random.random(batch) < 1 / (1 + np.exp(-odds))).astype("f4"))
            users, items = [x[u] for x in all_users], [x[i] for x in all_items]
            towers = self.tower.user_layers(self.tower.users(*users))
            logits = [
                (towers * self.tower.item_layers(self.tower.items(*items))).sum(1),
                *(model(*users, *items) for model in models[1:]),
            ]
            loss = torch.stack(
                [nn.functional.binary_cross_entropy_with_logits(x, label) for x in logits]
            ).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        for model in models:
            model.eval()
