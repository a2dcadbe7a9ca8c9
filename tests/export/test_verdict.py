"""What an export says of a release: of its models, and of what its index and precisions cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cascade.config import Serving
from cascade.data.parts import matrix
from cascade.evaluation import metrics
from cascade.release import read_release
from cascade.spec import STAGES, Sizes
from cascade.training import checkpoint
from cascade.training.bundle import HELD_OUT_FILE, VERDICT_FILE
from export.build import write_release
from export.context import Build
from tests.cascades import BAGS, Cascade

SIZES = Sizes(40, 15, 10)


@pytest.fixture(scope="module")
def drawn(make_cascade: Callable[..., Cascade]) -> Cascade:
    """Held-out clicks are drawn by the ranker, and every item is retrieved."""
    small = {"items": 40, "sizes": SIZES, "serving": Serving(max_batch_size=8), "also": ()}
    return make_cascade(schema=BAGS, **small)


@pytest.fixture
def checkpoints(drawn: Cascade, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn.checkpoints, tmp_path / "checkpoints"))


def export(checkpoints: Path, **options: Any) -> dict[str, Any]:
    """release.json."""
    build = Build(
        checkpoints=checkpoints,
        repository=checkpoints.with_name("repository"),
        sizes=SIZES,
        serving=Serving(max_batch_size=8),
        measure_batching=False,
        **{"index": "ivf", "state": "float32", "weights": "float32", **options},
    )
    write_release(build)
    return read_release(build.repository, 1)


def sentences(release: dict[str, Any], by: str) -> list[str]:
    return [line["sentence"] for line in release["verdict"] if line["by"] == by]


def encoded(table: pa.Table, dense: str, ids: str) -> list[torch.Tensor]:
    """Two columns of lists."""
    both = matrix(table[dense]), matrix(table[ids]).astype(np.int64)
    return [torch.tensor(values) for values in both]


def test_the_stages_are_judged_on_held_out_rows(drawn: Cascade) -> None:
    release = read_release(drawn.repository, 1)
    lines = {(line["name"], line.get("other")): line for line in release["verdict"]}
    table = pq.read_table(drawn.checkpoints / HELD_OUT_FILE)
    positives = np.flatnonzero(table["label"].to_numpy() > 0.5)
    asked = np.random.default_rng(0).permutation(positives)[:200]
    scorer = checkpoint.load(drawn.checkpoints / "rank", drawn.schema)
    users = encoded(table, "user_dense", "user_ids")
    items = encoded(pq.read_table(drawn.checkpoints / "catalogue.parquet"), "dense", "ids")
    preranker = checkpoint.load(drawn.checkpoints / "prerank", drawn.schema)
    with torch.inference_mode():
        users = [side[asked] for side in users]
        logits = [
            model.score(model.user(*users), model.item(*items).expand(len(asked), -1, -1)).numpy()
            for model in (preranker, scorer)
        ]
    survivors = np.argsort(-logits[0], axis=1)[:, : SIZES.survivors]
    order = np.argsort(-np.take_along_axis(logits[1], survivors, 1), axis=1)[:, :10]
    answers = np.take_along_axis(survivors, order, 1)
    values = metrics.ndcgs(answers, table["item"].to_numpy()[asked][:, None], 10)
    _, owner = np.unique(np.hstack([*users]), axis=0, return_inverse=True)
    of_users = np.bincount(owner.ravel(), values) / np.bincount(owner.ravel())
    assert lines["rank", "prerank"]["value"] == pytest.approx(of_users.mean())
    assert lines["prerank", "retrieve"]["measure"] == "NDCG@10"
    assert ("retrieve", "popularity") in lines
    assert lines["prerank", "the retriever's order"]["measure"] == "recall@15"


def test_a_bad_preranker_is_a_warning(
    drawn: Cascade, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out users like what the preranker thinks the least of."""
    preranker = checkpoint.load(checkpoints / "prerank", drawn.schema)
    table = pq.read_table(checkpoints / HELD_OUT_FILE)
    users = encoded(table, "user_dense", "user_ids")
    items = encoded(pq.read_table(checkpoints / "catalogue.parquet"), "dense", "ids")
    item = torch.tensor(table["item"].to_pylist())
    with torch.inference_mode():
        logits = preranker.score_rows(*users, *(side[item] for side in items)).numpy()
    label = (logits < np.quantile(logits, 0.3)).astype(np.float32)
    where = table.column_names.index("label")
    pq.write_table(table.set_column(where, "label", [label]), checkpoints / HELD_OUT_FILE)
    release = export(checkpoints)
    text = capsys.readouterr().out
    assert any("prerank is worse than the retriever's order" in w for w in release["warnings"])
    for warning in release["warnings"]:
        assert f"WARNING: {warning}" in text
    assert all(line["sentence"] in text for line in release["verdict"])


def test_the_verdict_of_the_training_is_repeated(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"name": "rank", "other": "prerank", "sentence": "rank over prerank: well"}
    digests = {name: checkpoint.digest(checkpoints / name) for name in STAGES}
    said = {"checkpoints": digests, "verdict": [line], "warnings": ["retrieve is poor"]}
    (checkpoints / VERDICT_FILE).write_text(json.dumps(said))
    release = export(checkpoints, state="float16")
    assert sentences(release, "training") == ["rank over prerank: well"]
    assert not sentences(release, "held_out")
    assert release["warnings"] == ["retrieve is poor"]
    index, sizes, *_, graphs = sentences(release, "export")
    assert index.startswith("index: flat finds 1.0000 of the 40 nearest items")
    assert sizes == "sizes: 40 items, 40 candidates, 15 survivors, 10 results"
    assert graphs.startswith("graphs: ")
    stored = [line for line in sentences(release, "export") if "float16" in line]
    assert [line.split()[0] for line in stored] == ["prerank", "rank"]
    assert "of the ten best kept" in stored[0]

    said["checkpoints"]["rank"] = "another"
    (checkpoints / VERDICT_FILE).write_text(json.dumps(said))
    capsys.readouterr()
    release = export(checkpoints)
    assert "is of other models than those of this release" in capsys.readouterr().out
    assert not sentences(release, "training")
    assert sentences(release, "held_out")


def test_without_rows_the_export_speaks_of_itself(checkpoints: Path) -> None:
    (checkpoints / HELD_OUT_FILE).unlink()
    (checkpoints / VERDICT_FILE).write_text("no JSON")
    release = export(checkpoints, index="ivf", recall=1.1)
    assert {line["by"] for line in release["verdict"]} == {"export"}
    assert release["warnings"] == [
        "the index finds 1.0000 of the nearest items, below the target of 1.1; "
        "--index exact loses none"
    ]
