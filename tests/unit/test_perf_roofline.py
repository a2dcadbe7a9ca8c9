"""The roofline: work counted against what torch counts, and the report on a CPU."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade.errors import CascadeError
from cascade.spec import PRERANK, RANK, RETRIEVE, stages
from cascade.training import checkpoint
from export.artifacts.stage_files import write_scoring
from export.context import Source
from perf import roofline
from perf.roofline import Device, Work

SPEEDS = Device("a device", bytes_per_s=1e9, flops={"float32": 1e12, "float16": 4e12})


def test_the_floor_is_the_longer_of_reading_and_computing() -> None:
    assert Work(read_bytes=5_000, multiply_adds=1).floor_us(SPEEDS) == pytest.approx(5)
    assert Work(read_bytes=1, multiply_adds=4_000_000).floor_us(SPEEDS) == pytest.approx(8)
    assert Work(1, 4_000_000).floor_us(SPEEDS, "float16") == pytest.approx(2)


def test_a_search_reads_the_matrix_once_for_all_users() -> None:
    assert roofline.work_of_search(32, 1000, 16, 2) == Work(32_000, 512_000)


@pytest.mark.parametrize("stage", [PRERANK, RANK])
def test_work_of_a_graph_is_what_torch_counts(criteo: Any, stage: str, tmp_path: Path) -> None:
    """Of a graph that computes what the model's methods say."""
    signature = next(s for s in stages(criteo.schema, criteo.sizes) if s.name == stage)
    scorer = checkpoint.load(criteo.checkpoints / stage, criteo.schema)
    items = Source.load(criteo.checkpoints).items
    write_scoring(scorer, signature, criteo.schema, items, tmp_path)
    width, users = signature.inputs[-1].dims[0], 3
    encoded = criteo.pipeline().retrieve(criteo.dense[:users], criteo.categorical[:users])[:2]
    dense, ids = (torch.from_numpy(x) for x in encoded)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        scorer.cross(scorer.user(dense, ids), torch.zeros(users, width, scorer.item_width))
    rows = np.tile(np.arange(width), (users, 1))
    rows[0, :10] = -1  # nothing is read for a pad
    found = roofline.work_of_graph(tmp_path, (*encoded, rows))
    assert found.multiply_adds == counter.get_total_flops() // 2
    assert found.read_bytes == (users * width - 10) * scorer.item_width * 4


def test_a_tower_gathers_no_candidates(criteo: Any) -> None:
    users = criteo.pipeline().retrieve(criteo.dense[:2], criteo.categorical[:2])[:2]
    found = roofline.work_of_graph(criteo.repository / RETRIEVE / "1", users)
    assert found.read_bytes == 0
    assert found.multiply_adds > 0


def test_the_report_on_a_cpu(
    criteo: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(roofline.COPIED, "cpu", 1 << 20)
    monkeypatch.setitem(roofline.MULTIPLIED, "cpu", 64)
    monkeypatch.setattr(roofline, "TIMED", 2)
    out = tmp_path / "perf" / "roofline.json"
    users = criteo.checkpoints / "users.jsonl"
    options = ["--repository", criteo.repository, "--users", users, "--out", out, "--items", 3000]
    roofline.main([*map(str, options)])
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["searched_items"] == 3000
    assert found["device"]["name"] == "cpu"
    assert set(found["device"]["flops"]) == {"float32", "float16", "bfloat16"}
    stages = [(row["stage"], row["users"]) for row in found["rows"]]
    assert sorted(stages) == sorted(
        (stage, users) for stage in (RETRIEVE, PRERANK, RANK, roofline.SEARCH) for users in (1, 32)
    )
    for stage, users in stages:
        assert re.search(rf"(?m)^\| {stage} +\| +{users} \|", printed)
    rows = {(row["stage"], row["users"]): row for row in found["rows"]}
    for name, stage in (("retrieval", roofline.SEARCH), (PRERANK, PRERANK), (RANK, RANK)):
        row = rows[stage, 32]
        assert found[f"{name}_over_floor"] == pytest.approx(row["measured_us"] / row["floor_us"])
    assert rows[roofline.SEARCH, 32]["work"]["read_bytes"] == 3000 * 8 * 2
    assert found["rank_pairs_per_s"] > 0
    assert "21.5 M pairs/s" in printed


def test_on_a_gpu_the_keys_say_so() -> None:
    row = roofline.row(roofline.SEARCH, 32, 10.0, 1.0, Work(1, 1), 4.0)
    found = roofline.summary(SPEEDS, [row], gpu=True)
    assert found["gpu_retrieval_over_floor"] == 2.5
    assert not any(key.startswith("retrieval") for key in found)


def test_what_cannot_be_measured_is_said(criteo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CascadeError, match="torch finds no GPU"):
        roofline.main(["--repository", str(criteo.repository), "--device", "cuda"])
