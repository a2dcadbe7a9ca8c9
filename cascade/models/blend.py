"""A ranker that adds up what several models say of a user and an item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cascade.models.covisitation import CoVisitation, CoVisitationConfig
from cascade.models.registry import build
from cascade.models.retrieval.two_tower import TwoTower
from cascade.models.scorer import Scorer
from cascade.models.scoring import dlrm
from cascade.models.scoring.logistic import LogisticConfig, LogisticRegression
from cascade.schema import Schema


@dataclass(frozen=True)
class BlendConfig:
    """Which models are added up; `retriever` and `covisitation` may be left out, and the
    `wide_config` of the logistic regression, for its usual one."""

    deep: str = "dlrm"
    deep_config: Mapping[str, Any] = field(default_factory=lambda: asdict(dlrm.PRESETS["small"]))
    retriever: str = ""
    retriever_config: Mapping[str, Any] = field(default_factory=dict)
    wide_config: Mapping[str, Any] = field(default_factory=lambda: asdict(LogisticConfig()))
    covisitation: Mapping[str, Any] = field(default_factory=dict)


PRESETS = {"default": BlendConfig()}
WEIGHT = 0.02  # of a factorisation's score, made for a softmax, in the logit of a label


class Blend(Scorer):
    """A deep model, plus a logistic regression on the same features (Cheng et al., "Wide & Deep
    Learning for Recommender Systems", DLRS 2016), plus the retriever's score times a weight.

    The retriever comes trained and stays as it is: the ranker starts from its order. The deep model
    may be a factorisation of its own, whose score has a weight, too. A usual item counts 0 in both
    scores. Co-visitation comes computed, with a weight of 0 until `weigh`. U and V are the sums of
    the parts' widths.
    """

    def __init__(self, schema: Schema, config: BlendConfig) -> None:
        super().__init__(schema)
        first = replace(schema, tasks=schema.tasks[:1])  # the one that the parts add up for
        self.deep = build(config.deep, config.deep_config, first)
        self.wide = build("logistic", config.wide_config, schema)
        self.names = ["deep", "wide"]
        if config.retriever:
            self.retriever = build(config.retriever, config.retriever_config, schema)
            self.retriever.requires_grad_(False)
            self.names.append("retriever")
            self.weight = nn.Parameter(torch.tensor(WEIGHT))
            self.register_buffer("centre", torch.zeros(self.retriever.item_width))
        if config.covisitation:
            self.covisits = CoVisitation(schema, CoVisitationConfig(**config.covisitation))
            self.names.append("covisits")
            self.register_buffer("covisits_weight", torch.zeros(()))
        self.factored = isinstance(self.deep, TwoTower)
        if self.factored:
            self.deep_weight = nn.Parameter(torch.tensor(WEIGHT))
            self.register_buffer("deep_centre", torch.zeros(self.deep.item_width))
        self.user_widths = [part.user_width for part in self._parts()]
        self.item_widths = [part.item_width for part in self._parts()]
        self.user_width, self.item_width = sum(self.user_widths), sum(self.item_widths)

    centre: Tensor
    deep_centre: Tensor
    covisits_weight: Tensor

    @property
    def exact_states(self) -> bool:
        return "names" in self.__dict__ and any(part.exact_states for part in self._parts())

    def begin(self, retriever: Scorer, usual: Callable[[Scorer], Tensor]) -> None:
        """Take the weights of a trained retriever, whose order is that of the ranker until it
        learns another.

        Args:
            usual: gives the state [V] of a usual item in a model. An item's score counts by how far
                it is above that one's, so that it says nothing of the user alone.
        """
        self.retriever.load_state_dict(retriever.state_dict())
        self.centre.copy_(usual(self.retriever))
        if self.factored:
            self.deep_centre.copy_(usual(self.deep))
        else:
            self.silence()

    def widen(self, baseline: Scorer) -> None:
        """Take a trained logistic regression, which stays as it is."""
        self.wide.load_state_dict(baseline.state_dict())
        self.wide.requires_grad_(False)

    @torch.no_grad()
    def calibrate(self, scale: float, shift: float) -> None:
        """Multiply all logits of factors beside a retriever by a number, and add another."""
        assert isinstance(self.wide, LogisticRegression)
        self.deep_weight.mul_(scale)
        self.weight.mul_(scale)
        if "covisits" in self.names:
            self.covisits_weight.mul_(scale)
        self.wide.calibrate(scale, shift)

    def silence(self) -> None:
        """Let the deep model begin with 0 for all, so that it learns what the others lack."""
        for last in [part for part in self.deep.modules() if isinstance(part, nn.Linear)][-1:]:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def _parts(self) -> list[Scorer]:
        return [getattr(self, name) for name in self.names]

    def user_parts(self) -> tuple[str, ...]:
        return tuple(f"{n}.{part}" for n in self.names for part in getattr(self, n).user_parts())

    def item_parts(self) -> tuple[str, ...]:
        return tuple(f"{n}.{part}" for n in self.names for part in getattr(self, n).item_parts())

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        return torch.cat([part.user(dense, ids) for part in self._parts()], dim=1)

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        return torch.cat([part.item(dense, ids) for part in self._parts()], dim=1)

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        users = torch.split(user, self.user_widths, 1)
        items = torch.split(item, self.item_widths, 2)
        if self.factored:
            deep = self.deep_weight * self.deep.score(users[0], items[0] - self.deep_centre)
        else:
            deep = self.deep.score(users[0], items[0])
        total = deep + self.wide.score(users[1], items[1])
        if "retriever" in self.names:
            found = self.retriever.score(users[2], items[2] - self.centre)
            total = total + self.weight * found
        if "covisits" in self.names:
            total = total + self.covisits_weight * self.covisits.score(users[-1], items[-1])
        return total
