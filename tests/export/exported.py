"""Stages exported from drawn models, and the answers that they must give: shared by the tests of
graphs and of parity.

The expected answers are computed from the model's three methods over the whole catalogue and a
sort in NumPy; the modules that are exported take no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade.config import Serving
from cascade.data.criteo import SCHEMA as CRITEO
from cascade.models import build, preset
from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer
from cascade.runtime.load import Graph, load_graph
from cascade.schema import Feature, Schema
from cascade.spec import PRERANK, RANK, Sizes, Stage, stages
from export.artifacts.graphs import TopCandidates
from export.artifacts.stage_files import Variant, write_scoring
from export.context import Catalogue, Forms
from tests.schemas import draw_rows

ITEMS, MAX_BATCH = 60, 33
SIZES = Sizes(candidates=40, survivors=20, results=5)
RUNTIMES = ("onnx", "torchscript")
LARGEST_DIFFERENCE = 1e-4
PLAIN = Variant()
TORCHSCRIPT = Forms(["torchscript"])


def fitted(schema: Schema) -> Schema:
    return schema.fitted({f.name: (9, f.name) for f in schema.features if f.kind != "dense"})


BAGS = fitted(
    Schema(
        "bags, no numbers",
        (
            Feature("genres", "item", "bag", "vocabulary", length=3),
            Feature("city", "user", "categorical", "vocabulary"),
            Feature("history", "user", "bag", "vocabulary", length=4),
            Feature("brand", "item", "categorical", "vocabulary"),
            Feature("shop", "item", "categorical", "vocabulary"),
        ),
    )
)
NUMBERS = fitted(
    Schema(
        "numbers on both sides",
        (
            Feature("age", "user", "dense", "identity"),
            Feature("price", "item", "dense", "identity"),
            Feature("tags", "user", "bag", "hash", length=2, buckets=7),
            Feature("weight", "item", "dense", "identity"),
        ),
    )
)


@dataclass(frozen=True)
class Case:
    """What is exported: a model over a schema, as a preranker or as a ranker."""

    model: str
    preset: str
    schema: Schema
    stage: str
    sizes: Sizes = SIZES


CASES = {
    "DLRM ranks Criteo": Case("dlrm", "small", fitted(CRITEO), RANK),
    "DLRM preranks bags": Case("dlrm", "tiny", BAGS, PRERANK),
    "logistic regression preranks bags": Case("logistic", "default", BAGS, PRERANK),
    "logistic regression ranks numbers": Case("logistic", "default", NUMBERS, RANK),
    "bent logistic regression ranks numbers": Case("logistic", "bent", NUMBERS, RANK),
    "a textbook model ranks bags": Case("tests.example_models:Textbook", "default", BAGS, RANK),
    "any names prerank bags": Case("tests.example_models:AnyNames", "default", BAGS, PRERANK),
    "the best of two, as many as come": Case("dlrm", "tiny", NUMBERS, PRERANK, Sizes(2, 2, 1)),
}


def drawn_scorer(model: str, size: str, schema: Schema) -> Scorer:
    """A model with weights wide enough that scores differ."""
    torch.manual_seed(0)
    scorer = build(model, preset(model, size), schema).eval()
    for module in scorer.modules():
        if isinstance(module, Embeddings):
            torch.nn.init.normal_(module.table.weight)
    return scorer


def drawn_items(schema: Schema) -> Catalogue:
    rows = draw_rows(schema, "item", ITEMS, seed=1)
    names = np.random.default_rng(2).permutation(10**12 + 7 * np.arange(ITEMS))
    return Catalogue(rows.dense.numpy(), rows.ids.numpy(), names)


def drawn_users(schema: Schema, count: int) -> tuple[Any, Any]:
    dense, ids = draw_rows(schema, "user", count, seed=3).both
    return dense.numpy(), ids.numpy()


def drawn_rows(count: int, width: int, pads: float = 0.2) -> Any:
    """[B, K] different catalogue rows in any order, about a fifth of them replaced by pads."""
    random = np.random.default_rng((count, width))
    rows = np.stack([random.permutation(max(ITEMS, width))[:width] for _ in range(count)])
    return np.where((random.random(rows.shape) < pads) | (rows >= ITEMS), -1, rows)


@dataclass(frozen=True, eq=False)
class Exported:
    """A stage on disk, and what it was made from."""

    folder: Path
    stage: Stage
    schema: Schema
    scorer: Scorer
    module: TopCandidates
    items: Catalogue

    @property
    def keep(self) -> int:
        return self.stage.outputs[0].dims[0]

    @property
    def width(self) -> int:
        """Candidates per user when the graph was traced."""
        return self.stage.inputs[-1].dims[0]

    def load(self, runtime: Any) -> Graph:
        return load_graph(self.folder, self.schema, Serving(runtime=runtime, threads=1))[1]

    def logits(self, users: tuple[Any, Any]) -> Any:
        """The trained model's [B, N], for all items of the catalogue."""
        with torch.inference_mode():
            items = map(torch.from_numpy, (self.items.dense, self.items.ids))
            user = self.scorer.user(*map(torch.from_numpy, users))
            states = self.scorer.item(*items).expand(len(user), -1, -1)
            return self.scorer.score(user, states).numpy().astype(np.float64)

    def check(self, graph: Graph, users: tuple[Any, Any], rows: Any) -> None:
        """The graph's choice is as good as the best one, place by place, and pads come last."""
        answer = graph(*users, rows)
        assert [a.shape for a in answer] == [(len(rows), self.keep)] * len(self.stage.outputs)
        names = {int(name): row for row, name in enumerate(self.items.item_ids)}
        for user, logits in enumerate(self.logits(users)):
            wanted = np.sort(logits[rows[user][rows[user] >= 0]])[::-1][: self.keep]
            chosen = answer[0][user].tolist()
            assert chosen[len(wanted) :] == [-1] * (self.keep - len(wanted))
            chosen = chosen[: len(wanted)]
            if self.module.with_ids:
                chosen = [names[name] for name in chosen]
            assert len(set(chosen)) == len(chosen)
            assert set(chosen) <= set(rows[user].tolist())
            np.testing.assert_allclose(logits[chosen], wanted, rtol=0, atol=LARGEST_DIFFERENCE)
            if self.module.with_ids:
                self._check_scores(answer[1][user].astype(np.float64), logits[chosen])

    def _check_scores(self, scores: Any, logits: Any) -> None:
        """Probabilities of the chosen, descending, and 0 for every pad."""
        real = scores[: len(logits)]
        assert (np.diff(scores) <= 0).all()
        assert (scores[len(logits) :] == 0).all()
        np.testing.assert_allclose(real, 1 / (1 + np.exp(-logits)), rtol=0, atol=1e-6)
        certain = np.abs(logits) < 6  # float32 holds the odds of more certain ones less exactly
        odds = np.log(real[certain] / (1 - real[certain]))
        np.testing.assert_allclose(odds, logits[certain], rtol=0, atol=LARGEST_DIFFERENCE)


def export_case(case: Case, folder: Path, variant: Variant = PLAIN) -> Exported:
    stage = next(s for s in stages(case.schema, case.sizes) if s.name == case.stage)
    scorer, items = drawn_scorer(case.model, case.preset, case.schema), drawn_items(case.schema)
    module = write_scoring(scorer, stage, case.schema, items, folder, variant, TORCHSCRIPT)
    return Exported(folder, stage, case.schema, scorer, module, items)
