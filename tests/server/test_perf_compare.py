"""The comparison with real servers: everything that can serve a release answers the same."""

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cascade.server.launcher import Server
from cascade.spec import TOPOLOGIES
from export.releases.rewire import rewire, serving_of
from perf.compare import main
from perf.contenders import servers
from perf.contenders.servers import TRITON, ContenderError, Endpoint, ask_http, check
from perf.harness.payload import Payload, PayloadError
from perf.harness.record import read


@pytest.fixture(scope="module")
def users(criteo: Any) -> Payload:
    return Payload(criteo.dense, criteo.categorical, "test")


@pytest.fixture(scope="module")
def fastapi(criteo: Any) -> Iterator[Endpoint]:
    with servers.fastapi(criteo.repository) as endpoint:
        yield endpoint


def test_fastapi_answers_what_the_pipeline_does(
    criteo: Any, users: Payload, fastapi: Endpoint
) -> None:
    check("FastAPI", fastapi, criteo.pipeline(), users, 40)


def test_an_answer_that_is_not_the_pipelines_is_found(
    criteo: Any, users: Payload, criteo_server: Server
) -> None:
    endpoint = Endpoint(criteo_server.http_url, TRITON)
    check("Triton", endpoint, criteo.pipeline(), users, 20)
    pipeline = criteo.pipeline()

    def shifted(dense: Any, categorical: Any) -> Any:
        item_ids, scores = pipeline(dense, categorical)
        return item_ids + 1, scores

    with pytest.raises(ContenderError, match="Triton, user 0: item"):
        check("Triton", endpoint, shifted, users, 1)  # type: ignore[arg-type]
    with pytest.raises(ContenderError, match="answers 400"):
        ask_http(endpoint, users.dense[:1, :3], users.categorical[:1])


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        (lambda user: b"{", 400, "not JSON"),
        (lambda user: [], 422, "dense: a list of 13"),
        (lambda user: {**user, "dense": user["dense"][1:]}, 422, "dense: a list of 13"),
        (lambda user: {**user, "dense": ["3"] * 13}, 422, "float or int or null"),
        (lambda user: {**user, "dense": [True] * 13}, 422, "float or int or null"),
        (lambda user: {**user, "dense": [1e39] * 13}, 422, ""),
        (lambda user: {**user, "categorical": None}, 422, "categorical: a list of"),
        (lambda user: {**user, "categorical": [7] * len(user["categorical"])}, 422, "str or null"),
        (lambda user: user, 200, "item_ids"),
    ],
)
def test_fastapi_says_what_is_wrong_with_a_request(
    change: Callable[[Any], Any], status: int, message: str, criteo: Any, fastapi: Endpoint
) -> None:
    request = fastapi.wire.request(criteo.dense[:1], criteo.categorical[:1])
    changed = change(json.loads(request.partition(b"\r\n\r\n")[2]))
    body = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    connection = http.client.HTTPConnection(fastapi.address, timeout=20)
    connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read().decode()
    assert (response.status, message in text) == (status, True), text


def test_a_server_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    with (
        pytest.raises(ContenderError, match="is not an exported repository"),
        servers.fastapi(tmp_path),
    ):
        pass


def test_a_comparison_from_end_to_end(
    criteo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "compare", tmp_path / "lines.jsonl"
    # Nothing is refused: a busy machine may fall behind what it could do a second ago.
    patient = tmp_path / "repository"
    rewire(criteo.repository, patient, replace(serving_of(criteo.repository), max_queue_size=0))
    repositories = [f"--{kind}repository={patient}" for kind in ("", "plain-", "flat-")]
    where = [f"--out={out}", f"--results={results}", f"--users={criteo.checkpoints}/users.jsonl"]
    names = ["fused", "flat", "fastapi", "bound", "bound_plain"]
    main([*repositories, *where, "--quick", "--contenders", *names])
    found = json.loads((out / "compare.json").read_text())
    assert found["failed"] == 0
    assert found["best"] in TOPOLOGIES
    wanted = {"vs_fastapi_4", "p50_vs_fastapi_1", "vs_bound", "vs_flat", "tuned_vs_split"}
    wanted |= {"p99_over_p50_half", "p99_ms_half", "late", "generator_us"}
    assert wanted <= set(found)
    assert "requests/s" in capsys.readouterr().out
    assert {path.name for path in out.glob("*.png")} == {"curve.png"}
    (line,) = read(results)
    assert (line["configuration"], line["figures"]) == ("compare-cpu", found)
    lines = [json.loads(text) for text in (out / "runs.jsonl").read_text().splitlines()]
    assert {line["contender"] for line in lines} == {*names}


def test_a_folder_that_is_no_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match="not an exported repository"):
        main(["--repository", str(tmp_path), "--out", str(tmp_path / "out")])
