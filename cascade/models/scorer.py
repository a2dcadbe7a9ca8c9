"""The contract of every model: user once per request, item once per export, cross per candidate.

A state is one packed float tensor per row, so that what is precomputed for an item is one row of
one matrix: one gather and one memory-mapped file, whatever the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from cascade.schema import Schema, Side, TaskKind

EXACT = 1 << 24  # float32 holds every integer up to here


class Scorer(nn.Module):
    """A model that scores items for users.

    A model is built from a schema (and its own configuration) and defines either `forward`, or all
    three of `user`, `item` and `cross`:

    - `user(dense, ids)` -> user state [B, U]: all that depends on the user alone;
    - `item(dense, ids)` -> item state [N, V]: all that depends on the item alone;
    - `cross(user, item)` -> logits [B, K], or [B, K, T] for T tasks: the rest.

    Such a model also says which of its parts (modules, parameters, buffers) belong to one side:
    `user_parts` and `item_parts`. A served graph leaves the item's parts out, because it reads
    stored item states, and int8 spares the user's, which see one row only.
    `cascade.models.contract.check` runs a model and tells when a declaration is wrong.

        >>> from cascade.models.contract import check
        >>> from cascade.models.embeddings import Embeddings
        >>> from cascade.schema import Feature
        >>> class Movies(Scorer):
        ...     def __init__(self, schema):
        ...         super().__init__(schema)
        ...         self.user_width = self.item_width = 8
        ...         self.person = Embeddings(schema.ids("user"), 8)
        ...         self.movie_table = Embeddings(schema.ids("item"), 8)
        ...         self.both = nn.Linear(8, 1)
        ...     def user_parts(self):
        ...         return ("person",)
        ...     def item_parts(self):
        ...         return ("movie_table",)
        ...     def user(self, dense, ids):
        ...         return self.person(ids).sum(1)
        ...     def item(self, dense, ids):
        ...         return self.movie_table(ids).sum(1)
        ...     def cross(self, user, item):
        ...         return self.both(user.unsqueeze(1) * item.to(user.dtype)).squeeze(-1)
        >>> movie = Feature("movie", "item", "categorical", "vocabulary", cardinality=1682)
        >>> person = Feature("person", "user", "categorical", "vocabulary", cardinality=943)
        >>> schema = Schema("movies", (person, movie))
        >>> model = Movies(schema)
        >>> check(model)

    With `forward` alone, a model is the textbook's: one function of (user, item) rows, as the first
    of docs/add-a-model.md. It works everywhere. Its states are the packed features, and `cross`
    calls `forward` on every pair of a user and a candidate, so the user's part is computed for each
    candidate anew. An export to ONNX derives the split from the graph of `forward` instead.

    A model of several tasks names them in `tasks` and gives one logit for each; what a logit says
    is the kind of the task in the schema. The cascade orders items by the first task, or by a
    formula of all.
    """

    needs: tuple[str, ...] = ()  # of the schema: `ids` of users and items, a `history`
    tasks: tuple[str, ...] = ("click",)
    unit_vectors = False  # whether a retriever's states have length 1
    user_width: int  # U
    item_width: int  # V

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        made = {name for name in ("user", "item", "cross", "forward") if self.defines(name)}
        if "forward" not in made and not made >= {"user", "item", "cross"}:
            raise TypeError(
                f"{type(self).__name__} defines {sorted(made) or 'nothing'}; a model defines "
                "forward, or all of user, item and cross"
            )
        self.schema = schema
        if self.exact_states:
            self.user_width, self.item_width = (
                schema.dense_width(side) + 2 * schema.ids_width(side) for side in ("user", "item")
            )

    def defines(self, name: str) -> bool:
        """Whether the model has a method of its own instead of the default."""
        return getattr(type(self), name) is not getattr(Scorer, name)

    @property
    def exact_states(self) -> bool:
        """Whether the states hold ids, which no type of fewer bits than float32 can store."""
        return not self.defines("item")

    @property
    def kinds(self) -> tuple[TaskKind, ...]:
        """What the logits of `tasks` say, by the schema; one that it does not know is binary."""
        known = {task.name: task.kind for task in self.schema.tasks}
        return tuple(known.get(name, "binary") for name in self.tasks)

    def user_parts(self) -> Sequence[str]:
        """Names of the modules, and of the model's own parameters and buffers, that only `user`
        reads. A name may reach into a module (`towers.user`), and stands for all below it."""
        return ()

    def item_parts(self) -> Sequence[str]:
        """The same of `item`."""
        return ()

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        """dense [B, F_dense], ids [B, C] -> user state [B, U]."""
        return _packed(dense, ids)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        """dense [N, F_dense], ids [N, C] -> item state [N, V]."""
        return _packed(dense, ids)

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        """user state [B, U], item states [B, K, V] -> logits [B, K] or [B, K, T].

        Item states may come in half precision, as they are stored, unless `exact_states`: `cross`
        widens them where it needs them, which moves half of the bytes.
        """
        users = user.unsqueeze(1).expand(-1, item.shape[1], -1).flatten(0, 1)
        rows = (*self._unpacked("user", users), *self._unpacked("item", item.flatten(0, 1)))
        logits = self.forward(*rows)  # [B * K] or [B * K, T]
        return logits.reshape(*item.shape[:2], *logits.shape[1:])

    def _unpacked(self, side: Side, state: Tensor) -> tuple[Tensor, Tensor]:
        """State [B, W] -> dense [B, F_dense], ids [B, C]; the opposite of `_packed`."""
        numbers, count = self.schema.dense_width(side), self.schema.ids_width(side)
        high, low = state[:, numbers : numbers + count], state[:, numbers + count :]
        return state[:, :numbers], high.long() * EXACT + low.long()

    def forward(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        """Logits [B] or [B, T] of B (user, item) rows."""
        item = self.item(item_dense, item_ids)
        return self.cross(self.user(user_dense, user_ids), item.unsqueeze(1)).squeeze(1)

    def score(self, user: Tensor, item: Tensor) -> Tensor:
        """`cross` for the first task: [B, U], [B, K, V] -> [B, K]."""
        logits = self.cross(user, item)
        return logits if logits.dim() == 2 else logits[..., 0]

    def score_rows(
        self, user_dense: Tensor, user_ids: Tensor, item_dense: Tensor, item_ids: Tensor
    ) -> Tensor:
        """`forward` for the first task: logits [B] of B (user, item) rows."""
        logits: Tensor = self(user_dense, user_ids, item_dense, item_ids)
        return logits if logits.dim() == 1 else logits[..., 0]


class Retriever(Scorer):
    """A model whose score is the dot product of the two states, which an index searches by: it
    defines `user` and `item` alone, U = V."""

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.matmul(item.to(user.dtype), user.unsqueeze(-1)).squeeze(-1)


def _packed(dense: Tensor, ids: Tensor) -> Tensor:
    """[B, F_dense], [B, C] -> [B, F_dense + 2 C]; an id below 2**48 survives as two floats."""
    return torch.cat((dense, (ids // EXACT).to(dense.dtype), (ids % EXACT).to(dense.dtype)), dim=1)


def mlp(widths: Sequence[int]) -> nn.ModuleList:
    """Linear layers of the given widths; `run_mlp` puts ReLU between them."""
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))


def run_mlp(layers: nn.ModuleList, x: Tensor, last_relu: bool = False) -> Tensor:
    """ReLU after every layer but the last, and after that one too if asked."""
    for position, layer in enumerate(layers):
        x = layer(x)
        if last_relu or position + 1 < len(layers):
            x = torch.relu(x)
    return x
