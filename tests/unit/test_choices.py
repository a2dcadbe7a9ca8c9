"""What models learn from a log of choices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from cascade.data import Dataset, prepare
from cascade.data.seen import Seen
from cascade.models import build
from cascade.models.blend import Blend, BlendConfig
from cascade.models.contract import check
from cascade.models.retrieval.two_tower import TwoTowerConfig
from cascade.training.choices import retrieve
from cascade.training.choices.rank import ChoiceRankTask, likeliest, usual
from cascade.training.choices.retrieve import ChoiceRetrievalTask
from cascade.training.choices.rows import Chosen, Queries, Recency, gains, seen
from cascade.training.loop import Hyperparameters, fit
from cascade.training.optimization.optimizers import make_optimizers
from cascade.training.tasks import catalogue, item_states, labelled, row_logits
from cascade.training.unknowns import Unknowns
from tests.weights import assert_same_weights, fresh

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
HYPER = Hyperparameters(batch_size=64, lr=3e-3, embedding_lr=3e-3, weight_decay=1e-2, validations=1)
SHOWS, USERS = 60, 80
FACTORS = TwoTowerConfig(width=4, layers=(16, 16), factors=True)

SCHEMA = """\
interactions: log.csv
item: show
user: user
label: liked
time: time
log: choices
past: false
features:
- {name: who, side: user, kind: categorical, column: user}
- {name: show, side: item, kind: categorical}
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Users who choose among the shows of their own group, and like most of them."""
    folder = tmp_path_factory.mktemp("choices")
    random = np.random.default_rng(0)
    lines = ["user,show,time,liked"]
    for time in range(4800):
        new = time >= 3840 and random.random() < 0.5
        user = USERS + int(random.integers(20)) if new else int(random.integers(USERS))
        show = user % 4 + 4 * int(random.integers(SHOWS // 4))
        lines.append(f"u{user},{show},{time},{int(random.random() < 0.8)}")
    (folder / "log.csv").write_text("\n".join(lines))
    (folder / "schema.yaml").write_text(SCHEMA)
    return prepare("table", folder / "data", schema_file=folder / "schema.yaml")


def retriever(log: Dataset, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build("two_tower", vars(FACTORS), log.schema)


@pytest.fixture(scope="module")
def trained(log: Dataset, tmp_path_factory: pytest.TempPathFactory):
    """Towers that were trained, and what validation said meanwhile."""
    towers, hyper = retriever(log), replace(HYPER, epochs=12, embedding_lr=0.03, patience=99)
    task = ChoiceRetrievalTask(towers, log, hyper, CPU)
    history = fit(task, hyper, tmp_path_factory.mktemp("towers"), "towers")
    return towers.eval(), history


DEEP = {"dlrm": {"width": 4, "bottom": (8,), "top": (8,)}, "two_tower": vars(FACTORS)}


def blend(log: Dataset, towers: torch.nn.Module, deep: str = "dlrm") -> Blend:
    config = BlendConfig(deep, DEEP[deep], "two_tower", vars(FACTORS))
    torch.manual_seed(1)
    ranker = Blend(log.schema, config)
    ranker.begin(towers, lambda model: usual(log, model, CPU))
    return ranker


def test_towers_find_the_shows_of_a_group(log, trained):
    """Half of the validation users are new, of whom nothing is known."""
    _, history = trained
    first, best = (f(h["validation_ndcg_at_10"] for h in history) for f in (min, max))
    assert best > first + 0.05


def test_ids_are_unknown_as_often_as_in_validation(log):
    unknowns = Unknowns(log, "user")
    ids = log.sample("validation", 20_000).user_ids[:, 0]
    ((share, unknown),) = unknowns.share.values()
    assert unknown == 1
    assert share == pytest.approx((ids == 1).mean())
    put = unknowns.put(torch.full((20_000, 1), 7), np.random.default_rng(0))
    assert float((put == 1).float().mean()) == pytest.approx(share, abs=0.02)
    assert set(put.flatten().tolist()) == {1, 7}


def test_a_row_counts_half_after_a_third_of_the_log(log):
    recency, time = Recency(log), log.read("train").time
    ends = np.quantile(time, [1, 2 / 3, 1 / 3, 0])
    np.testing.assert_allclose(recency.weight(ends, 4), [1, 0.5, 0.25, 0.125], rtol=0.01)
    assert recency.weight(None, 3).tolist() == [1, 1, 1]
    assert recency.mean == pytest.approx(recency.weight(time, len(time)).mean(), rel=0.01)


def test_the_rows_of_an_epoch_are_positives_thinned_by_age(log):
    rows = Chosen(log, 64)
    kept = [chosen for _, chosen in rows.batches(0, 0, 0)]
    assert len(kept) == rows.steps_per_epoch
    assert all((chosen.label == 1).all() for chosen in kept)
    count = sum(map(len, kept))
    expected = rows.recency.weight(log.read("train").time, log.rows("train"))
    assert count == pytest.approx((expected * log.read("train").label).sum(), rel=0.1)
    again = [chosen for _, chosen in rows.batches(0, 0, 2)]
    for one, other in zip(kept[2:], again, strict=True):
        assert np.array_equal(one.user_ids, other.user_ids)
        assert np.array_equal(one.item, other.item)


def test_the_loss_is_that_of_the_whole_catalogue(log, monkeypatch):
    monkeypatch.setattr(retrieve, "VECTOR_DROPOUT", 0.0)
    task = ChoiceRetrievalTask(retriever(log), log, HYPER, CPU)
    task.unknown_items.share.clear()
    batch = next(task.batches(0, 0))
    (dense, ids, chosen, _), candidates, _, (row, place) = batch
    assert candidates.tolist() == list(range(log.item_count))
    logits = task.scorer.user(dense, ids) @ task.scorer.item(*task.items[:]).t()
    for user in range(len(chosen)):  # without what the user had met
        met = set(place[row == user].tolist()) - {int(chosen[user])}
        logits[user, [*met]] = -torch.inf
    assert torch.isinf(logits).any()
    torch.testing.assert_close(task.loss(batch, 0), functional.cross_entropy(logits, chosen))


def test_a_large_catalogue_is_sampled_with_the_items_chosen(log, monkeypatch):
    monkeypatch.setattr(retrieve, "ALL", 10)
    task = ChoiceRetrievalTask(retriever(log), log, HYPER, CPU)
    batch = next(task.batches(0, 0))
    (_, _, chosen, _), candidates, ids, met = batch
    assert set(chosen.tolist()) <= set(candidates.tolist())
    assert len(candidates) == len(ids) < log.item_count
    _, whole = next(Chosen(log, HYPER.batch_size).batches(HYPER.seed, 0, 0))
    pairs = set(
        zip(*(part.tolist() for part in seen(task.queries.log, whole, "train")), strict=True)
    )
    found = set(zip(met[0].tolist(), candidates[met[1]].tolist(), strict=True))
    assert found == {(row, item) for row, item in pairs if item in candidates}
    assert torch.isfinite(task.loss(batch, 0))


def test_validation_leaves_out_what_users_have_seen(log, trained):
    towers, _ = trained
    task = ChoiceRetrievalTask(towers, log, HYPER, CPU)
    with torch.no_grad():
        found = task.validate()
        rows = task.queries.rows[:]
        scores = (towers.user(*rows[:2]) @ towers.item(*task.items[:]).t()).numpy()
    batch, seen = task.queries.batch, Seen.of(log)
    gains, hits = [], []
    for number, item in enumerate(batch.item):
        _, items = seen.before(batch.user[[number]], batch.time[[number]], "validation")
        own = scores[number, item]
        scores[number, items] = -np.inf
        place = int((scores[number] > own).sum())
        gains.append(1 / np.log2(2 + place) if place < 10 else 0)
        hits.append(place < 100)
    assert found["validation_ndcg_at_10"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert found["validation_recall_at_100"] == pytest.approx(np.mean(hits))
    assert len(Queries(log, CPU, 7)) == 7


def test_a_ranker_is_judged_by_other_users_than_its_retriever(log):
    first, rest = Queries(log, CPU, 100).rows[:], Queries(log, CPU, 60, after=40).rows[:]
    for part, other in zip(first, rest, strict=True):
        torch.testing.assert_close(part[40:], other)
    everything = len(Queries(log, CPU))
    assert len(Queries(log, CPU, 100, after=everything - 50)) == 50
    assert len(Queries(log, CPU, 100, after=everything - 49)) == 100  # too few are left


def test_a_blend_begins_with_the_order_of_its_retriever(log, trained):
    towers, _ = trained
    ranker = blend(log, towers).eval()
    check(ranker)
    rows, items = log.sample("test", 30), catalogue(log, CPU)
    users = (torch.tensor(rows.user_dense), torch.tensor(rows.user_ids))
    with torch.no_grad():
        states = item_states(ranker, items)
        logits = ranker.score(ranker.user(*users), states.expand(30, -1, -1))
        scores = towers.user(*users) @ towers.item(*items[:]).t()
    usual = logits - ranker.weight * scores  # what depends on the user alone
    torch.testing.assert_close(usual, usual[:, :1].expand_as(usual), atol=1e-5, rtol=1e-4)
    learnt = {name for name, weight in ranker.named_parameters() if weight.requires_grad}
    assert not any(name.startswith("retriever.") for name in learnt)


def test_the_factors_of_a_blend_say_nothing_of_a_usual_item(log, trained):
    towers, _ = trained
    ranker = blend(log, towers, "two_tower").eval()
    check(ranker)
    rows, items = log.sample("test", 30), catalogue(log, CPU)
    user = ranker.user(torch.tensor(rows.user_dense), torch.tensor(rows.user_ids))
    deep, wide, retriever = ranker.item_widths
    usual_item = torch.zeros(1, 1, deep + wide + retriever)
    usual_item[..., :deep] = ranker.deep_centre
    usual_item[..., deep + wide :] = ranker.centre
    with torch.no_grad():
        own = [part.item(*items[:]) for part in (ranker.deep, ranker.retriever)]
        drawn = log.sample("train", 50_000).item
        for centre, states in zip((ranker.deep_centre, ranker.centre), own, strict=True):
            torch.testing.assert_close(centre, states[torch.tensor(drawn)].mean(0))
        user_alone = user[:, ranker.user_widths[0] : ranker.user_widths[0] + 1]
        torch.testing.assert_close(ranker.score(user, usual_item.expand(30, -1, -1)), user_alone)


def test_a_ranker_of_choices_is_calibrated_without_a_change_of_order(log, trained):
    towers, _ = trained
    ranker = blend(log, towers, "two_tower").eval()
    task = ChoiceRankTask(ranker, towers, log, HYPER, CPU)
    rows, items = labelled(task.labelled, CPU), catalogue(log, CPU)
    before = row_logits(ranker, rows, items)
    assert "log loss" in task.calibrate(task.scorer)
    after = row_logits(ranker, rows, items)
    scale, shift = np.polyfit(before.numpy(), after.numpy(), 1)
    assert scale > 0
    torch.testing.assert_close(after, scale * before + shift, rtol=1e-4, atol=1e-4)
    chance = torch.sigmoid(after).mean()
    assert float(chance) == pytest.approx(task.labelled.label.mean(), abs=1e-3)


def test_negatives_are_unseen_items_of_the_retrievers_list(log, trained):
    towers, _ = trained
    task = ChoiceRankTask(blend(log, towers), towers, log, HYPER, CPU)
    seen = Seen.of(log)
    for (_, chosen), (_, rows, negatives, *_) in zip(
        task.rows.batches(0, 0, 0), task.batches(0, 0), strict=True
    ):
        assert rows[2].tolist() == chosen.item.tolist()
        offsets, items = seen.before(chosen.user, chosen.time, "train")
        for number, drawn in enumerate(negatives.tolist()):
            met = items[offsets[number] : offsets[number + 1]].tolist()
            assert chosen.item[number] not in drawn
            assert not set(drawn) & set(met)


def test_a_ranker_learns_the_choice_and_the_label(log, trained, tmp_path):
    towers, _ = trained
    ranker, hyper = blend(log, towers), replace(HYPER, epochs=3)
    task = ChoiceRankTask(ranker, towers, log, hyper, CPU)
    history = fit(task, hyper, tmp_path, "rank")
    assert history[-1]["loss"] < history[1]["loss"]
    assert {"validation_ndcg_at_10", "validation_log_loss"} <= history[0].keys()
    again = blend(log, towers)
    fit(ChoiceRankTask(again, towers, log, hyper, CPU), hyper, tmp_path / "again", "rank")
    assert_same_weights(again.state_dict(), ranker.state_dict())


def test_the_likeliest_weight_is_that_of_the_choices():
    """Choices are drawn by the softmax of logits plus half of others; the sharpness is free."""
    random = torch.Generator().manual_seed(0)
    logits, added = (torch.randn(20_000, 10, generator=random) for _ in range(2))
    drawn = torch.multinomial((2 * (logits + 0.5 * added)).softmax(1), 1, generator=random)
    own = torch.zeros(logits.shape, dtype=torch.bool).scatter_(1, drawn, True)
    own[:100] = False  # what was chosen is not among these
    assert likeliest(logits, added, own) == pytest.approx(0.5, abs=0.03)
    assert likeliest(logits, -added, own) == 0
    assert likeliest(-logits, added, own) == 0
    assert likeliest(logits, added, own & False) == 0


def test_a_ranker_stays_where_it_began_unless_lists_gain_more_than_noise(log, trained):
    towers, _ = trained
    task = ChoiceRankTask(blend(log, towers), towers, log, HYPER, CPU)
    count = len(task.queries)
    best = torch.zeros(count)  # every list has the item first
    few = torch.where(torch.arange(count) < 2, best, task._places())
    objectives = {}
    for name, places in (("start", task._places()), ("few", few), ("all", best)):
        task._places = lambda places=places: places
        objectives[name] = task.validate()["objective"]
    assert objectives["all"] < objectives["start"] < objectives["few"]
    assert -float(gains(few).mean()) < objectives["start"]  # two lists of many became better


def test_weights_of_a_batch_decay(log):
    """A table loses a part of the rows in the batch alone; all else loses it whole."""
    model = fresh(log.schema, "two_tower", seed=2)
    table = model.item_tower.embeddings.table
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    hyper = Hyperparameters(optimizer="sgd", lr=0.1, embedding_lr=0.1, weight_decay=0.5)
    optimizers = make_optimizers(model, hyper)
    rows = torch.tensor([3, 3, 5])
    (
        table(rows).sum() * 0 + sum((w * 0).sum() for w in model.item_tower.layers.parameters())
    ).backward()
    for optimizer in optimizers:
        optimizer.step()
    after = dict(model.named_parameters())
    name = "item_tower.embeddings.table.weight"
    left = torch.ones(len(table.weight), 1)
    left[[3, 5]] = 1 - 0.1 * 0.5
    torch.testing.assert_close(after[name], before[name] * left)
    name = "item_tower.layers.0.weight"
    torch.testing.assert_close(after[name], before[name] * (1 - 0.1 * 0.5))
