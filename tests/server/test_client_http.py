"""Clients in other languages: the programs that `python -m clients.examples` prints get from a real
server what the Python client gets, and the documentation shows them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from cascade import pbtxt
from cascade.client import Recommender
from cascade.config import Product, Serving
from cascade.data.criteo import SCHEMA as CRITEO
from cascade.server.launcher import Server
from cascade.spec import Sizes
from cascade.store import UserStore
from clients import examples
from export.releases.rewire import rewire, serving_of
from export.users import layout_of
from perf.harness import analyzer
from tests.cascades import BAGS, PLAIN
from tests.docs import TEXTS, blocks
from tests.programs import status

HERE_DOCUMENT = re.compile(r"<<'JSON'\n(.*?)\nJSON\n", re.DOTALL)


@dataclass(frozen=True)
class Site:
    """A served repository and a client of it."""

    repository: Path
    server: Server
    client: Recommender

    @property
    def example(self) -> examples.Example:
        return examples.example(self.repository)

    def expected(self, tensors: bool) -> list[list[list[Any]]]:
        """The item ids of every request of a script, in their order."""
        found, ask = self.example, self.client
        first, second = found.users
        one = [ask.recommend(first)]
        answers = [
            one,
            [ask.recommend(second, exclude=found.items, allow=found.allow)],
            *([one] if tensors else []),
            ask.recommend_many([first, second]),
        ]
        if found.by_id:
            answers.append([ask.recommend_user("17", second)])
        return [[answer.item_ids.tolist() for answer in some] for some in answers]


@pytest.fixture(
    scope="module", params=["every kind of feature, and a store", "no numbers, string ids"]
)
def site(
    request: pytest.FixtureRequest,
    make_cascade: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    repository, stored = folder / "repository", "store" in request.param
    if stored:
        made = make_cascade(schema=BAGS, items=300, serving=Serving(max_batch_size=8))
    else:
        made = make_cascade(schema=replace(PLAIN, string_ids=True), items=150, users=40)
    store = f"lmdb:{folder / 'users'}" if stored else ""
    serving = replace(serving_of(made.repository), topology="paired" if stored else "fused")
    rewire(made.repository, repository, serving, Product(store=store))
    if stored:
        with UserStore.create(store, layout_of(repository)) as users:
            users.put(range(20), made.dense[:20], made.categorical[:20])
    with ExitStack() as stack:
        server = stack.enter_context(Server(repository))
        client = stack.enter_context(Recommender(server.url, deadline_s=30))
        yield Site(repository, server, client)


def trimmed(rows: list[list[Any]]) -> list[list[Any]]:
    return [[item for item in row if item not in (-1, "")] for row in rows]


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
@pytest.mark.parametrize("proxy", ["", "http://127.0.0.1:9"])
def test_curl_gets_what_the_client_gets(site: Site, proxy: str) -> None:
    """Also where a proxy is set, which leads nowhere."""
    environment = {**os.environ, "URL": f"http://{site.server.http_url}", "http_proxy": proxy}
    done = subprocess.run(
        ["bash"],
        input=examples.curl(site.example),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ready, *answers = done.stdout.splitlines()
    assert ready == "ready: 200"
    found = []
    for answer in answers:
        outputs = {output["name"]: output for output in json.loads(answer)["outputs"]}
        assert outputs.keys() == {"item_ids", "scores"}
        ids = outputs["item_ids"]
        assert ids["datatype"] == ("BYTES" if site.example.layout.string_ids else "INT64")
        found.append(trimmed(np.reshape(ids["data"], ids["shape"]).tolist()))
    assert found == site.expected(tensors=True)
    assert ("dense" in examples.curl(site.example)) == bool(site.example.layout.dense)


def test_grpcurl_asks_what_the_client_asks(site: Site) -> None:
    script = examples.grpcurl(site.example)
    with grpc.insecure_channel(site.server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = []
        for text in HERE_DOCUMENT.findall(script):
            request = json_format.Parse(text, service_pb2.ModelInferRequest())
            answer = stub.ModelInfer(request, timeout=30)
            (output,) = answer.outputs
            (content,) = answer.raw_output_contents
            if site.example.layout.string_ids:
                ids = [text.decode() for text in deserialize_bytes_tensor(content)]
            else:
                ids = np.frombuffer(content, "<i8")
            found.append(trimmed(np.reshape(ids, tuple(output.shape)).tolist()))
    assert found == site.expected(tensors=False)


def test_the_protoset_describes_the_service(site: Site) -> None:
    described = FileDescriptorSet.FromString(examples.protoset(site.example))
    pool = descriptor_pool.DescriptorPool()
    for file in described.file:
        pool.Add(file)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert {"ModelInfer", "ServerReady"} <= {method.name for method in service.methods}


@pytest.mark.skipif(not shutil.which("gofmt"), reason="there is no Go")
def test_the_go_program_is_formatted(site: Site, tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(str(examples.go(site.example)))
    done = subprocess.run(["gofmt", "-l", "-e", tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"context": ('{"cty": 3}',)}, 400, "unknown feature 'cty': did you mean 'city'?"),
        ({"context": ("{}",), "exclude": ("[1.5]",)}, 400, "exclude: 1.5 (float) came; expected"),
        ({"exclude": ("[]",)}, 400, "categorical is missing: send it, or the user's raw values"),
    ],
)
def test_what_plain_json_gets_wrong_is_told(
    site: Site, inputs: dict[str, tuple[str, ...]], code: int, words: str
) -> None:
    tensors = [
        {"name": name, "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
        for name, texts in inputs.items()
    ]
    url = f"http://{site.server.http_url}/v2/models/recommend_filtered/infer"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, json.dumps({"inputs": tensors}).encode(), timeout=30)
    assert caught.value.code == code
    assert words in json.loads(caught.value.read())["error"]


@pytest.mark.parametrize("flags", ["", "-i grpc --input-data zero -b 4"])
def test_perf_analyzer_needs_no_data_of_ours(site: Site, flags: str) -> None:
    """Whatever the features, the ids and the topology."""
    url = site.server.url if "grpc" in flags else site.server.http_url
    few = ("--measurement-mode", "count_windows", "--measurement-request-count", "4")
    short = (*few, "--stability-percentage", "999")
    done = analyzer.run(["-m", "recommend", "-u", url, *flags.split(), *short])
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    """For Criteo's features, without a release, with users by id."""
    pbtxt.write(tmp_path, CRITEO, Sizes(), Serving(), 1, product=Product(store="lmdb:users"))
    found = examples.example(tmp_path)
    printed = "\n".join(str(examples.FORMATS[name](found)) for name in ("curl", "grpcurl", "go"))
    shown = [content for _, content in blocks(TEXTS["client-http.md"], "sh|go")]
    assert len(shown) >= 6
    for block in shown:
        assert block in printed


def test_a_folder_without_a_cascade_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(examples.main, ["--repository", str(tmp_path)]) == 1
    assert "is not an exported repository" in capsys.readouterr().err
