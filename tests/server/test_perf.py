"""perf_analyzer, the server and its statistics, all real, on an ensemble of two small stages."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cascade.client.layout import Layout
from cascade.layout import RequestLayout
from cascade.schema import Feature, Schema
from cascade.server.launcher import Server
from perf.__main__ import Sweep, main, sweep
from perf.harness.analyzer import (
    AnalyzerError,
    Target,
    measure,
    perf_analyzer,
    read_profile,
    run,
)
from perf.harness.measurement import Load
from perf.harness.payload import generated
from perf.harness.record import read
from tests.docs import TEXTS, blocks

SCHEMA = Schema(
    "tiny",
    (
        Feature("row", "user", "dense", "identity"),
        Feature("age", "user", "dense", "log1p"),
        Feature("city", "user", "categorical", "vocabulary"),
        Feature("history", "user", "bag", "vocabulary", length=4),
        Feature("brand", "item", "categorical", "vocabulary"),
    ),
)
SHORT = 50  # requests in a window

# Answers the number of the row; refuses a negative one.
RETRIEVE = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [self.one(pb.get_input_tensor_by_name(r, "dense").as_numpy()) for r in requests]

    def one(self, dense):
        if (dense[:, 0] < 0).any():
            error = pb.TritonError("row below 0", pb.TritonError.INVALID_ARG)
            return pb.InferenceResponse(error=error)
        return pb.InferenceResponse([pb.Tensor("candidates", dense[:, :1].astype("int64"))])
"""
RANK = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        rows = [pb.get_input_tensor_by_name(r, "candidates").as_numpy() for r in requests]
        return [pb.InferenceResponse([pb.Tensor("item_ids", row)]) for row in rows]
"""
REQUEST = """
input { name: "dense" data_type: TYPE_FP32 dims: 2 }
input { name: "categorical" data_type: TYPE_STRING dims: 2 }
"""
STAGE = 'backend: "python" max_batch_size: 16 dynamic_batching {} instance_group { kind: KIND_CPU }'


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name, code, tensors in (
        (
            "retrieve",
            RETRIEVE,
            REQUEST + 'output { name: "candidates" data_type: TYPE_INT64 dims: 1 }',
        ),
        (
            "rank",
            RANK,
            'input { name: "candidates" data_type: TYPE_INT64 dims: 1 }'
            'output { name: "item_ids" data_type: TYPE_INT64 dims: 1 }',
        ),
    ):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.py").write_text(code)
        (root / name / "config.pbtxt").write_text(f'name: "{name}" {STAGE} {tensors}')
    (root / "recommend" / "1").mkdir(parents=True)
    features = json.dumps(
        RequestLayout.of(SCHEMA).to_json()
    )  # once more: a quoted string with escapes
    (root / "recommend" / "config.pbtxt").write_text(
        f"""name: "recommend" platform: "ensemble" max_batch_size: 16 {REQUEST}
        output {{ name: "item_ids" data_type: TYPE_INT64 dims: 1 }}
        parameters {{ key: "features" value {{ string_value: {features} }} }}
        ensemble_scheduling {{
          step {{ model_name: "retrieve" model_version: -1
            input_map {{ key: "dense" value: "dense" }}
            input_map {{ key: "categorical" value: "categorical" }}
            output_map {{ key: "candidates" value: "candidates" }} }}
          step {{ model_name: "rank" model_version: -1
            input_map {{ key: "candidates" value: "candidates" }}
            output_map {{ key: "item_ids" value: "item_ids" }} }}
        }}"""
    )
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with Server(repository) as running:
        yield running


def target(server: Server, folder: Path, rows: list[float]) -> Target:
    """Users whose first feature is given and whose others are drawn, missing values included."""
    with server.connect() as client:
        request = Layout.from_config(client.get_model_config("recommend").config)
    users = generated(request, len(rows))
    users.dense[:, 0] = rows
    users.write(folder / "users.json")
    return Target(server.url, folder / "users.json")


def test_a_sweep_records_what_client_and_server_saw(
    server: Server, repository: Path, tmp_path: Path
) -> None:
    users = tmp_path / "users.jsonl"
    users.write_text("".join(json.dumps({"row": n, "city": f"ü{n}"}) + "\n" for n in range(1200)))
    results = tmp_path / "results.jsonl"
    said: list[str] = []
    plan = Sweep(concurrencies=(1, 8), rate_shares=(0.25,), window_requests=SHORT)
    measured = sweep(
        server.url, plan=plan, users=users, results=results, repository=repository, say=said.append
    )
    lines = read(results)
    assert [line["throughput"] for line in lines] == [m.throughput for m in measured]
    assert [(line["mode"], line["configuration"]) for line in lines] == [
        ("concurrency", "ensemble-cpu"),
        ("concurrency", "ensemble-cpu"),
        ("rate", "ensemble-cpu"),
    ]
    for line in lines:
        ordered = [line[f"{p}_ms"] for p in ("p5", "p50", "p95", "p99", "p99_9", "max")]
        assert ordered[0] > 0
        assert ordered == sorted(ordered)
        assert line["throughput"] == pytest.approx(line["requests"] / line["duration_s"])
        assert (line["failed"], line["error"], line["requests"] >= 150) == (0, None, True)
        assert list(line["stages"]) == ["retrieve", "rank"]
        stages_ms = 0.0
        for stage in line["stages"].values():
            assert stage["inference_count"] >= line["requests"]
            stages_ms += sum(stage[f"{part}_us"] for part in ("input", "infer", "output")) / 1000
        assert 0 < stages_ms < line["max_ms"]
        assert line["versions"]["server"] == server.version
        assert line["versions"]["perf_analyzer"].count(".") == 2
        assert len(line["config_hash"]) == 64
        assert line["payload"] == {"source": "users.jsonl", "rows": 1200}
    alone, together = (line["stages"]["retrieve"] for line in lines[:2])
    assert alone["mean_batch"] == 1
    assert together["execution_count"] < together["inference_count"]
    stable = [line for line in lines[:2] if line["stable"]]  # what is unstable says no highest
    highest = max(line["throughput"] for line in stable or lines[:2])
    assert lines[2]["value"] == pytest.approx(highest / 4, abs=0.1)
    assert sum("[" in text for text in said) == 3
    assert "s left" in said[-3]


def test_perf_analyzer_runs() -> None:
    path, environment = perf_analyzer()
    again = perf_analyzer()  # its links are there already
    assert again == (path, environment)
    ran = subprocess.run([path, "--help"], env=environment, capture_output=True, text=True)
    assert "--concurrency-range" in ran.stdout + ran.stderr


def test_the_figures_agree_with_perf_analyzer_and_all_rows_are_sent(
    server: Server, tmp_path: Path
) -> None:
    export = tmp_path / "profile.json"
    ran = run(
        [
            *target(server, tmp_path, list(range(100))).arguments(),
            *("--concurrency-range", "4", "--measurement-mode", "count_windows"),
            *("--measurement-request-count", "50", "-s", "1000"),
            *("--profile-export-file", str(export)),
        ]
    )
    assert ran.returncode == 0, ran.stderr
    latency_ms = (trace := read_profile(export)).counted(Load("concurrency", 4))[0]
    duration_s = (trace.until_ns - trace.from_ns) / 1e9

    def said(what: str) -> float:
        found = re.search(rf"{what}: ([\d.]+)", ran.stdout)
        assert found, ran.stdout
        return float(found[1])

    assert len(latency_ms) == said("Request count")
    assert len(latency_ms) / duration_s == pytest.approx(said("Throughput"), rel=1e-3)
    assert latency_ms.mean() == pytest.approx(said("Avg latency") / 1000, rel=0.01)
    assert np.median(latency_ms) == pytest.approx(said("p50 latency") / 1000, rel=0.01)
    requests = json.loads(export.read_text(errors="replace"))["experiments"][0]["requests"]
    answers = [r["response_outputs"][0]["item_ids"] for r in requests]
    assert set(answers) == set(range(100))


def test_an_unstable_load_is_measured_all_the_same_and_marked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf.harness.measurement.STABILITY_PERCENT", 1e-6)
    measured = measure(target(server, tmp_path, list(range(50))), Load("concurrency", 2), 20)
    assert not measured.stable
    assert measured.error is None
    assert measured.requests >= 60
    assert measured.latency_ms["p50_ms"] > 0


@pytest.mark.parametrize("load", [Load("concurrency", 2), Load("rate", 100)])
def test_refused_requests_are_counted_and_quoted(
    server: Server, tmp_path: Path, load: Load
) -> None:
    measured = measure(target(server, tmp_path, [1, 2, -1, 4]), load, SHORT)
    assert measured.failed >= 1
    assert "row below 0" in (measured.error or "")
    assert measured.latency_ms == {}
    assert not measured.stable


def test_a_server_that_is_not_there_is_said_in_one_line(
    tmp_path: Path,
) -> None:
    results = tmp_path / "results.jsonl"
    with pytest.raises(AnalyzerError, match=r"127\.0\.0\.1:9"):
        main(["--url", "127.0.0.1:9", "--results", str(results)])
    assert not results.exists()


DOCUMENTED = [
    line
    for _, block in blocks(TEXTS["benchmarks.md"], "bash")
    for line in block.splitlines()
    if line.startswith("perf_analyzer ")
]


@pytest.fixture(scope="module")
def shell() -> dict[str, str]:
    """The environment of a shell after the line of docs/benchmarks.md, where a proxy is set that
    leads nowhere."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    plain = {**os.environ, **proxies, "PATH": "/usr/bin:/bin"}
    line = f'eval "$({shlex.quote(sys.executable)} -m perf.harness.analyzer --env)"; env -0'
    done = subprocess.run(["bash", "-c", line], env=plain, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)


def printed(server: Server, shell: dict[str, str], command: str) -> str:
    """What a user's perf_analyzer prints, over windows of a few requests, however long
    these take."""
    where = f"-u {server.url if 'grpc' in command else server.http_url}"
    short = "--measurement-mode count_windows --measurement-request-count 4"
    words = f"{command} {where} {short} --stability-percentage 999".split()
    done = subprocess.run(words, env=shell, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Throughput: 0 infer/sec" not in done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *DOCUMENTED,
        "perf_analyzer -m recommend --input-data random -b 8",
        "perf_analyzer -m recommend -i grpc --input-data zero -b 1",
        "perf_analyzer -m recommend -i grpc --input-data random --async --request-rate-range 50",
    ],
)
def test_perf_analyzer_asks_the_cascade_with_the_data_that_it_makes(
    criteo_server: Server, shell: dict[str, str], command: str
) -> None:
    """It fills every input that a model has, optional ones, too."""
    said = printed(criteo_server, shell, command)
    if "1:4" in command:
        assert [f"Concurrency: {n}, throughput" in said for n in (1, 2, 3, 4)] == [True] * 4
