"""The verdict at the end of a training: lists of the models themselves, on the validation split."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade.data import Dataset, prepare
from cascade.evaluation import trained
from cascade.evaluation.queries import held_out
from cascade.models import build, preset
from cascade.models.scorer import Scorer
from cascade.spec import STAGES, Sizes
from cascade.training import checkpoint
from cascade.training.bundle import VERDICT_FILE

ML = Path(__file__).parents[3] / "shared" / "data" / "ml-latest-small"
SIZES = Sizes(100, 30, 10)
DESCRIBED = {"model": "dlrm", "config": {}, "schema_hash": ""}


def drawn(dataset: Dataset) -> dict[str, Scorer]:
    """Models of drawn weights; the preranker scores as the ranker does."""
    torch.manual_seed(0)

    def model(name: str, size: str) -> Scorer:
        return build(name, preset(name, size), dataset.schema).eval()

    ranker = model("dlrm", "tiny")
    return {"retrieve": model("two_tower", "tiny"), "prerank": ranker, "rank": ranker}


def opposite(scorer: Scorer) -> Scorer:
    """The same model with its order turned around."""
    turned = copy.deepcopy(scorer)
    last = [module for module in turned.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.neg_()
        last.bias.neg_()
    return turned


def test_the_lists_are_those_of_the_models(synthetic: Dataset) -> None:
    models = drawn(synthetic)
    found = trained.judge(synthetic, models, positives=40, sizes=SIZES).metrics
    queries = held_out(synthetic, 40, split="validation")
    users = synthetic.encoder.encode("user", queries.dense, queries.categorical)
    users, items = ([torch.tensor(part) for part in side] for side in (users, synthetic.items()))
    with torch.inference_mode():
        near = (models["retrieve"].user(*users) @ models["retrieve"].item(*items).T).numpy()
        states = models["rank"].item(*items).expand(len(queries), -1, -1)
        scores = models["rank"].score(models["rank"].user(*users), states).numpy()
    places = {"retrieve": [], "rank": []}
    for query, (positive,) in enumerate(queries.positives):
        candidates = np.argsort(-near[query])[: SIZES.candidates]
        ranked = candidates[np.argsort(-scores[query][candidates])][: SIZES.results]
        places["retrieve"].append(positive in candidates)
        places["rank"].append(positive in ranked)
    assert (found["items"], found["positives"]) == (300, len(queries))
    assert 0 < found["recall_at_100_retrieve"] == pytest.approx(np.mean(places["retrieve"]))
    assert found["recall_at_10_rank"] == pytest.approx(np.mean(places["rank"]))
    assert found["kept_by_prerank"] == 1 > found["kept_by_retrieve_order"]
    assert found["recall_at_100_popularity"] > 0


def test_a_preranker_below_one_at_hand_is_a_warning(synthetic: Dataset) -> None:
    models = drawn(synthetic)
    models |= {"prerank": opposite(models["rank"]), "prerank_labels": models["rank"]}
    found = trained.judge(synthetic, models, sizes=SIZES)
    assert found.metrics["kept_by_prerank"] < found.metrics["kept_by_prerank_labels"] == 1
    (warning,) = [text for text in found.verdict.warnings if "same model, not distilled" in text]
    assert "share kept of the ranker's top 10" in warning
    assert "a better preranker is at hand" in warning


def test_the_verdict_is_told_and_written(
    synthetic: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = drawn(synthetic)
    for name in STAGES:
        checkpoint.save(tmp_path / name, models[name], DESCRIBED)
    trained.tell(synthetic, models, tmp_path, "cpu")
    text = capsys.readouterr().out
    saved = json.loads((tmp_path / VERDICT_FILE).read_text())
    assert saved["split"] == "validation"
    assert saved["checkpoints"]["rank"] == checkpoint.digest(tmp_path / "rank")
    assert len(saved["verdict"]) >= 4
    assert all(pair["sentence"] in text for pair in saved["verdict"])
    assert all(f"WARNING: {warning}" in text for warning in saved["warnings"])
    assert saved["intervals"]["ndcg_at_10_rank"][0] <= saved["ndcg_at_10_rank"]


def test_a_judgement_that_fails_is_a_line(
    synthetic: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / VERDICT_FILE).write_text("{}")  # of an earlier training
    trained.tell(synthetic, {}, tmp_path, "cpu")
    assert capsys.readouterr().out == "no verdict on what was trained: KeyError: 'retrieve'\n"
    assert not (tmp_path / VERDICT_FILE).exists()


@pytest.mark.skipif(not ML.is_dir(), reason="no MovieLens rows here")
def test_untrained_towers_are_below_the_baselines_of_real_users(tmp_path: Path) -> None:
    folder = tmp_path / "ml"
    folder.mkdir()
    header, *lines = (ML / "ratings.csv").read_text().splitlines()
    some = [line for line in lines if int(line.split(",")[0]) <= 100]
    (folder / "ratings.csv").write_text("\n".join([header, *some]) + "\n")
    for name in ("movies.csv", "links.csv", "tags.csv"):
        (folder / name).symlink_to(ML / name)
    dataset = prepare(f"movielens:{folder}", tmp_path / "data")
    found = trained.judge(dataset, drawn(dataset), positives=150)
    assert found.metrics["distinct_users"] >= 10
    assert found.metrics["recall_at_100_neighbours"] > found.metrics["recall_at_100_retrieve"]
    assert any("retrieve is worse than" in text for text in found.verdict.warnings)
    assert found.metrics["recall_at_100_ease"] > found.metrics["recall_at_100_retrieve"]
    assert any("not tuned" in note for note in found.notes)
