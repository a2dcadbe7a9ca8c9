"""The real server's traces, the stages' marks and the client's clock make one line of time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cascade.spec import TOPOLOGIES
from export.releases.rewire import rewire
from perf.harness.payload import Payload, PayloadError, layout_of, load
from perf.waterfall import main
from perf.waterfall_trace import ask, intervals_of
from tests.cascades import Cascade

COMPUTE = ("encode", "tower", "search", "prerank.sort", "prerank", "rank.sort", "rank")


@pytest.fixture(scope="module")
def users(criteo: Cascade) -> Payload:
    return load(criteo.checkpoints / "users.jsonl", layout_of(criteo.repository))


@pytest.mark.parametrize("topology", ["ensemble", "paired"])
def test_the_intervals_of_a_request_are_all_of_it(
    topology: str, criteo: Cascade, users: Payload, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    rewire(criteo.repository, repository, replace(criteo.serving, topology=topology))
    calls, plain = ask(repository, users, (1, 3), 4, tmp_path)
    found = intervals_of(calls, tmp_path)
    assert len(calls) == 8
    assert {batch: len(times) for batch, times in plain.items()} == {1: 4, 3: 4}
    for name, parts in found.items():
        assert sum(parts.values()) == pytest.approx(calls[name].us)
        assert set(COMPUTE) < parts.keys()
        for model in TOPOLOGIES[topology]:
            assert {f"{model}.{hop}" for hop in ("queue", "there", "read", "back")} < parts.keys()


def test_the_command(criteo: Cascade, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, results = tmp_path / "out", tmp_path / "results.jsonl"
    repository = tmp_path / "repository"
    rewire(criteo.repository, repository, replace(criteo.serving, topology="fused"))
    arguments = {
        "--repository": repository,
        "--users": criteo.checkpoints / "users.jsonl",
        "--requests": "6",
        "--batch": "1,4",
        "--out": out,
        "--results": results,
    }
    main([str(word) for pair in arguments.items() for word in pair])
    summary = json.loads((out / "waterfall.json").read_text())
    assert summary["topology"] == "fused"
    assert {"waterfall_share", "waterfall_share_4"} < summary.keys()
    for found, line in zip(summary["batches"], results.read_text().splitlines(), strict=True):
        whole = found["measured_us"] - found["unexplained_us"]
        assert sum(found["parts_us"].values()) == pytest.approx(whole, abs=1)
        assert {"prerank.sort", "prerank", "rank", "search"} < found["parts_us"].keys()
        assert json.loads(line)["configuration"] == "waterfall-fused-cpu"
    assert (out / "waterfall.png").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert "measured without traces" in capsys.readouterr().out


def test_a_request_larger_than_the_server_takes(criteo: Cascade, tmp_path: Path) -> None:
    arguments = ["--repository", str(criteo.repository), "--batch", "33", "--out", str(tmp_path)]
    with pytest.raises(PayloadError, match="32 users at most"):
        main(arguments)
