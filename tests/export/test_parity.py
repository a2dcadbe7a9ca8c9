"""The parity report finds out what an export can get wrong, and lets equal items change places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cascade.config import Serving
from cascade.runtime.load import load_graph
from export.artifacts import parity
from tests.export.exported import (
    CASES,
    ITEMS,
    LARGEST_DIFFERENCE,
    MAX_BATCH,
    RUNTIMES,
    Exported,
    drawn_rows,
    drawn_users,
    export_case,
)


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_case(CASES["DLRM ranks Criteo"], tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def preranker(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_case(CASES["DLRM preranks bags"], tmp_path_factory.mktemp("preranker"))


@pytest.fixture(params=["ranker", "preranker"])
def exported(request: pytest.FixtureRequest) -> Exported:
    found: Exported = request.getfixturevalue(request.param)
    return found


def test_the_parity_report_has_the_numbers(exported: Exported) -> None:
    cases = [
        (*drawn_users(exported.schema, batch), drawn_rows(batch, exported.width))
        for batch in (1, 3, MAX_BATCH)
    ]
    found = parity.compare(
        exported.stage.name, exported.module, exported.folder, exported.schema, cases
    )
    assert [(p.runtime, p.batch) for p in found] == [
        (runtime, batch) for runtime in RUNTIMES for batch in (1, 3, MAX_BATCH)
    ]
    assert all(0 <= p.max_abs <= LARGEST_DIFFERENCE and p.overlap == 1 for p in found)
    table = parity.report(found)
    assert len(table.splitlines()) == 1 + len(found)


@pytest.mark.parametrize("weight", ["user_ids.table.weight", "top.1.bias"])
def test_weights_that_change_after_the_export_are_found_out(ranker: Exported, weight: str) -> None:
    exported = ranker
    cases = [(*drawn_users(exported.schema, 3), drawn_rows(3, exported.width))]
    name, module = exported.stage.name, exported.module
    tampered = module.get_parameter(f"scorer.{weight}")
    kept = tampered.detach().clone()
    try:
        with torch.no_grad():
            tampered += 0.01 * (1 + torch.rand_like(tampered))
        found = parity.compare(name, module, exported.folder, exported.schema, cases)
        assert not any(p.holds for p in found)
        with pytest.raises(parity.ParityError, match=r"differ from the trained model.*'rank'"):
            parity.report(found)
    finally:
        with torch.no_grad():
            tampered.copy_(kept)
    found = parity.compare(name, module, exported.folder, exported.schema, cases)
    assert all(p.holds for p in found)


def doubled(rows: Any, chosen: Any, keep: int) -> Any:
    return np.repeat(chosen[:, ::2], 2, axis=1)


def others(rows: Any, chosen: Any, keep: int) -> Any:
    """Real candidates, none of which was to be chosen."""
    left = [[r for r in row if r >= 0 and r not in c] for row, c in zip(rows, chosen, strict=True)]
    return np.array([row[:keep] for row in left])


def backwards(rows: Any, chosen: Any, keep: int) -> Any:
    return chosen[:, ::-1]


def foreign(rows: Any, chosen: Any, keep: int) -> Any:
    return np.where(chosen == chosen[:, :1], ITEMS - 1, chosen)


@pytest.fixture
def answering(
    preranker: Exported, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Any], list[parity.Parity]]:
    """The report on a graph whose choice is changed before it is returned."""
    exported = preranker
    rows = drawn_rows(2, 50, pads=0)
    rows = np.where(rows == ITEMS - 1, -1, rows)
    cases = [(*drawn_users(exported.schema, 2), rows)]
    description, graph = load_graph(exported.folder, exported.schema, Serving(threads=1))

    def report(change: Any) -> list[parity.Parity]:
        def changed(*inputs: Any) -> list[Any]:
            return [change(rows, graph(*inputs)[0], exported.keep)]

        monkeypatch.setattr(parity, "load_graph", lambda *_: (description, changed))
        return parity.compare("prerank", exported.module, exported.folder, exported.schema, cases)

    return report


@pytest.mark.parametrize(
    ("change", "overlap"), [(doubled, 0), (others, 0), (foreign, 0), (backwards, 1)]
)
def test_another_choice_is_no_parity(
    answering: Callable[[Any], list[parity.Parity]], change: Any, overlap: float
) -> None:
    found = answering(change)
    assert not any(p.holds for p in found)
    assert [p.overlap for p in found] == [overlap] * 2
    assert all(p.max_abs > 1e-3 for p in found)


def test_scores_that_are_no_numbers_are_no_parity(
    ranker: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [(*drawn_users(ranker.schema, 2), drawn_rows(2, ranker.width))]
    description, graph = load_graph(ranker.folder, ranker.schema, Serving(threads=1))

    def changed(*inputs: Any) -> list[Any]:
        ids, scores = graph(*inputs)
        return [ids, np.full_like(scores, np.nan)]

    monkeypatch.setattr(parity, "load_graph", lambda *_: (description, changed))
    found = parity.compare("rank", ranker.module, ranker.folder, ranker.schema, cases)
    assert found
    assert not any(p.holds for p in found)


def test_of_equal_items_either_may_be_chosen(
    answering: Callable[[Any], list[parity.Parity]],
    preranker: Exported,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = preranker.module
    monkeypatch.setattr(module, "item_state", torch.zeros_like(module.item_state))
    for change in (others, backwards):
        assert all(p.holds and p.overlap == 1 and p.max_abs == 0 for p in answering(change))
