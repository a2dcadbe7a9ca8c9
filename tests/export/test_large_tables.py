"""Tables beyond 2 GB, which a protobuf message cannot hold, and item states that are shared.

The files are sparse and the tables all zero but for a few rows, so that they cost little disk and
memory; what is proven is the way there and back, not the arithmetic.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade.artifact import Description, Mapped
from cascade.config import Serving
from cascade.models.scorer import Scorer
from cascade.models.scoring import dlrm, logistic
from cascade.runtime.load import load_graph
from cascade.schema import Feature, Schema
from cascade.spec import RANK, RETRIEVE, Sizes, stages
from export.artifacts import onnx_file, parity, stage_files
from export.artifacts.graphs import UserTower
from export.artifacts.stage_files import write_scoring
from export.context import Catalogue, Forms

ROOT = Path(__file__).parents[2]
TWO_GB = 2**31
SIZES = Sizes(candidates=40, survivors=20, results=5)


def schema_of(item_features: int) -> Schema:
    features = [
        Feature("age", "user", "dense", "identity"),
        Feature("city", "user", "categorical", "vocabulary"),
        *(Feature(f"p{i}", "item", "categorical", "vocabulary") for i in range(item_features)),
    ]
    schema = Schema("large", tuple(features))
    return schema.fitted({f.name: (9, f.name) for f in features if f.kind != "dense"})


def endless_catalogue(schema: Schema, count: int) -> Catalogue:
    """`count` items that take no memory but for their names."""
    dense = np.broadcast_to(np.float32(0), (count, schema.dense_width("item")))
    ids = np.broadcast_to(np.int64(1), (count, schema.ids_width("item")))
    return Catalogue(dense, ids, np.arange(count) + 10**10)


def sparse_state(known: dict[int, Any]) -> Any:
    """In place of computing millions of item states: a file with a few rows that are not zero."""

    def write(scorer: Scorer, items: Catalogue, folder: Path, *_: Any) -> Mapped:
        mapped = Mapped("item_state.bin", "float32", (len(items), scorer.item_width))
        with (folder / mapped.file).open("wb") as file:
            file.truncate(mapped.nbytes)
        values = np.memmap(folder / mapped.file, mapped.dtype, "r+", shape=mapped.shape)
        for row, state in known.items():
            values[row] = state
        return mapped

    return write


def users_of(schema: Schema, count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    dense = random.normal(size=(count, schema.dense_width("user"))).astype(np.float32)
    return dense, random.integers(9, size=(count, 1))


@pytest.fixture(scope="module")
def large_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A ranker whose item state takes more than 2 GB."""
    schema = schema_of(20)
    torch.manual_seed(0)
    scorer = dlrm.DLRM(schema, dlrm.DLRMConfig(width=16, bottom=(8,), top=(8,))).eval()
    count = TWO_GB // (4 * scorer.item_width) + 100_000
    random = np.random.default_rng(0)
    rows = [0, 1, count // 2, TWO_GB // (4 * scorer.item_width), count - 2, count - 1]
    known = {row: random.normal(size=scorer.item_width).astype(np.float32) for row in rows}
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_files, "write_item_state", sparse_state(known))
        items = endless_catalogue(schema, count)
        stage = next(stage for stage in stages(schema, SIZES) if stage.name == RANK)
        module = write_scoring(scorer, stage, schema, items, folder, forms=Forms(["torchscript"]))
    yield {"folder": folder, "schema": schema, "module": module, "rows": rows, "count": count}
    for path in folder.iterdir():
        path.unlink()


def test_an_item_state_beyond_2_gb(large_state: dict[str, Any]) -> None:
    folder, schema, module = (large_state[name] for name in ("folder", "schema", "module"))
    assert (folder / "item_state.bin").stat().st_size > TWO_GB
    assert (folder / "model.onnx").stat().st_size < 100_000
    assert (folder / "model.pt").stat().st_size < 100_000
    users = users_of(schema, 3)
    zeros = np.arange(10, 44)  # items whose state is zero: all equal
    rows = np.tile(np.concatenate((large_state["rows"], zeros)), (3, 1))
    found = parity.compare(RANK, module, folder, schema, [(*users, rows)])
    assert [(p.runtime, p.holds, p.overlap) for p in found] == [
        ("onnx", True, 1),
        ("torchscript", True, 1),
    ]
    # Alone, every known row is seen for what it is: the score is that of its state.
    for runtime in ("onnx", "torchscript"):
        _, graph = load_graph(folder, schema, Serving(runtime=runtime, threads=1))  # type: ignore[arg-type]
        scores = []
        for row in (*large_state["rows"], 10):
            alone = np.full((1, 40), -1)
            alone[0, 7] = row
            ids, score = graph(*(values[:1] for values in users), alone)
            assert ids[0].tolist() == [row + 10**10, -1, -1, -1, -1]
            state = torch.from_numpy(np.array(module.item_state[row]))
            with torch.inference_mode():
                user = module.scorer.user(*(torch.from_numpy(v[:1]) for v in users))
                expected = torch.sigmoid(module.scorer.cross(user, state[None, None]))
            assert score[0, 0] == pytest.approx(float(expected), abs=1e-6)
            scores.append(float(score[0, 0]))
        assert len(set(scores)) == len(scores)


# Loads a stage, reads part of its item state through it, and tells of its memory when asked.
READER = """
import json, sys
from pathlib import Path
import numpy as np
from cascade.stages.load import load_stage
from cascade.config import Serving

folder, runtime, rows, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
stage = load_stage("rank", folder, Serving(runtime=runtime, threads=1), 40)
wanted = np.arange(0, rows, step)
for start in range(0, len(wanted), 20_000):
    part = wanted[None, start : start + 20_000]
    stage(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64), part)
print("read", flush=True)
sys.stdin.readline()
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
print(json.dumps({line.split(":")[0]: int(line.split()[1]) for line in lines}), flush=True)
"""


@contextmanager
def reader(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", READER, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "read\n"
            yield process
        finally:
            process.kill()


def memory(process: subprocess.Popen[str]) -> dict[str, int]:
    """/proc/PID/smaps_rollup, in MB."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return {name: kb // 1024 for name, kb in json.loads(process.stdout.readline()).items()}


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_processes_share_one_item_state(large_state: dict[str, Any], runtime: str) -> None:
    """Both read 600 MB of it from the pages of one file, and neither has a copy. How many processes
    map a page at a moment is the kernel's choice, so that only copies are counted."""
    width = 4 * large_state["module"].item_state.shape[1]
    rows, step = 600 * 2**20 // width, max(1, 4096 // width)  # every page of 600 MB
    arguments = (str(large_state["folder"]), runtime, str(rows), str(step))
    with reader(*arguments) as first, reader(*arguments) as second:
        for found in (memory(first), memory(second)):
            assert found["Rss"] > 600
            assert found["Private_Dirty"] < found["Rss"] - 550


def test_a_user_table_beyond_2_gb(tmp_path: Path) -> None:
    schema = schema_of(2)
    model = logistic.LogisticRegression(schema, logistic.LogisticConfig()).eval()
    rows = TWO_GB // 4 + 1000
    table = torch.zeros(rows, 1)  # pages that nobody writes take no memory
    cities = np.array([0, 5, rows // 2, TWO_GB // 4, rows - 1, 7])
    weights = np.array([1, -1, 0.5, 2, -2, 0], np.float32)
    table[cities] = torch.from_numpy(weights[:, None])
    model.user_ids.table.weight = torch.nn.Parameter(table)
    names = ("user_dense", "user_ids")
    description = Description(RETRIEVE, schema.hash, names, ("user_vector",), mapped={})
    dense = np.zeros((len(cities), 1), np.float32)
    users = dense, cities[:, None]
    example = dict(zip(names, map(torch.from_numpy, users), strict=True))
    onnx_file.export(UserTower(model), example, description, tmp_path)
    description.save(tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size > TWO_GB
    assert (tmp_path / "model.onnx").stat().st_size < 100_000
    _, graph = load_graph(tmp_path, schema, Serving(threads=1))
    for batch in (1, 3, len(cities)):
        found = graph(*(values[-batch:] for values in users))[0]
        np.testing.assert_array_equal(found[:, 0], weights[-batch:])
    (tmp_path / "weights.bin").unlink()
