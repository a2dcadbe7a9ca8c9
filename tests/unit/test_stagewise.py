"""The evaluation stage by stage on score tables whose answers are known."""

from __future__ import annotations

import json
from math import log, log2
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.data.dataset import Batch, Dataset
from cascade.data.prepare import prepare
from cascade.errors import CascadeError
from cascade.evaluation import brute_force, clicks, report, stagewise
from cascade.evaluation.__main__ import main
from cascade.evaluation.baselines.lists import Histories
from cascade.evaluation.brute_force import Encoded, Ids
from cascade.evaluation.evaluate import evaluate
from cascade.evaluation.queries import EvaluationError, Queries, held_out
from cascade.evaluation.stagewise import Lists
from cascade.filters_wire import decode_exclude
from cascade.index.topk import share_kept
from cascade.models import build, preset
from cascade.models.scorer import Scorer
from cascade.schema import Feature, Schema
from cascade.training import tasks

Scores = brute_force.Floats


NUMBERED = Schema(
    "numbered",
    tuple(
        Feature(side, side, "categorical", "vocabulary", cardinality=1000)
        for side in ("user", "item")
    ),
)


class Table(Scorer):
    """Scores that are written down: a user's state is a line of the table, an item's its number."""

    def __init__(self, scores: Scores) -> None:
        super().__init__(NUMBERED)
        self.scores = torch.from_numpy(scores)

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.scores[ids[:, 0]]

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        return ids.float()

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        return user.gather(1, item[..., 0].long())


def numbered(count: int) -> Encoded:
    """Users or items that are known by their number alone."""
    return Encoded(np.zeros((count, 1), np.float32), np.arange(count, dtype=np.int64)[:, None])


def top(scores: Scores, k: int, among: Ids | None = None) -> Ids:
    """The best k [B, k] by a table of scores, of all items or of the given; -1 pads."""
    if among is not None:
        mask = np.full(scores.shape, -np.inf, np.float32)
        for line, rows in enumerate(among):
            mask[line, rows[rows >= 0]] = scores[line, rows[rows >= 0]]
        scores = mask
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    order = np.where(np.take_along_axis(scores, order, 1) > -np.inf, order, -1)
    return np.pad(order, ((0, 0), (0, k - order.shape[1])), constant_values=-1)


class TableCascade:
    """Three tables for three stages; the user's number is the raw value."""

    def __init__(
        self, retrieve: Scores, prerank: Scores, rank: Scores, ids: Ids, sizes: tuple[int, ...]
    ) -> None:
        self.tables, self.item_ids, self.sizes = (retrieve, prerank, rank), ids, sizes

    def retrieve(
        self, dense: Scores, categorical: Ids, exclude: Ids | None = None
    ) -> tuple[Scores, Ids, Ids]:
        ids = categorical[:, :1].astype(np.int64)
        scores = self.tables[0][ids[:, 0]].copy()
        for line, packed in enumerate([] if exclude is None else exclude[:, 0]):
            scores[line, np.isin(self.item_ids, decode_exclude(packed))] = -np.inf
        return dense, ids, top(scores, self.sizes[0])

    def prerank(self, user_dense: Scores, user_ids: Ids, candidates: Ids) -> Ids:
        return top(self.tables[1][user_ids[:, 0]], self.sizes[1], candidates)

    def rank(self, user_dense: Scores, user_ids: Ids, survivors: Ids) -> tuple[Ids, Scores]:
        scores = self.tables[2][user_ids[:, 0]]
        rows = top(scores, self.sizes[2], survivors)
        answer = np.where(rows < 0, -1, self.item_ids[rows])
        return answer, np.take_along_axis(scores, np.maximum(rows, 0), 1)


B, N = 70, 300
SIZES = (100, 40, 10)


def lists_of(
    retrieve: Scores,
    prerank: Scores,
    rank: Scores,
    sizes: tuple[int, ...] = SIZES,
    seen: Histories | None = None,
) -> Lists:
    items = retrieve.shape[1]
    ids = 7 * np.random.default_rng(5).permutation(items) + 3  # ids are not rows
    users = np.arange(len(retrieve))[:, None]
    queries = Queries(np.zeros((len(users), 1), np.float32), users.astype(object), users)
    return stagewise.ask(TableCascade(retrieve, prerank, rank, ids, sizes), queries, ids, seen)


def kept(
    lists: Lists, rank: Scores, seen: Histories | None = None, **prerankers: Scores
) -> dict[str, float]:
    others = {name: Table(scores) for name, scores in prerankers.items()}
    items = numbered(rank.shape[1])
    found = stagewise.kept_values(lists, Table(rank), items, others, seen=seen)
    return {name: float(values.mean()) for name, values in found.items()}


@pytest.fixture
def scores() -> Scores:
    return np.random.default_rng(0).standard_normal((B, N)).astype(np.float32)


def test_stages_that_agree_with_the_ranker_keep_all(scores: Scores) -> None:
    found = kept(lists_of(scores, scores, scores), scores, same=scores)
    assert set(found.values()) == {1.0}


def test_what_a_user_has_seen_is_in_no_list(
    scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users have seen from none to 69 of their best items, of which a request can name 50."""
    monkeypatch.setattr(stagewise, "MOST_EXCLUDED", 50)
    order = np.argsort(-scores, axis=1)
    items = np.concatenate([order[line, line::-1][:line] for line in range(B)])
    seen = Histories(np.cumsum([0, *range(B)]), items)
    lists = lists_of(scores, scores, scores, seen=seen)
    for rows in (lists.retrieve, lists.prerank, lists.rank):
        assert not seen.hold(rows).any()
        assert not (np.diff((rows < 0).astype(int), axis=1) < 0).any()  # pads stand at the end
    assert (lists.rank[:51] >= 0).all()
    assert seen.hold(lists_of(scores, scores, scores).rank).any()
    found = kept(lists.take(slice(51)), scores, seen=seen.take(np.arange(51)))
    assert set(found.values()) == {1.0}


def test_the_share_of_each_query_has_the_mean_of_all(scores: Scores) -> None:
    noisy = scores + np.random.default_rng(2).standard_normal(scores.shape).astype(np.float32)
    held = brute_force.candidate_scores(Table(scores), numbered(B), numbered(N), top(noisy, 20))
    each = stagewise.shares_kept(held, scores, 10)
    assert 0 < each.mean() < 1
    assert each.mean() == pytest.approx(share_kept(held, scores, 10))


def test_stages_that_reverse_the_ranker_keep_nothing(scores: Scores) -> None:
    found = kept(lists_of(scores, -scores, scores), scores, reverse=-scores)
    assert found["recall_retrieve"] == 1
    assert found["kept_by_prerank"] == found["kept_after_prerank"] == found["kept_by_cascade"] == 0
    assert found["kept_by_reverse"] == 0
    assert found["kept_by_retrieve_order"] == 1
    assert found["kept_by_rank"] == 1  # it does its best with what is left
    found = kept(lists_of(-scores, scores, scores), scores)
    assert found["recall_retrieve"] == found["kept_by_cascade"] == 0
    assert found["kept_by_prerank"] == 1  # of what was retrieved, it keeps the best
    found = kept(lists_of(scores, scores, -scores), scores)
    assert found["kept_by_prerank"] == 1
    assert found["kept_by_rank"] == 0  # a server with another ranker is found out


def test_shares_equal_set_overlaps(scores: Scores) -> None:
    """Without ties, the shares are the plain overlaps of sets."""
    noise = np.random.default_rng(1).standard_normal((2, B, N)).astype(np.float32)
    retrieve, prerank = scores + noise
    lists = lists_of(retrieve, prerank, scores)
    found = kept(lists, scores, other=scores - noise[0])

    def overlap(these: Ids, those: Ids) -> float:
        return float(
            np.mean([len(set(a) & set(b)) / 10 for a, b in zip(these, those, strict=True)])
        )

    best, among = top(scores, 10), top(scores, 10, lists.retrieve)
    assert found["recall_retrieve"] == pytest.approx(overlap(lists.retrieve, best))
    assert found["kept_after_prerank"] == pytest.approx(overlap(lists.prerank, best))
    assert found["kept_by_cascade"] == pytest.approx(overlap(lists.rank, best))
    assert found["kept_by_prerank"] == pytest.approx(overlap(lists.prerank, among))
    other = top(scores - noise[0], 40, lists.retrieve)
    assert found["kept_by_other"] == pytest.approx(overlap(other, among))
    assert 0 < found["kept_by_cascade"] < found["kept_by_prerank"] < 1


@pytest.mark.parametrize("items", [1, 7, 30, 60])
def test_small_catalogues(items: int) -> None:
    scores = np.random.default_rng(0).standard_normal((5, items)).astype(np.float32)
    found = kept(lists_of(scores, scores, scores), scores)
    assert set(found.values()) == {1.0}


def test_items_that_no_score_tells_apart_stand_in_for_each_other() -> None:
    scores = np.zeros((1, 40), np.float32)
    scores[0, :30] = 1  # thirty equals: which ten are called the best is chance
    assert share_kept(scores[:, 20:30], scores, 10) == 1
    assert share_kept(scores[:, 25:35], scores, 10) == 0.5


def test_an_item_told_twice_counts_once(scores: Scores) -> None:
    best = top(scores, 10)
    repeated = np.repeat(best[:, :1], 10, axis=1)
    found = brute_force.candidate_scores(Table(scores), numbered(B), numbered(N), repeated)
    assert share_kept(found, scores, 10) == pytest.approx(0.1)


def test_full_order_in_chunks_equals_a_sort(
    scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brute_force, "ITEMS_PER_CHUNK", 64)
    monkeypatch.setattr(tasks, "PAIRS", 640)
    rows, best = brute_force.full_order(Table(scores), numbered(B), numbered(N), 10)
    np.testing.assert_array_equal(rows, top(scores, 10))
    np.testing.assert_array_equal(best, np.take_along_axis(scores, rows, 1))
    rows, best = brute_force.full_order(Table(scores[:, :4]), numbered(B), numbered(4), 10)
    assert (rows[:, 4:] == -1).all()
    assert (best[:, 4:] == -np.inf).all()


def test_candidate_scores_equal_the_table(scores: Scores) -> None:
    candidates = top(-scores, 37)
    candidates[3, 30:] = -1
    found = brute_force.candidate_scores(Table(scores), numbered(B), numbered(N), candidates)
    expected = np.take_along_axis(scores, np.maximum(candidates, 0), 1)
    np.testing.assert_array_equal(found, np.where(candidates < 0, -np.inf, expected))
    best = brute_force.best_candidates(candidates, found, 10)
    np.testing.assert_array_equal(best, top(scores, 10, candidates))
    assert (brute_force.best_candidates(candidates, found, 37)[3, 30:] == -1).all()


def test_real_model_is_scored_alike_by_row_by_list_and_in_full(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    torch.manual_seed(0)
    scorer = build("dlrm", preset("dlrm", "tiny"), dataset.schema).eval()
    batch, items = dataset.read("test", 8), Encoded(*dataset.items())
    users = Encoded(batch.user_dense, batch.user_ids)
    everything = np.tile(np.arange(len(items)), (len(users), 1))
    listed = brute_force.candidate_scores(scorer, users, items, everything)
    by_row = brute_force.logits_of_rows(scorer, users, items.take(batch.item))[:, 0]
    np.testing.assert_allclose(listed[np.arange(8), batch.item], by_row, atol=1e-5)
    _, best = brute_force.full_order(scorer, users, items, 10)
    np.testing.assert_allclose(best, -np.sort(-listed, axis=1)[:, :10], atol=1e-5)


def test_held_out_positives_after_each_stage() -> None:
    """User 0's item is retrieved third, preranked second, ranked first; user 1's is never found."""
    lists = Lists(
        numbered(2),
        retrieve=np.array([[5, 6, 7, 8], [1, 2, 3, -1]]),
        prerank=np.array([[6, 7], [2, 1]]),
        rank=np.array([[7], [1]]),
    )
    positives = np.array([[7], [9]])
    popular = np.array([[9, 7, -1]] * 2)
    named = {name: getattr(lists, name) for name in ("retrieve", "prerank", "rank")}
    values = stagewise.list_values({**named, "popularity": popular}, positives)
    found = {name: of.mean() for name, of in values.items()}
    assert found["recall_at_2_retrieve"] == 0
    assert found["recall_at_10_retrieve"] == 0.5
    assert found["ndcg_at_10_retrieve"] == pytest.approx(0.5 / log2(4))
    assert found["ndcg_at_10_prerank"] == pytest.approx(0.5 / log2(3))
    assert found["ndcg_at_10_rank"] == found["map_at_10_rank"] == 0.5
    assert found["map_at_10_prerank"] == found["mrr_at_10_prerank"] == 0.25
    assert found["hit_rate_at_10_prerank"] == 0.5
    assert found["recall_at_1_popularity"] == 0.5
    assert found["recall_at_10_popularity"] == 1
    assert found["map_at_10_popularity"] == pytest.approx((1 / 2 + 1) / 2)


def test_item_ids_are_looked_up_and_strangers_refused() -> None:
    ids = np.array([30, 10, 20])
    rows = stagewise.rows_of(np.array([[10, 20, -1], [30, -1, -1]]), ids)
    assert rows.tolist() == [[1, 2, -1], [0, -1, -1]]
    with pytest.raises(EvaluationError, match="answered item 25, which is not in the catalogue"):
        stagewise.rows_of(np.array([[25]]), ids)
    with pytest.raises(EvaluationError, match="item 99"):
        stagewise.rows_of(np.array([[99]]), ids)


def test_click_metrics_name_each_model_and_the_truth() -> None:
    """Two users, two items, logits 0 or ln 3 (probability 3/4), and labels as likely as that."""
    table = np.array([[log(3), 0], [0, log(3)]], np.float32)
    users, items = np.repeat([0, 0, 1, 1], 4), np.tile(np.repeat([0, 1], 4), 2)
    truth = np.where(users == items, 0.75, 0.5).astype(np.float32)
    labels = np.array([1, 1, 1, 0, 1, 1, 0, 0] * 2, np.float32)
    labels[8:] = np.roll(labels[8:], 4)
    batch = Batch(labels, items, np.zeros((16, 1), np.float32), users[:, None], truth)
    models = {"": Table(table), "_flat": Table(np.zeros((2, 2), np.float32))}
    scored = clicks.score(models, [batch], numbered(2))
    found = scored.metrics()
    assert "gauc" not in found  # the rows do not say whose they are
    predicted, came = scored.reliability()[""]
    assert predicted == sorted(predicted)
    assert np.mean(came) == pytest.approx(0.625, abs=0.05)
    assert found["test_rows"] == 16
    assert found["test_rate"] == found["auc_flat"] + 0.125 == 0.625
    assert found["calibration"] == pytest.approx(1)
    assert found["calibration_flat"] == pytest.approx(0.8)
    for name in ("auc", "log_loss", "normalized_entropy", "calibration", "accuracy"):
        assert found[name] == pytest.approx(found[f"bayes_{name}"])
    assert found["log_loss_flat"] == pytest.approx(log(2))
    # 6 + 4 of 10 positives and 2 + 4 of 6 negatives have the higher and the lower logit
    assert found["auc"] == pytest.approx((6 * 4 + 0.5 * (6 * 2 + 4 * 4)) / 60)


def tiny_dataset(folder: Path) -> Dataset:
    return prepare("synthetic:rows=3000,items=120,seed=1", folder / "data")


def test_evaluate_and_report_on_a_prepared_data_set(tmp_path: Path) -> None:
    """A cascade that scores everything with the ranker itself loses nothing."""
    dataset = tiny_dataset(tmp_path)
    torch.manual_seed(0)
    ranker = build("dlrm", preset("dlrm", "tiny"), dataset.schema).eval()
    logistic = build("logistic", preset("logistic", "default"), dataset.schema).eval()
    cascade = ScorerCascade(dataset, ranker)
    models = {"rank": ranker, "prerank": ranker, "baseline": logistic}
    judged = evaluate(dataset, models, cascade, users=6, positives=20, rows=100)
    found = judged.metrics
    assert found["items"] == dataset.item_count
    assert (found["users"], found["positives"]) == (6, 20)
    assert found["recall_retrieve"] == found["kept_by_prerank"] == found["kept_by_cascade"] == 1
    assert found["recall_at_1000_retrieve"] == 1  # the whole catalogue was retrieved
    assert found["kept_by_baseline"] == 1  # untrained: all logits are equal, the order is kept
    assert 0.5 < found["bayes_auc"] < 1
    assert found["auc_baseline"] == 0.5
    assert found["auc_prerank"] == found["auc"]
    assert 0 < found["auc_logistic_regression"] < 1
    low, high = judged.intervals["auc"]
    assert low < found["auc"] < high
    text = report.write(judged, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {name: saved[name] for name in found} == found
    assert saved["intervals"]["auc"] == [low, high]
    assert saved["warnings"] == [*judged.verdict.warnings]
    assert [pair["sentence"] in text for pair in saved["verdict"]] == [True] * len(saved["verdict"])
    assert (tmp_path / "out" / "evaluation.md").read_text() == text
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    for line in ("| ranker ", "| best possible ", "| popularity ", "| baseline, on labels "):
        assert line in text


ML = Path(__file__).parents[2].parent / "shared/data/ml-latest-small"


@pytest.mark.skipif(not ML.is_dir(), reason="no MovieLens rows here")
def test_an_untrained_cascade_of_real_users_is_below_its_baselines(tmp_path: Path) -> None:
    lines = (ML / "ratings.csv").read_text().splitlines()
    (tmp_path / "ml").mkdir()
    chosen = [line for line in lines[1:] if int(line.split(",")[0]) <= 100]
    (tmp_path / "ml" / "ratings.csv").write_text("\n".join([lines[0], *chosen]) + "\n")
    for name in ("movies.csv", "links.csv", "tags.csv"):
        (tmp_path / "ml" / name).write_bytes((ML / name).read_bytes())
    dataset = prepare(f"movielens:{tmp_path / 'ml'}", tmp_path / "data")
    torch.manual_seed(0)
    ranker = build("dlrm", preset("dlrm", "tiny"), dataset.schema).eval()
    cascade = ScorerCascade(dataset, ranker)
    judged = evaluate(dataset, {"rank": ranker}, cascade, users=20, positives=150, rows=500)
    found = judged.metrics
    assert 10 <= found["distinct_users"] < found["positives"] <= 150
    assert found["kept_by_cascade"] > 0.9  # 1 for users whom one request can spare all they saw
    for name in ("recent", "neighbours", "ease"):
        assert found[f"recall_at_100_{name}"] > found["recall_at_100_retrieve"]
    assert "ndcg_at_10_with_seen" in found
    assert 0 < found["gauc"] < 1
    assert any("retrieve is worse than" in text for text in judged.verdict.warnings)
    text = report.write(judged, tmp_path / "out")
    assert "WARNING: retrieve is worse than" in text
    for line in ("| EASE ", "| item neighbours ", "| rank, seen not left out "):
        assert line in text


class ScorerCascade:
    """All three stages by one scorer: candidates are the whole catalogue in its order."""

    def __init__(self, dataset: Dataset, scorer: Scorer) -> None:
        self.dataset, self.scorer, self.items = dataset, scorer, Encoded(*dataset.items())
        self.item_ids = dataset.item_ids()

    def retrieve(
        self, dense: Scores, categorical: Ids, exclude: Ids | None = None
    ) -> tuple[Scores, Ids, Ids]:
        user_dense, ids = self.dataset.encoder.encode("user", dense, categorical)
        users = Encoded(user_dense, ids)
        rows, _ = brute_force.full_order(self.scorer, users, self.items, 2000)
        for line, packed in enumerate([] if exclude is None else exclude[:, 0]):
            left = ~np.isin(self.item_ids[rows[line]], decode_exclude(packed)) & (rows[line] >= 0)
            rows[line] = np.pad(rows[line, left], (0, 2000 - left.sum()), constant_values=-1)
        return user_dense, ids, rows[:, :1000]

    def prerank(self, user_dense: Scores, user_ids: Ids, candidates: Ids) -> Ids:
        return candidates[:, :200]

    def rank(self, user_dense: Scores, user_ids: Ids, survivors: Ids) -> tuple[Ids, Scores]:
        rows = survivors[:, :10]
        users = Encoded(user_dense, user_ids)
        scores = brute_force.candidate_scores(self.scorer, users, self.items, rows)
        return np.where(rows < 0, -1, self.dataset.item_ids()[rows]), scores


def test_held_out_queries_are_positives_of_the_test_split(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path)
    queries = held_out(dataset, 30, seed=3)
    again = held_out(dataset, 30, seed=3)
    np.testing.assert_array_equal(queries.positives, again.positives)
    assert queries.positives.shape == (30, 1)
    _, ids = dataset.encoder.encode("user", queries.dense, queries.categorical)
    test = dataset.read("test")
    liked = {
        (*user, int(item))
        for user, item, label in zip(test.user_ids.tolist(), test.item, test.label, strict=True)
        if label == 1
    }
    asked = zip(ids.tolist(), queries.positives[:, 0], strict=True)
    assert all((*user, int(item)) in liked for user, item in asked)


def test_test_split_without_positives_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tiny_dataset(tmp_path)
    none = dataset.raw_sample("test", 0, positives=True)
    monkeypatch.setattr(Dataset, "raw_sample", lambda *_, **__: none)
    with pytest.raises(EvaluationError, match="none of the 214 test rows is a positive"):
        held_out(dataset, 10)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("data", "is not a prepared data set"), ("checkpoints", "holds no finished model")],
)
def test_command_line_names_what_is_missing(missing: str, message: str, tmp_path: Path) -> None:
    if missing != "data":
        tiny_dataset(tmp_path)
    folders = [
        f"--{name}={tmp_path / name}" for name in ("data", "checkpoints", "repository", "out")
    ]
    with pytest.raises(CascadeError, match=message):
        main(folders)
    assert not (tmp_path / "out").exists()


def test_table_aligns_and_marks_what_is_undefined() -> None:
    text = report.aligned(["after", "share"], [["retrieve", "0.5"], ["rank", "–"]])
    assert text.splitlines() == [
        "| after    |   share |",
        "|:---------|--------:|",
        "| retrieve |     0.5 |",
        "| rank     |       – |",
    ]
    assert report.number(float("nan"), 3) == report.number(None, 3) == "–"
