"""Training several tasks at once: their losses, what a model learns of which rows, and that it
learns."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade.data import Dataset, prepare
from cascade.data.source import DataError
from cascade.models import build, preset
from cascade.models.blend import Blend, BlendConfig
from cascade.models.registry import Recipe
from cascade.models.scoring.mmoe import MMoE
from cascade.schema import Task
from cascade.training.loop import Hyperparameters, fit
from cascade.training.objectives import Objective, amount_loss, objectives
from cascade.training.tasks import RankTask, with_items
from cascade.training.trainer import Trainer
from tests.example_models import Config, Textbook, TwoTasks
from tests.weights import assert_same_weights, fresh

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
NAN = float("nan")
HYPER = Hyperparameters(batch_size=256, epochs=2, lr=1e-3, embedding_lr=5e-3)
BINARY, AMOUNT = Task("like"), Task("spent", "amount", 0.3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("tasks")
    return prepare("synthetic:rows=30000,items=200,seed=3,tasks=3", folder / "data")


def logit_of(mean: float) -> torch.Tensor:
    """softplus of it is the mean."""
    return torch.tensor(mean, dtype=torch.double).expm1().log()


def test_the_best_prediction_of_an_amount_is_its_mean() -> None:
    amounts = torch.tensor([0.0, 0.0, 7.0, 1.0, 120.0], dtype=torch.double)
    best = logit_of(float(amounts.mean())).requires_grad_()
    loss = amount_loss(best.expand(5), amounts)
    loss.backward()
    assert float(best.grad) == pytest.approx(0, abs=1e-9)
    for other in (0.9, 1.1):
        assert amount_loss(best.detach().expand(5) * other, amounts) > loss
    mean = float(amounts.mean())
    by_hand = sum(y * np.log(y / mean) for y in (7, 1, 120)) / 5  # half the Poisson deviance
    assert float(loss.detach()) == pytest.approx(by_hand)
    same = torch.stack([logit_of(value) for value in (7.0, 1.0, 120.0)])
    assert float(amount_loss(same, amounts[2:])) == pytest.approx(0, abs=1e-9)


def test_the_loss_of_an_amount_is_finite_for_every_logit() -> None:
    logits = torch.tensor([-200.0, -80.0, -15.1, -14.9, 0.0, 30.0, 1e4]).repeat(2)
    logits.requires_grad_()
    amounts = torch.tensor([0.0, 1e6]).repeat_interleave(7)
    each = torch.stack(
        [amount_loss(logits[i : i + 1], amounts[i : i + 1]) for i in range(len(logits))]
    )
    each.sum().backward()
    assert torch.isfinite(each).all()
    assert torch.isfinite(logits.grad).all()
    assert (each >= 0).all()
    assert (logits.grad[7:9] < -1e5).all()  # an amount pulls up a prediction of nothing, too


def test_rows_that_do_not_know_a_label_do_not_count() -> None:
    for task, values in ((BINARY, (1.0, NAN, 0.0)), (AMOUNT, (3.5, NAN, 0.0))):
        objective = Objective(task, unit=2.0)
        logits = torch.tensor([0.3, 9.0, -1.0], requires_grad=True)
        loss = objective.loss(logits, torch.tensor(values))
        known = objective.loss(logits[[0, 2]], torch.tensor(values)[[0, 2]])
        assert torch.equal(loss, known)
        loss.backward()
        assert logits.grad[1] == 0
        assert logits.grad[[0, 2]].count_nonzero() == 2
        nothing = objective.loss(logits, torch.full((3,), NAN))
        assert float(nothing.detach()) == 0
        nothing.backward()
        measures = objective.measures(logits.detach().double(), np.array(values, np.float32))
        alone = objective.measures(
            logits.detach().double()[[0, 2]], np.array(values, np.float32)[[0, 2]]
        )
        assert measures == alone
        assert measures["auc"] == 1
        assert objective.measures(logits.detach(), np.full(3, NAN, np.float32)) == {}


def test_what_an_amount_is_counted_in_changes_no_loss(dataset: Dataset) -> None:
    """A model that always says the mean has the loss 1."""
    found = objectives(fresh(dataset.schema, "shared_bottom"), dataset)
    (revenue,) = [each for each in found if each.task.name == "revenue"]
    amounts = torch.tensor(dataset.read("train").tasks[:, 2], dtype=torch.double)
    mean = logit_of(float(amounts.mean())).expand(len(amounts))
    assert float(revenue.loss(mean, amounts)) == pytest.approx(1, abs=1e-6)
    cents = replace(revenue, unit=100 * revenue.unit)
    hundred = logit_of(100 * float(amounts.mean())).expand(len(amounts))
    assert float(cents.loss(hundred, 100 * amounts)) == pytest.approx(1, abs=1e-6)


def test_which_logit_learns_which_label(dataset: Dataset) -> None:
    several = objectives(fresh(dataset.schema, "mmoe"), dataset)
    assert [(each.task.name, each.logit, each.label) for each in several] == [
        ("click", 0, 0),
        ("engagement", 1, 1),
        ("revenue", 2, 2),
    ]
    assert [each.task.weight for each in several] == [1.0, 0.5, 0.3]
    for scorer in (fresh(dataset.schema), TwoTasks(dataset.schema, Config())):
        (click,) = objectives(scorer, dataset)  # no other label of the rows is `buy`
        assert (click.logit, click.label, click.task.weight) == (0, 0, 1.0)
    alone = dataset.with_label("revenue")
    (revenue,) = objectives(fresh(alone.schema, "shared_bottom"), alone)
    assert (revenue.task, revenue.logit, revenue.label) == (Task("revenue", "amount", 1.0), 0, 0)
    with pytest.raises(
        DataError, match=r"revenue is of the kind amount, and the task click of DLR"
    ):
        objectives(fresh(alone.schema), alone)


class Swapped(Textbook):
    """The tasks of the rows in another order, and one that they do not know."""

    tasks = ("revenue", "refund", "click")


def test_tasks_are_found_by_their_names(dataset: Dataset) -> None:
    torch.manual_seed(0)
    scorer = Swapped(dataset.schema, Config())
    assert scorer.kinds == ("amount", "binary", "binary")
    task = RankTask(scorer, dataset, HYPER, CPU)
    assert [(each.task.name, each.logit) for each in task.objectives] == [
        ("revenue", 0),
        ("click", 2),
    ]
    batch = dataset.read("train", 64)
    pairs = with_items(task.learnt(batch), task.items, CPU)
    loss = task.loss(pairs, 0)
    (dense, ids, _, _), items = pairs
    logits, tasks = scorer(dense, ids, *items), torch.tensor(batch.tasks)
    parts = [
        each.task.weight * each.loss(logits[:, each.logit], tasks[:, each.label])
        for each in task.objectives
    ]
    torch.testing.assert_close(loss, sum(parts))
    loss.backward()
    assert scorer.last.weight.grad[1].count_nonzero() == 0  # of `refund`
    assert scorer.last.weight.grad[2].count_nonzero() > 0


def test_a_shared_trunk_learns_all_tasks(dataset: Dataset, tmp_path: Path) -> None:
    scorer = fresh(dataset.schema, "shared_bottom", "default")
    task = RankTask(scorer, dataset, HYPER, CPU)
    first = next(task.batches(0, 0))
    task.loss(first, 0).backward()
    for name, parameter in scorer.named_parameters():
        assert parameter.grad.to_dense().count_nonzero(), name
    with torch.inference_mode():
        before = task.validate()
    history = fit(task, HYPER, tmp_path, "ranker")
    assert history[-1]["loss"] < history[0]["loss"]
    best = min(history, key=lambda record: record["objective"])
    assert best["objective"] < before["objective"]
    for name in ("click", "engagement", "revenue"):
        assert best[f"validation_auc_{name}"] > 0.65, name
    mean = logit_of(float(dataset.read("train").tasks[:, 2].mean()))
    amounts = torch.tensor(task.validation.tasks[:, 2], dtype=torch.double)
    of_mean = float(task.objectives[2].loss(mean.expand(len(amounts)), amounts))
    assert best["validation_deviance_revenue"] < of_mean
    assert best["validation_calibration_revenue"] == pytest.approx(1, abs=0.3)
    weighted = (
        best["validation_log_loss_click"]
        + 0.5 * best["validation_log_loss_engagement"]
        + 0.3 * best["validation_deviance_revenue"]
    )
    assert best["objective"] == pytest.approx(weighted)


def test_a_model_of_one_task_is_trained_as_if_there_were_no_other(
    dataset: Dataset, tmp_path: Path
) -> None:
    one = prepare("synthetic:rows=30000,items=200,seed=3", tmp_path / "data")
    short = replace(HYPER, epochs=0.2)
    trained = []
    for rows in (one, dataset, dataset.with_label("click")):
        task = RankTask(fresh(rows.schema), rows, short, CPU)
        name = str(len(trained))
        history = fit(task, short, tmp_path / name, name)
        trained.append((task.scorer.state_dict(), json.dumps(history)))
    for weights, history in trained[1:]:
        assert_same_weights(weights, trained[0][0])
        assert history == trained[0][1]


def test_a_task_alone_is_learnt_for_comparison(dataset: Dataset, tmp_path: Path) -> None:
    alone = dataset.with_label("engagement")
    task = RankTask(fresh(alone.schema, "shared_bottom", "default"), alone, HYPER, CPU)
    history = fit(task, HYPER, tmp_path, "engagement")
    assert max(record["validation_auc"] for record in history) > 0.65


def test_a_model_of_several_tasks_stays_as_it_is_where_rows_are_few(
    dataset: Dataset, tmp_path: Path
) -> None:
    trainer = Trainer(dataset, tmp_path, CPU, Recipe(rank="mmoe:tiny"), {})
    hyper = trainer.hyperparameters("rank")
    scorer = trainer.fresh("rank", hyper)
    assert isinstance(scorer, MMoE)
    task = trainer.task("rank", scorer, hyper)
    assert isinstance(task, RankTask)
    assert task.meet_unknowns
    assert len(task.objectives) == 3


def test_a_blend_adds_up_for_the_first_task(dataset: Dataset) -> None:
    config = BlendConfig("shared_bottom", preset("shared_bottom", "tiny"))
    blend = build("blend", asdict(config), dataset.schema)
    assert isinstance(blend, Blend)
    assert blend.tasks == blend.deep.tasks == ("click",)
    blend.silence()
    rows = dataset.read("train", 5)
    users = torch.tensor(rows.user_dense), torch.tensor(rows.user_ids)
    dense, ids = (torch.tensor(array[rows.item]) for array in dataset.items())
    assert blend.deep(*users, dense, ids).count_nonzero() == 0
