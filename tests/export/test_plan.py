"""Planned sizes: what a plan measures is what the models themselves say, computed here from their
three methods and a sort in NumPy; and what a plan chooses is what the release serves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cascade import index, pbtxt
from cascade.config import Serving
from cascade.evaluation.brute_force import Encoded
from cascade.release import read_release
from cascade.spec import PRERANK, RANK, RETRIEVE, Sizes, stages
from cascade.stages.pipeline import Pipeline
from cascade.stages.scoring import Score
from export import __main__ as front
from export.artifacts.guard import HeldOut
from export.artifacts.stage_files import write_scoring
from export.context import Build, Source
from export.described import file
from export.planning import quality, report, timing
from export.planning.grid import Setting, Tried
from export.planning.opened import Opened, resize
from export.planning.plan import Asked, Plan, Point, drawn_users, measure, pick
from export.planning.plan import front as pareto
from export.planning.release import write_plan
from tests.cascades import BAGS, Cascade
from tests.export.described_files import dump, write

SIZES = Sizes(120, 40, 10)
TRIED = Tried((30, 60, 2000), (10, 25, 60, 2000))
USERS, ITEMS, KEEP = 30, 700, 0.1
Made = tuple[Build, Plan, Path]


def build_of(cascade: Cascade) -> Build:
    """The export that made it."""
    return Build(
        cascade.checkpoints,
        cascade.repository,
        sizes=cascade.sizes,
        serving=cascade.serving,
        index="ivf",
        state="float32",
        weights="float32",
        measure_batching=False,
    )


@pytest.fixture(scope="module", params=["integers", "strings"])
def made(
    request: Any, make_cascade: Callable[..., Cascade], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """An export, and a plan of its sizes."""
    schema = replace(BAGS, string_ids=request.param == "strings")
    build = build_of(make_cascade(schema=schema, items=ITEMS, sizes=SIZES, also=()))
    scratch = tmp_path_factory.mktemp("plan")
    return build, measure(build, build, scratch, Asked(KEEP, USERS, TRIED)), scratch


class Eager:
    """The trained models over a whole catalogue, and the index of a release."""

    def __init__(self, build: Build) -> None:
        self.source = Source.load(build.checkpoints)
        self.index = index.load(
            build.repository / RETRIEVE / "1", self.source.schema.hash, mapped=False
        )
        ranker: Any = Score(build.repository / RANK / "1", Serving(threads=1))
        rows = {key: row for row, key in enumerate(self.source.items.item_ids.tolist())}
        self._logits: dict[tuple[str, bytes], Any] = {}
        self.row_of_served = np.array([rows[key] for key in ranker.item_ids.tolist()])

    def logits(self, name: str, users: Encoded) -> Any:
        """[B, N], in the order of the checkpoints."""
        key = name, users.ids.tobytes()
        if key not in self._logits:
            self._logits[key] = self._computed(name, users)
        return self._logits[key]

    def _computed(self, name: str, users: Encoded) -> Any:
        scorer, items = self.source.scorer(name), self.source.items
        with torch.inference_mode():
            state = scorer.item(torch.from_numpy(items.dense), torch.from_numpy(items.ids))
            user = scorer.user(*users.tensors("cpu"))
            return scorer.score(user, state.expand(len(user), -1, -1)).numpy()

    def answers(self, setting: Setting, users: Encoded) -> Any:
        """[B, 10] rows of the checkpoints, best first."""
        self.index.set_effort(setting.effort)
        with torch.inference_mode():
            queries = self.source.scorer(RETRIEVE).user(*users.tensors("cpu")).numpy()
        served = self.index.search(queries, setting.candidates)
        found = np.full((len(users), 10), -1)
        prerank, rank = (self.logits(name, users) for name in (PRERANK, RANK))
        for user, rows in enumerate(served):
            rows = self.row_of_served[rows[rows >= 0]]
            rows = rows[np.argsort(-prerank[user, rows])][: setting.survivors]
            rows = rows[np.argsort(-rank[user, rows])][:10]
            found[user, : len(rows)] = rows
        return found


def test_what_is_kept_is_what_the_models_say(made: Made) -> None:
    build, plan, _ = made
    eager = Eager(build)
    dense, categorical = drawn_users(eager.source, USERS)
    users = Encoded(*eager.source.encoder.encode("user", dense, categorical))
    logits = eager.logits(RANK, users)
    tenth = -np.sort(-logits, axis=1)[:, 9:10]
    tenth -= 1e-5 * np.maximum(1, abs(tenth))  # what is as good counts, too
    for point in plan.points:
        found = np.take_along_axis(logits, eager.answers(point.setting, users), 1)
        assert point.kept == pytest.approx((found >= tenth).mean(), abs=1e-9), point
        assert point.kept_low <= point.kept <= point.kept_high
    assert len({point.kept for point in plan.points}) > 5


def test_positives_are_where_the_models_put_them(made: Made) -> None:
    build, plan, _ = made
    eager = Eager(build)
    items = len(eager.source.items)
    rows = HeldOut.load(build.checkpoints / "held_out.parquet", np.arange(items))
    positive = np.random.default_rng(0).permutation(np.flatnonzero(rows.labels > 0.5))[:USERS]
    users = Encoded(*(values[positive] for values in rows.users))
    assert plan.positives == USERS
    for point in plan.points:
        hit = eager.answers(point.setting, users) == rows.items[positive][:, None]
        gain = (hit / np.log2(np.arange(2, 12))).sum(1).mean()
        assert point.ndcg_at_10 == pytest.approx(gain, abs=1e-9), point


def test_the_grid_is_what_was_asked_for(made: Made) -> None:
    _, plan, _ = made
    sizes = {(point.candidates, point.survivors) for point in plan.points}
    assert sizes == {  # 2000 are more than there are
        (30, 10), (30, 25), (60, 10), (60, 25), (60, 40), (60, 60), (120, 10), (120, 25),
        (120, 40), (120, 60), (700, 10), (700, 25), (700, 40), (700, 60), (700, 700),
    }  # fmt: skip
    default = plan.default
    assert (default.candidates, default.survivors) == (SIZES.candidates, SIZES.survivors)
    assert plan.effort == "nprobe"
    assert default.effort in {point.effort for point in plan.points}
    assert len({point.effort for point in plan.points}) > 2
    assert all(p.us_per_request > 0 and p.us_per_user_of_16 > 0 for p in plan.points)


def test_the_chosen_is_the_cheapest_that_keeps_enough(made: Made) -> None:
    _, plan, _ = made
    enough = [point for point in plan.points if point.kept >= KEEP]
    assert plan.reached
    assert plan.chosen in enough
    assert plan.chosen.us_per_request == min(point.us_per_request for point in enough)
    assert {*plan.speedup} == {"1", "16"}
    text = report.report(plan)
    assert "chosen" in text
    assert "default" in text


@pytest.mark.parametrize("made", ["integers"], indirect=True)
def test_fewer_users_are_asked_where_time_is_up(made: Made, tmp_path: Path) -> None:
    build, _, _ = made
    opened = Opened(build, tmp_path)
    users = opened.encode(*drawn_users(Source.load(build.checkpoints), 100))
    every = quality.best_of_all(opened, users, ITEMS, 10)
    some = quality.best_of_all(opened, users, ITEMS, 10, seconds=-1, least=40)
    assert len(every) == 100
    assert 40 <= len(some) < 100
    np.testing.assert_array_equal(some, every[: len(some)])
    assert len(quality.best_of_all(opened, users, ITEMS, 10, seconds=-1)) < 40


def point(us: float, kept: float) -> Point:
    return Point(int(us), 10, None, kept, kept - 0.1, kept + 0.1, None, us, us)


def test_without_enough_the_one_that_keeps_most_is_taken(made: Made) -> None:
    points = [point(30, 0.7), point(10, 0.5), point(20, 0.7), point(15, 0.4)]
    assert pick(points, 0.6) == (points[2], True)
    assert pick(points, 0.8) == (points[2], False)
    assert pareto(points) == [points[1], points[2]]
    missed = replace(made[1], chosen=points[2], points=points, keep=0.8, reached=False)
    assert "no setting keeps 0.8" in report.report(missed)
    short = replace(missed, keep=0.65, reached=True)
    assert "begins at 0.600, below 0.65" in report.report(short)


@pytest.mark.parametrize("made", ["integers"], indirect=True)
@pytest.mark.parametrize("stage", [PRERANK, RANK])
def test_a_resized_graph_is_the_export_of_that_size(made: Made, stage: str, tmp_path: Path) -> None:
    """Also where the graph is traced from the model's methods instead of derived."""
    build, _, _ = made
    source = Source.load(build.checkpoints)
    of_size = {
        keep: {s.name: s for s in stages(source.schema, Sizes(50, keep, keep))}[stage]
        for keep in (20, 7)
    }
    for keep, signature in of_size.items():
        folder = tmp_path / f"{keep}"
        folder.mkdir()
        write_scoring(source.scorer(stage), signature, source.schema, source.items, folder)
    resize(tmp_path / "20", 7, tmp_path / "resized", as_rows=stage == RANK)
    random = np.random.default_rng(0)
    users = [values[:5] for values in source.users]
    rows = np.stack([random.permutation(len(source.items))[:50] for _ in range(5)])
    wanted, found = (
        Score(tmp_path / name, Serving(threads=1))(*users, rows) for name in ("7", "resized")
    )
    if stage == RANK:
        np.testing.assert_array_equal(source.items.item_ids[found[0]], wanted[0])
        np.testing.assert_allclose(1 / (1 + np.exp(-found[1])), wanted[1], atol=1e-6)
    else:
        np.testing.assert_array_equal(found[0], wanted[0])


def test_a_planned_release_serves_the_chosen_sizes(
    make_cascade: Callable[..., Cascade], tmp_path: Path
) -> None:
    cascade = make_cascade(schema=BAGS, items=ITEMS, sizes=SIZES, also=())
    words = f"build --checkpoints {cascade.checkpoints} --repository {tmp_path / 'out'} --untuned"
    sizes = "--candidates 120 --survivors 40 --sizes auto --keep 0.05 --pool 30 --threads 1"
    front.main(f"{words} {sizes}".split())
    release = read_release(tmp_path / "out", 1)
    plan, chosen = release["plan"], release["plan"]["chosen"]
    assert release["sizes"] == {
        "candidates": chosen["candidates"], "survivors": chosen["survivors"], "results": 10
    }  # fmt: skip
    assert plan["reached"]
    assert chosen in plan["points"]
    assert all(p["survivors"] >= 30 for p in plan["points"])  # the list is chosen from a pool
    retrieve, prerank, rank = (
        pbtxt.read(tmp_path / "out" / name / "config.pbtxt") for name in (RETRIEVE, PRERANK, RANK)
    )
    assert [*prerank.input[-1].dims] == [chosen["candidates"]]
    assert [*rank.input[-1].dims] == [chosen["survivors"]]
    assert [chosen["candidates"]] in [[*output.dims] for output in retrieve.output]
    facts = json.loads((tmp_path / "out" / RETRIEVE / "1" / "index.json").read_text())
    assert facts["parameters"]["nprobe"] == chosen["effort"]
    assert facts["recall_k"] == chosen["candidates"]
    assert facts["note"] == "nprobe as planned"
    pipeline = replace(cascade, repository=tmp_path / "out").pipeline()
    dense, categorical = drawn_users(Source.load(cascade.checkpoints), 200)
    encoded = pipeline.retrieve(dense, categorical)
    assert encoded[2].shape[1] == chosen["candidates"]
    survivors = pipeline.prerank(*encoded)
    assert survivors.shape[1] == chosen["survivors"]
    eager = Eager(replace(build_of(cascade), repository=tmp_path / "out"))
    logits = eager.logits(RANK, Encoded(*encoded[:2]))
    best = np.argsort(-logits, axis=1)[:, :10]
    kept = [
        np.isin(best[u], eager.row_of_served[rows[rows >= 0]]).mean()
        for u, rows in enumerate(survivors)
    ]
    assert chosen["kept"] == pytest.approx(np.mean(kept), abs=1e-9)


def test_a_ranker_from_elsewhere_without_a_preranker_is_planned_too(tmp_path: Path) -> None:
    described = file.write(dump(write(tmp_path), tmp_path), tmp_path / "checkpoints")
    build = Build(
        tmp_path / "checkpoints", tmp_path / "none", sizes=Sizes(20, 20, 10), index="flat",
        foreign=described.foreign, preranks=described.preranks,
    )  # fmt: skip
    plan = write_plan(build, Asked(0.9, 20, Tried((15, 40), (10, 20))), tmp_path / "plan")
    assert all(point.candidates == point.survivors for point in plan.points)
    assert {point.candidates for point in plan.points} == {15, 20, 40}
    assert {point.effort for point in plan.points} == {None}
    whole = next(point for point in plan.points if point.candidates == 40)
    assert whole.kept == 1.0
    written = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert written == json.loads(json.dumps(plan.to_dict()))
    assert imread(tmp_path / "plan" / "plan.png").std() > 0
    assert not (tmp_path / "none").exists()


def test_a_request_in_whole_is_the_release_s_answer(made: Made, tmp_path: Path) -> None:
    """What is timed is what is served."""
    build, plan, _ = made
    users = drawn_users(Source.load(build.checkpoints), 8)
    run = timing.whole(Opened(build, tmp_path), plan.default.setting, users)(np.arange(8))
    served = Pipeline.load(build.repository, serving=Serving(threads=1))(*users)
    np.testing.assert_array_equal(run()[0], served[0])
