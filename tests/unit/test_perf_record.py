import json
import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from perf.harness.measurement import Load, Measurement
from perf.harness.record import RecordError, append, commit, config_hash, environment, read

ENVIRONMENT = {"sweep": "2030-01-01T00:00:00+00:00", "configuration": "ensemble-cpu"}
MEASUREMENT = Measurement(model="recommend", batch=1, load=Load("concurrency", 4)).to_dict()


def test_lines_are_appended_and_nothing_before_them_changes(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.jsonl"
    append(path, ENVIRONMENT, MEASUREMENT)
    first = path.read_bytes()
    append(path, ENVIRONMENT, MEASUREMENT)
    assert path.read_bytes().startswith(first)
    lines = read(path)
    assert len(lines) == 2
    assert [line["value"] for line in lines] == [4, 4]
    assert datetime.fromisoformat(lines[0]["time"]).utcoffset().total_seconds() == 0


def test_the_newest_run_of_a_configuration_and_machine_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    here, there = {"hardware": {"cores": 2}}, {"hardware": {"cores": 4}}
    append(path, {**ENVIRONMENT, **here}, MEASUREMENT, MEASUREMENT)
    append(path, {**ENVIRONMENT, **there}, MEASUREMENT)
    append(path, {**ENVIRONMENT, **here, "configuration": "other"}, MEASUREMENT)
    append(path, {**ENVIRONMENT, **here}, {**MEASUREMENT, "batch": 8})
    assert len(read(path)) == 5
    later = {**ENVIRONMENT, **here, "sweep": "2030-01-02T00:00:00+00:00"}
    (line,) = append(path, later, {**MEASUREMENT, "value": 16})
    lines = read(path)
    assert len(lines) == 4
    assert lines[-1] == line
    assert {(one["configuration"], one["hardware"]["cores"], one["batch"]) for one in lines} == {
        ("ensemble-cpu", 2, 1), ("ensemble-cpu", 4, 1), ("other", 2, 1), ("ensemble-cpu", 2, 8),
    }  # fmt: skip
    assert not list(tmp_path.glob("*.tmp"))


def test_damaged_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append(path, ENVIRONMENT, MEASUREMENT)
    path.write_text(path.read_text() + "\n{broken\n")
    with pytest.raises(RecordError, match="line 3: not JSON"):
        read(path)
    path.write_text("[1]\n")
    with pytest.raises(RecordError, match="line 1: not a measurement"):
        read(path)


def test_the_environment_is_json_and_tells_machine_and_versions(tmp_path: Path) -> None:
    versions = {"server": "2.51.0"}
    found = environment(configuration="c", payload={"rows": 3}, versions=versions)
    found = json.loads(json.dumps(found))
    assert found["versions"]["server"] == "2.51.0"
    assert found["versions"]["numpy"] == np.__version__
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_gib"] > 0
    assert found["hardware"]["cpu"]
    assert found["config_hash"] is None
    assert set(found) >= {"sweep", "commit", "dirty", "payload"}


def test_the_config_hash_follows_names_and_contents(tmp_path: Path) -> None:
    def repository(name: str, **configs: str) -> Path:
        for model, text in configs.items():
            (tmp_path / name / model / "1").mkdir(parents=True)
            (tmp_path / name / model / "config.pbtxt").write_text(text)
            (tmp_path / name / model / "1" / "weights").write_text(name)
        return tmp_path / name

    one = config_hash(repository("a", rank="x", prerank="y"))
    assert one == config_hash(repository("b", prerank="y", rank="x"))
    assert one != config_hash(repository("c", prerank="y", rank="z"))
    assert one != config_hash(repository("d", rank="y", prerank="x"))


def test_a_checkout_is_dirty_by_its_code_and_not_by_its_own_results(tmp_path: Path) -> None:
    assert commit(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "perf" / "results").mkdir(parents=True)
    (tmp_path / "perf" / "results" / "x.jsonl").write_text("{}")
    (tmp_path / "perf" / "report.md").write_text("#")
    assert commit(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "code.py").write_text("2")
    assert commit(tmp_path) == {"commit": head, "dirty": True}


def git(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()
