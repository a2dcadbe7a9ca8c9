"""Models of several tasks: graphs give all of them, and stages order items by their formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from cascade.artifact import ONNX_FILE, Description
from cascade.config import Product, Serving
from cascade.data.criteo import SCHEMA as CRITEO
from cascade.formula import FormulaError
from cascade.release import read_release
from cascade.runtime.load import load_graph
from cascade.spec import PRERANK, RANK, TASK_SCORES, TASKS, Sizes, stages
from cascade.stages.load import load_stage
from cascade.stages.pipeline import Pipeline
from cascade.stages.scoring import Score
from cascade.training import checkpoint
from export import __main__ as export_command
from export.artifacts import parity
from export.artifacts.stage_files import Variant, write_scoring
from export.context import Catalogue, Forms, read_catalogue
from export.foreign import own, wrapper
from export.foreign.flat import flat_onnx
from export.foreign.inputs import InputMap
from export.foreign.onnx_model import Foreign
from export.planning.opened import resize
from export.releases.manifest import verify
from export.releases.refresh import Refresh, change
from tests.example_models import THREE_TASKS
from tests.export.exported import (
    BAGS,
    ITEMS,
    MAX_BATCH,
    SIZES,
    drawn_items,
    drawn_rows,
    drawn_scorer,
    drawn_users,
    fitted,
)

SCHEMA = fitted(replace(CRITEO, tasks=THREE_TASKS))
NAMES = ("ctr", "engagement", "revenue")
ONE = Serving(threads=1)
FORMULA = "ctr * (0.6 + 0.4 * engagement) * sqrt(revenue)"


def by_formula(tasks: Any) -> Any:
    return tasks[..., 0] * (0.6 + 0.4 * tasks[..., 1]) * np.sqrt(tasks[..., 2])


def stage_of(name: str, schema: Any, sizes: Sizes = SIZES) -> Any:
    return next(s for s in stages(schema, sizes) if s.name == name)


def expected_tasks(scorer: Any, items: Any, users: tuple[Any, Any]) -> Any:
    """What the trained model says of every item, [B, N, 3], from `forward` of all pairs."""
    count = len(items)
    with torch.inference_mode():
        user = (torch.from_numpy(x).repeat_interleave(count, 0) for x in users)
        rows = (torch.from_numpy(x).repeat(len(users[0]), 1) for x in (items.dense, items.ids))
        logits = scorer(*user, *rows).reshape(len(users[0]), count, -1)
    return np.stack(
        (
            torch.sigmoid(logits[..., 0]).numpy(),
            torch.sigmoid(logits[..., 1]).numpy(),
            np.logaddexp(0, logits[..., 2].numpy()),
        ),
        axis=-1,
    )


def derived(scorer: Any, stage: Any, items: Any, folder: Path) -> None:
    folder.mkdir()
    own.Own(scorer, stage, items).write(items, folder)


def flat(scorer: Any, stage: Any, items: Any, folder: Path) -> None:
    """As a third party's file that is served as it is."""
    path = folder.with_suffix(".onnx")
    mapping = flat_onnx(scorer, scorer.schema, path)
    assert mapping["tasks"] == [*NAMES]
    named = InputMap(path, mapping["inputs"], TASKS, "value", tasks=NAMES)
    folder.mkdir()
    facts, parities = wrapper.write(
        Foreign(path, named, scorer.schema), stage, items, folder, flat=True
    )
    assert facts["tasks"] == [*NAMES]
    assert all(p.holds and p.max_abs <= 1e-5 for p in parities)


def methods(scorer: Any, stage: Any, items: Any, folder: Path) -> None:
    folder.mkdir()
    write_scoring(scorer, stage, scorer.schema, items, folder, forms=Forms(["torchscript"]))


WAYS: dict[str, Callable[..., None]] = {"derived": derived, "flat": flat, "methods": methods}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("model", "schema", "stage"),
    [
        ("ThreeTasks", SCHEMA, RANK),
        ("ThreeByParts", replace(BAGS, tasks=THREE_TASKS), PRERANK),
        ("ThreeByParts", SCHEMA, RANK),
    ],
)
def test_a_graph_gives_the_tasks_of_all_candidates_and_a_stage_the_best(
    model: str, schema: Any, stage: str, way: str, tmp_path: Path
) -> None:
    scorer = drawn_scorer(f"tests.example_models:{model}", "wide", schema)
    items, described = drawn_items(schema), stage_of(stage, schema)
    folder = tmp_path / way
    WAYS[way](scorer, described, items, folder)
    description = Description.load(folder)
    assert description.tasks == NAMES
    assert not {"TopK"} & {n.op_type for n in onnx.load(str(folder / ONNX_FILE)).graph.node}
    forms: list[Any] = ["onnx", "torchscript"] if way == "methods" else ["onnx"]
    for runtime in forms:
        serving = replace(ONE, runtime=runtime)
        _, graph = load_graph(folder, schema, serving)
        ranker = Score(folder, serving, Product(score=FORMULA))
        first = Score(folder, serving)
        for batch in (1, 3, MAX_BATCH):
            users = drawn_users(schema, batch)
            rows = drawn_rows(batch, SIZES.candidates if stage == PRERANK else SIZES.survivors)
            wanted = expected_tasks(scorer, items, users)
            (found,) = graph(*users, rows)
            user, place = np.nonzero(rows >= 0)
            np.testing.assert_allclose(
                found[user, place], wanted[user, rows[user, place]], rtol=1e-5, atol=1e-5
            )
            check(ranker(*users, rows), rows, by_formula(wanted), wanted, items, ranker.outputs)
            check(first(*users, rows), rows, wanted[..., 0], wanted, items, first.outputs)


def check(found: Any, rows: Any, scores: Any, tasks: Any, items: Any, outputs: Any) -> None:
    """The best of each user's rows, best first, with what the model says of them."""
    answer = dict(zip(outputs, found, strict=True))
    row_of = {int(name): row for row, name in enumerate(items.item_ids)}
    for user, own_rows in enumerate(rows):
        real = own_rows[own_rows >= 0]
        keep = answer[outputs[0]].shape[1]
        best = np.sort(scores[user, real])[::-1][:keep]
        named = answer[outputs[0]][user].tolist()
        assert named[len(best) :] == [-1] * (keep - len(best))
        chosen = named[: len(best)]
        if outputs[0] == "item_ids":
            chosen = [row_of[name] for name in chosen]
        assert len({*chosen}) == len(chosen)
        np.testing.assert_allclose(scores[user, chosen], best, rtol=1e-4, atol=1e-5)
        if TASK_SCORES in answer:
            given = answer[TASK_SCORES][user]
            np.testing.assert_allclose(
                given[: len(best)], tasks[user, chosen], rtol=1e-5, atol=1e-5
            )
            np.testing.assert_allclose(answer["scores"][user, : len(best)], best, rtol=1e-4)
            assert (given[len(best) :] == 0).all()
            assert (answer["scores"][user, len(best) :] == 0).all()


def test_what_is_no_number_comes_last_and_leaves_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = drawn_scorer("tests.example_models:ThreeByParts", "wide", SCHEMA)
    items = drawn_items(SCHEMA)
    methods(scorer, stage_of(RANK, SCHEMA), items, tmp_path / "rank")
    users, rows = drawn_users(SCHEMA, 3), drawn_rows(3, SIZES.survivors, pads=0)
    rows = np.sort(rows, axis=1)
    rows[1, :-3] = -1
    stage = Score(tmp_path / "rank", ONE, Product(score="log(ctr - 0.5)"))
    tasks = expected_tasks(scorer, items, users)[..., 0]
    real = [tasks[user, rows[user][rows[user] >= 0]] for user in range(3)]
    good = [int((values > 0.5).sum()) for values in real]
    assert 0 < sum(good) < sum(map(len, real))
    ids, scores, given = stage(*users, rows)
    for user in range(3):
        listed = min(len(real[user]), SIZES.results)
        assert (ids[user, :listed] >= 0).all()
        assert (ids[user, listed:] == -1).all()
        best = np.sort(real[user])[::-1][: min(good[user], SIZES.results)]
        np.testing.assert_allclose(scores[user, : len(best)], np.log(best - 0.5), rtol=1e-3)
        assert (scores[user, len(best) :] == 0).all()
        assert (given[user, len(best) :] == 0).all()
    assert np.isfinite(scores).all()
    assert stage.counts()["not_finite"] == sum(map(len, real)) - sum(good)
    assert [x.shape for x in stage(*(x[:0] for x in users), rows[:0])] == [
        (0, SIZES.results),
        (0, SIZES.results),
        (0, SIZES.results, 3),
    ]
    graph = stage._graph

    def broken(*inputs: Any) -> list[Any]:
        """An output that no formula reads is infinite for one candidate."""
        found = graph(*inputs)[0].copy()
        found[0, 4, 1] = np.inf
        return [found]

    plain = Score(tmp_path / "rank", ONE)
    before = plain(*users, rows)
    monkeypatch.setattr(plain, "_graph", broken)
    after = plain(*users, rows)
    assert items.item_ids[rows[0, 4]] not in after[0][0, : SIZES.results - 1]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[1:], other[1:])


@pytest.mark.parametrize(
    ("product", "message"),
    [
        (Product(score="ctr * buys"), "unknown output 'buys': known are ctr, engagement, revenue"),
        (Product(score="ctr *"), "is no formula"),
        (Product(prerank_score="buys"), "unknown output 'buys'"),
    ],
)
def test_a_stage_does_not_open_with_another_formula(
    product: Product, message: str, tmp_path: Path
) -> None:
    name = PRERANK if product.prerank_score else RANK
    scorer = drawn_scorer("tests.example_models:ThreeByParts", "wide", SCHEMA)
    methods(scorer, stage_of(name, SCHEMA), drawn_items(SCHEMA), tmp_path / name)
    with pytest.raises(FormulaError, match=message):
        load_stage(name, tmp_path / name, ONE, 10, product=product)


def test_a_preranker_has_the_formula_of_the_ranker_where_it_knows_all_of_it(
    tmp_path: Path,
) -> None:
    scorer = drawn_scorer("tests.example_models:ThreeByParts", "wide", SCHEMA)
    items = drawn_items(SCHEMA)
    methods(scorer, stage_of(PRERANK, SCHEMA), items, tmp_path / "prerank")
    users, rows = drawn_users(SCHEMA, 2), drawn_rows(2, SIZES.candidates)

    def survivors(**how: str) -> Any:
        return Score(tmp_path / "prerank", ONE, Product(**how))(*users, rows)[0].tolist()

    assert survivors() == survivors(score="buys * 2") == survivors(prerank_score="2 * ctr")
    assert survivors(score="revenue") == survivors(prerank_score="revenue") != survivors()
    assert survivors(score="ctr", prerank_score="revenue") == survivors(score="revenue")


def test_one_output_takes_no_formula(tmp_path: Path) -> None:
    scorer = drawn_scorer("dlrm", "tiny", BAGS)
    stage = stage_of(RANK, BAGS)
    write_scoring(scorer, stage, BAGS, drawn_items(BAGS), tmp_path)
    with pytest.raises(FormulaError, match="rank has one output"):
        Score(tmp_path, ONE, Product(score="click"))


@pytest.mark.parametrize("weights", ["int8", "float16"])
def test_smaller_forms_give_all_tasks(weights: Any, tmp_path: Path) -> None:
    scorer = drawn_scorer("tests.example_models:ThreeByParts", "wide", SCHEMA)
    items, stage = drawn_items(SCHEMA), stage_of(RANK, SCHEMA)
    write_scoring(scorer, stage, SCHEMA, items, tmp_path, Variant("float16", weights))
    users, rows = drawn_users(SCHEMA, 2), drawn_rows(2, SIZES.survivors, pads=0)
    _, graph = load_graph(tmp_path, SCHEMA, ONE)
    wanted = expected_tasks(scorer, items, users)
    wanted = np.take_along_axis(wanted, rows[:, :, None], axis=1)
    np.testing.assert_allclose(graph(*users, rows)[0], wanted, rtol=0.1, atol=0.1)


def test_parity_judges_every_task(tmp_path: Path) -> None:
    scorer = drawn_scorer("tests.example_models:ThreeByParts", "wide", SCHEMA)
    items, stage = drawn_items(SCHEMA), stage_of(RANK, SCHEMA)
    module = write_scoring(scorer, stage, SCHEMA, items, tmp_path)
    cases = [
        (*drawn_users(SCHEMA, batch), drawn_rows(batch, SIZES.survivors))
        for batch in (1, 3, MAX_BATCH)
    ]
    found = parity.compare(RANK, module, tmp_path, SCHEMA, cases)
    assert [p.batch for p in found] == [1, 3, MAX_BATCH]
    assert all(p.holds and p.limit == 1e-5 for p in found)
    bias = module.get_parameter("scorer.last.bias")
    with torch.no_grad():
        bias[2] += 1e-3  # of the last task alone
    wrong = parity.compare(RANK, module, tmp_path, SCHEMA, cases)
    assert not any(p.holds for p in wrong)
    with pytest.raises(parity.ParityError, match="differ from the trained model"):
        parity.report(wrong)
    assert len(items) == ITEMS


@pytest.fixture(scope="module")
def cascade(make_cascade: Callable[..., Any]) -> Any:
    """Both scoring stages have several tasks, in the forms that the export finds best."""
    return make_cascade(
        schema=replace(CRITEO, tasks=THREE_TASKS),
        items=300,
        users=40,
        models={
            "retrieve": ("two_tower", "tiny"),
            "prerank": ("tests.example_models:ThreeByParts", "default"),
            "rank": ("tests.example_models:ThreeTasks", "wide"),
        },
        sizes=Sizes(candidates=100, survivors=40, results=10),
        serving=Serving(max_batch_size=8),
        product=Product(score=FORMULA),
        state="auto",
        weights="auto",
    )


def test_an_export_chooses_forms_by_the_formula(cascade: Any) -> None:
    release = read_release(cascade.repository, 1)
    for stage in (PRERANK, RANK):
        assert release["stages"][stage]["tasks"] == [*NAMES]
        assert release["stages"][stage]["split"]  # was taken apart
        own = [p for p in release["parity"] if p["stage"] == stage]
        assert {p["runtime"] for p in own} == {"onnx", "torchscript"}
        assert all(p["quantised"] or p["max_abs"] <= 1e-5 for p in own)
        judged = [v for v in release["variants"] if v["stage"] == stage]
        assert [v["chosen"] for v in judged].count(True) == 1
        assert {(v["variant"]["state"], v["variant"]["weights"]) for v in judged} >= {
            ("float16", "float32"),
            ("float16", "int8"),
        }
        plain = next(v for v in judged if v["variant"]["state"] == "float32")
        assert plain["overlap"] == 1


def test_all_runtimes_answer_alike(cascade: Any) -> None:
    """Up to what the chosen form of model.onnx rounds."""
    torchscript = cascade.ask(cascade.pipeline(runtime="torchscript"))[1]
    np.testing.assert_allclose(cascade.ask(cascade.pipeline())[1], torchscript, atol=0.02)


def test_the_catalogue_of_several_tasks_is_refreshed(cascade: Any, tmp_path: Path) -> None:
    started = Refresh(cascade.repository, 1, cascade.checkpoints)
    items = read_catalogue(cascade.checkpoints)
    twins = Catalogue(items.dense[:5], items.ids[:5], items.item_ids.max() + 1 + np.arange(5))
    started.write(tmp_path, 2, change(started.item_ids, twins, items.item_ids[5:20]))
    verify(tmp_path, 2)
    before, after = (Pipeline.load(path, serving=ONE) for path in (cascade.repository, tmp_path))
    users = before.encode(cascade.dense[:4], cascade.categorical[:4])
    both = []
    for pipeline, wanted in ((before, items.item_ids[:5]), (after, twins.item_ids)):
        rows = np.full((4, 40), -1, np.int64)
        rows[:, :5] = np.searchsorted(
            pipeline.item_ids, wanted, sorter=np.argsort(pipeline.item_ids)
        )
        rows[:, :5] = np.argsort(pipeline.item_ids)[rows[:, :5]]
        both.append(pipeline.rank(*users, rows)[1])
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


@pytest.mark.parametrize("stage", [PRERANK, RANK])
def test_a_plan_asks_several_tasks_in_other_sizes(stage: str, cascade: Any, tmp_path: Path) -> None:
    folder = cascade.repository / stage / "1"
    product = Product(score=FORMULA)
    opened = Score(folder, ONE, product)
    resize(folder, 7, tmp_path / "resized", as_rows=stage == RANK)
    users = cascade.pipeline().encode(cascade.dense[:5], cascade.categorical[:5])
    rows = np.stack([np.random.default_rng(u).permutation(300)[:50] for u in range(5)])
    rows[0, 5:] = -1
    whole = opened(*users, rows)
    found = Score(tmp_path / "resized", ONE, product)(*users, rows)
    if stage == PRERANK:
        np.testing.assert_array_equal(found[0], whole[0][:, :7])
        return
    real = found[0] >= 0
    assert opened.item_ids is not None
    np.testing.assert_array_equal(opened.item_ids[found[0]][real], whole[0][:, :7][real])
    np.testing.assert_array_equal(found[1][real], whole[1][:, :7][real])
    assert np.isneginf(found[1][~real]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score", "ctr * buys"], "unknown output 'buys': known are ctr, engagement, revenue"),
        (["--prerank-score", "exp(ctr"], "'exp(ctr' is no formula"),
    ],
)
def test_an_export_refuses_a_formula_before_it_writes(
    arguments: list[str], message: str, cascade: Any, tmp_path: Path
) -> None:
    where = ["--checkpoints", str(cascade.checkpoints), "--repository", str(tmp_path / "new")]
    with pytest.raises(FormulaError) as caught:
        export_command.main(["build", *where, "--untuned", *arguments])
    assert message in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_flat_file_of_several_tasks_is_taken_apart(cascade: Any, tmp_path: Path) -> None:
    """As `export flat` writes it, and as a third party might."""
    files = ["--onnx", str(tmp_path / "r.onnx"), "--inputs", str(tmp_path / "r.json")]
    export_command.main(["flat", "--checkpoints", str(cascade.checkpoints), *files])
    where = ["--checkpoints", str(cascade.checkpoints), "--repository", str(tmp_path / "new")]
    given = ["--ranker-onnx", files[1], "--inputs", files[3], "--score", FORMULA]
    sizes = ["--candidates", "100", "--survivors", "40", "--index", "flat"]
    export_command.main(["build", *where, "--untuned", *given, *sizes])
    own = Pipeline.load(tmp_path / "new", serving=ONE)
    assert read_release(tmp_path / "new", 1)["stages"][RANK]["split"]
    users = own.encode(cascade.dense[:8], cascade.categorical[:8])
    ranker = checkpoint.load(cascade.checkpoints / RANK, cascade.schema)
    wanted = expected_tasks(ranker, read_catalogue(cascade.checkpoints), users)
    answer = own.answer(cascade.dense[:8], cascade.categorical[:8])
    row_of = {int(i): r for r, i in enumerate(read_catalogue(cascade.checkpoints).item_ids)}
    for user, ids in enumerate(answer["item_ids"]):
        rows = [row_of[int(item)] for item in ids]
        np.testing.assert_allclose(
            answer[TASK_SCORES][user], wanted[user, rows], rtol=1e-5, atol=1e-5
        )
