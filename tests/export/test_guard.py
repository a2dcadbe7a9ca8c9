"""A cheaper variant ships only where it loses nothing, and each user is answered alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cascade.artifact import Description
from cascade.release import read_release
from cascade.spec import PRERANK, RANK, RETRIEVE
from cascade.training.bundle import HELD_OUT_FILE
from export.artifacts import batching, guard
from export.artifacts.guard import Verdict
from export.artifacts.stage_files import Variant
from export.artifacts.variants import GuardError, best, choose
from export.context import Build, Source
from tests.cascades import Cascade

SMALL = {"items": 300, "users": 60}


@pytest.fixture(scope="module")
def judged(make_cascade: Any) -> Cascade:
    """An export that had the choice."""
    found: Cascade = make_cascade(**SMALL, state="auto", weights="auto")
    return found


def test_every_variant_is_judged_and_one_is_chosen(judged: Cascade) -> None:
    release = read_release(judged.repository, 1)
    verdicts = release["variants"]
    for stage in (PRERANK, RANK):
        of_stage = [v for v in verdicts if v["stage"] == stage]
        assert len(of_stage) == 4
        assert of_stage[0]["variant"] == {"state": "float32", "weights": "float32"}
        assert of_stage[0]["auc_loss"] == 0
        assert of_stage[0]["overlap"] == 1
        [chosen] = [v for v in of_stage if v["chosen"]]
        assert chosen["passed"]
        assert chosen["auc_loss"] <= guard.LARGEST_AUC_LOSS
        assert chosen["overlap"] >= guard.LEAST_OVERLAP
        assert release["stages"][stage]["variant"] == chosen["variant"]
        folder = judged.repository / stage / "1"
        state = Description.load(folder).mapped["item_state"]
        assert state.dtype == chosen["variant"]["state"]
        assert state.nbytes / len(judged.pipeline().item_ids) == chosen["bytes_per_item"]


@pytest.fixture(scope="module")
def plain(make_cascade: Any) -> Cascade:
    """The same, as it was trained."""
    found: Cascade = make_cascade(**SMALL)
    return found


@pytest.mark.parametrize(("state", "weights"), [("float16", "float32"), ("float16", "int8")])
def test_a_stored_variant_answers_nearly_as_the_model(
    make_cascade: Any, plain: Cascade, state: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LEAST_OVERLAP", 0.5)  # of drawn models, whose scores lie close
    monkeypatch.setattr(guard, "LARGEST_AUC_LOSS", 0.05)
    cheap = make_cascade(fresh=True, **SMALL, state=state, weights=weights)
    (ids, scores), (wanted_ids, wanted) = (c.ask(c.pipeline()) for c in (cheap, plain))
    assert np.abs(scores - wanted).max() <= 0.05
    shared = [len(set(a) & set(b)) for a, b in zip(ids, wanted_ids, strict=True)]
    assert np.mean(shared) >= 7


def test_nobodys_answer_depends_on_who_else_asks(
    make_cascade: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamic quantisation has one scale for a batch: such graphs take one user at a time."""
    monkeypatch.setattr(guard, "LEAST_OVERLAP", 0.0)
    monkeypatch.setattr(guard, "LARGEST_AUC_LOSS", 1.0)
    cascade = make_cascade(fresh=True, **SMALL, weights="int8")
    assert Description.load(cascade.repository / RANK / "1").one_by_one
    pipeline = cascade.pipeline()
    together = cascade.ask(pipeline)
    alone = [cascade.ask(pipeline, user, user + 1) for user in range(len(cascade.dense))]
    for outputs, whole in zip(zip(*alone, strict=True), together, strict=True):
        np.testing.assert_array_equal(np.concatenate(outputs), whole)


def test_what_was_asked_for_is_refused_when_it_loses(
    make_cascade: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "LEAST_OVERLAP", 1.01)
    with pytest.raises(GuardError, match=r"prerank with state float16.* loses too much"):
        make_cascade(fresh=True, **SMALL, state="float16")


@pytest.mark.parametrize("fault", ["is missing", "has rows of one label only"])
def test_without_rows_of_both_labels_nothing_cheaper_is_judged(
    plain: Cascade, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    folder = shutil.copytree(plain.checkpoints, tmp_path / "checkpoints")
    path = folder / HELD_OUT_FILE
    table = pq.read_table(path)
    path.unlink()
    if fault != "is missing":
        pq.write_table(table.filter(pc.field("label") == 1), path)
    source, users = Source.load(folder), np.zeros((0, 0), np.int64)
    assert choose(Build(folder, tmp_path / "new"), source, users, {}, {}) == []
    said = f"{path} {fault}, so nothing cheaper than float32 can be judged"
    assert said in capsys.readouterr().out
    asked = Build(folder, tmp_path / "new", state="float16", weights="float32")
    with pytest.raises(GuardError, match=f"has to be judged by .*, which {fault}: train again"):
        choose(asked, source, users, {}, {})


def test_the_fastest_that_passes_is_chosen_and_of_equals_the_smallest() -> None:
    def verdict(state: Any, latency_us: float, bytes_per_item: int, overlap: float = 1) -> Verdict:
        return Verdict(RANK, Variant(state), 0.0, overlap, latency_us, bytes_per_item)

    plain, half, fast = (
        verdict("float32", 100, 400),
        verdict("float16", 101, 200),
        verdict("float16", 50, 100, overlap=0.9),
    )
    assert best([plain, half, fast]) is half
    assert best([plain, replace(half, latency_us=120), fast]) is plain
    assert best([plain, half, replace(fast, overlap=0.99)]).latency_us == 50


def test_users_per_run_takes_the_smallest_that_is_as_fast() -> None:
    assert batching.best({1: 100, 2: 80, 4: 71, 8: 70, 16: 75}) == 4
    assert batching.best({1: 70, 2: 80}) == 1


def test_users_per_run_is_measured_for_every_process(judged: Cascade) -> None:
    users = judged.dense, judged.categorical
    found = batching.measure(judged.repository, 1, users, judged.serving)
    assert set(found) == {RETRIEVE, PRERANK, RANK, "score", "cascade"}
    for by_size in found.values():
        assert list(by_size) == list(batching.SIZES)
        assert min(by_size.values()) > 0
