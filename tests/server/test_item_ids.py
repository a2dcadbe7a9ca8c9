"""Item ids through the real server and its clients: strings, and integers beyond 2^53."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cascade.client import InvalidInput, Recommender
from cascade.config import Product
from cascade.server.launcher import Server
from cascade.spec import DENY_LIST, RECOMMEND_FILTERED
from cascade.store import UserStore
from clients import batch, recommend
from export import __main__ as export_command
from export.releases.items import read_items
from export.releases.publishing import Publisher
from export.releases.refresh import Refresh, change
from export.releases.repository import Repository
from export.releases.rewire import from_export, rewire, serving_of
from export.users import layout_of
from tests.cascades import Cascade, string_id
from tests.programs import status
from tests.string_ids import Twins, make_twins, named, new_items

USERS = 10
IN_FORCE_S = 1.0
BIG = 2**62 + 1  # no double has it


@pytest.fixture(scope="module")
def twins(make_cascade: Callable[..., Cascade]) -> Twins:
    return make_twins(make_cascade)


@dataclass(frozen=True)
class Served:
    """A published release of the twin with strings, all stages in one process."""

    repository: Repository
    server: Server
    client: Recommender


@pytest.fixture(scope="module")
def served(twins: Twins, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, strings = tmp_path_factory.mktemp("strings"), twins[1]
    store = f"lmdb:{folder / 'users'}"
    serving = replace(serving_of(strings.repository), topology="fused")
    rewire(strings.repository, folder / "export", serving, Product(store=store))
    repository = Repository(folder / "repository")
    Publisher(repository, say=lambda line: None).publish(from_export(folder / "export"))
    with UserStore.create(store, layout_of(repository.root)) as users:
        users.put(range(USERS), strings.dense[:USERS], strings.categorical[:USERS])
    with Server(repository.root) as server, Recommender(server.url, deadline_s=30) as client:
        yield Served(repository, server, client)


def posted(server: Server, **inputs: list[str]) -> Any:
    """The answer to plain JSON over HTTP: bytes inputs [B, 1]."""
    tensors = [
        {"name": name, "shape": [len(values), 1], "datatype": "BYTES", "data": values}
        for name, values in inputs.items()
    ]
    request = urllib.request.Request(
        f"http://{server.http_url}/v2/models/{RECOMMEND_FILTERED}/infer",
        json.dumps({"inputs": tensors}).encode(),
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            outputs = json.load(answer)["outputs"]
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]
    return next(output for output in outputs if output["name"] == "item_ids")


def test_strings_are_what_integers_would_be(served: Served, twins: Twins) -> None:
    integers, scores = twins[0].ask(twins[0].pipeline(), 0, USERS)
    expected = [[item.decode() for item in row] for row in named(integers)]
    users = twins[1].users[:USERS]
    assert served.client.layout().string_ids
    for found in (
        served.client.recommend_many(users),
        served.client.recommend_users([*range(USERS)]),
    ):
        assert [one.item_ids.tolist() for one in found] == expected
        np.testing.assert_allclose(np.stack([one.scores for one in found]), scores, atol=1e-5)


def test_filters_take_strings(served: Served, twins: Twins) -> None:
    user = twins[1].users[0]
    plain = served.client.recommend(user).item_ids
    found = served.client.recommend(user, exclude=plain[:3])
    assert not {*found.item_ids} & {*plain[:3]}
    assert len(found.item_ids) == 10
    context = [json.dumps(user)]
    by_json = posted(served.server, context=context, exclude=[json.dumps(plain[:3].tolist())])
    assert by_json["datatype"] == "BYTES"
    assert by_json["data"] == found.item_ids.tolist()
    few = served.client.recommend(user, allow={"brand": ["brand-1"], "shop": ["shop-1", "shop-2"]})
    assert few.short
    assert all(few.item_ids)
    refused = posted(served.server, context=context, exclude=["[17]"])
    assert "exclude: 17 (int) came; expected a list of strings" in refused
    with pytest.raises(InvalidInput, match=r"exclude: 17 \(int\) came"):
        served.client.recommend(user, exclude=[17])  # type: ignore[list-item]


def test_a_deny_list_of_strings(served: Served, twins: Twins) -> None:
    user = twins[1].users[1]
    best = served.client.recommend(user).item_ids
    deny = served.repository.root / DENY_LIST
    deny.write_text("".join(f"{item}\n" for item in best[:4]))
    time.sleep(IN_FORCE_S)
    assert not {*served.client.recommend(user).item_ids} & {*best[:4]}
    table = "".join(f'"{item}",gone\r\n' for item in best[:4])
    deny.write_bytes(f"item_id,why\r\n{table}".encode("utf-16"))
    time.sleep(IN_FORCE_S)
    assert not {*served.client.recommend(user).item_ids} & {*best[:4]}
    deny.write_text("")
    time.sleep(IN_FORCE_S)
    assert {*served.client.recommend(user).item_ids} == {*best}


def test_the_programs_print_strings(
    served: Served, twins: Twins, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user = twins[1].users[0]
    first, second, *_ = served.client.recommend(user).item_ids.tolist()
    titles = tmp_path / "titles.csv"
    titles.write_text(f"item_id,title\n{second},The second\n")
    asked = ["--url", served.server.url, "--user", json.dumps(user)]
    options = [*asked, "--titles", str(titles), "--exclude", f'"{first}", nothing']
    assert status(recommend.main, options) == 0
    line = capsys.readouterr().out.splitlines()[2].split()
    assert line[:4] == ["1", second, "The", "second"]
    assert status(recommend.main, [*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["titles"][:2] == ["The second", None]
    answered_files(served.server, twins[1], tmp_path, pa.string(), first)


def answered_files(server: Server, cascade: Cascade, folder: Path, kind: Any, first: Any) -> None:
    """The first user of a file gets this item first, in every format."""
    source = folder / "users.jsonl"
    source.write_text(json.dumps(cascade.users[0]) + "\n")
    for suffix in ("parquet", "jsonl", "csv"):
        out = folder / f"answers.{suffix}"
        options = [str(source), str(out), "--url", server.url, "--no-progress"]
        assert status(batch.main, options) == 0
    table = pq.read_table(folder / "answers.parquet")
    assert table.schema.field("item_ids").type.value_type == kind
    ids = table["item_ids"].to_pylist()[0]
    assert ids[0] == first
    assert json.loads((folder / "answers.jsonl").read_text())["item_ids"] == ids
    cells = (folder / "answers.csv").read_text().splitlines()[1].split(",")
    assert cells[0] == "|".join(map(str, ids))


def test_a_catalogue_is_published_to_a_server(served: Served, twins: Twins, tmp_path: Path) -> None:
    """The canary requests are asked before and after the switch."""
    user = twins[1].users[0]
    best = served.client.recommend(user).item_ids.tolist()
    gone, key = tmp_path / "gone.txt", tmp_path / "key"
    gone.write_text(f"# sold out\n{best[0]}\n")
    added = new_items(twins[1], tmp_path / "new.parquet", pa.array(["new #1", "new"]))
    key.write_text(next(iter(served.server.control_headers.values())))
    where = ["--repository", str(served.repository.root), "--url", served.server.url]
    options = ["--checkpoints", str(twins[1].checkpoints), "--control-key-file", str(key)]
    change_ = ["--add", str(added), "--remove", str(gone)]
    export_command.main(["catalogue", *where, *options, *change_])
    found = served.client.recommend(user)
    assert found.release == 2
    assert best[0] not in found.item_ids
    new = Refresh(served.repository.root, 2, twins[1].checkpoints)
    assert len(new.item_ids) == 301


def test_integers_beyond_doubles_survive(twins: Twins, tmp_path: Path) -> None:
    """From a Parquet file of new items to HTTP's JSON, and to files of answers."""
    integers = twins[0]
    serving = replace(serving_of(integers.repository), topology="fused")
    rewire(integers.repository, tmp_path / "export", serving)
    started = Refresh(tmp_path / "export", 1, integers.checkpoints)
    ids = [BIG + 2 * row for row in range(30)]
    added = read_items(
        new_items(integers, tmp_path / "new.parquet", pa.array(ids)),
        started.encoder,
        started.checkpoints,
    )
    all_new = change(started.item_ids, added, started.item_ids)
    started.write(tmp_path / "next", 2, all_new)
    user = integers.users[0]
    with Server(tmp_path / "next") as server, Recommender(server.url, deadline_s=30) as client:
        best = client.recommend(user).item_ids.tolist()
        assert {*best} <= {*ids}
        assert client.recommend(user, exclude=best[:3]).item_ids.tolist()[:7] == best[3:]
        answer = posted(server, context=[json.dumps(user)], exclude=[json.dumps(best[:1])])
        assert answer["data"][:9] == best[1:]
        texts = json.dumps([str(item) for item in best[:1]])  # JavaScript has doubles alone
        assert posted(server, context=[json.dumps(user)], exclude=[texts])["data"] == answer["data"]
        refused = posted(server, context=[json.dumps(user)], exclude=[f'["{string_id(1)}"]'])
        assert "expected ints" in refused
        answered_files(server, integers, tmp_path, pa.int64(), best[0])
        titles = tmp_path / "titles.csv"
        titles.write_text(f"item_id,title\n{best[0]},Big\n")
        assert recommend.read_titles(titles) == {best[0]: "Big"}
