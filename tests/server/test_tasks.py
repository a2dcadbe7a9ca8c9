"""A ranker of several tasks, served: what it says of every item, and a formula that orders them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tritonclient import grpc

from cascade import pbtxt
from cascade.client import Recommendation, Recommender
from cascade.config import Product, Serving
from cascade.data.criteo import SCHEMA as CRITEO
from cascade.release import RELEASE_FILE, read_release
from cascade.server.launcher import Server, ServerError
from cascade.spec import (
    ENSEMBLE,
    RANK,
    RECOMMEND_FILTERED,
    RECOMMEND_USER,
    RETRIEVE,
    TASK_SCORES,
    Sizes,
)
from cascade.stages.pipeline import Pipeline
from cascade.store import UserStore
from cascade.training import checkpoint
from clients import batch, recommend
from export.context import read_catalogue
from export.releases.control import Control
from export.releases.manifest import verify
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export, rewire, settings_of
from export.users import layout_of
from tests.example_models import THREE_TASKS

NAMES = [task.name for task in THREE_TASKS]
KEY = "a-key-that-only-this-test-knows"
USERS, SIZES = 100, Sizes(candidates=300, survivors=60, results=10)
FORMULA = "ctr * (0.6 + 0.4 * engagement)"
OTHER = "engagement * log(1 + revenue) - ctr"
SCORES: dict[str, Callable[[Any], Any]] = {
    "": lambda tasks: tasks[..., 0],
    FORMULA: lambda tasks: tasks[..., 0] * (0.6 + 0.4 * tasks[..., 1]),
    OTHER: lambda tasks: tasks[..., 1] * np.log(1 + tasks[..., 2]) - tasks[..., 0],
}
MODELS = {
    "retrieve": ("two_tower", "tiny"),
    "prerank": ("dlrm", "tiny"),
    "rank": ("tests.example_models:ThreeTasks", "wide"),
}
PLAN = {
    "schema": replace(CRITEO, tasks=THREE_TASKS),
    "items": 600,
    "users": USERS,
    "models": MODELS,
    "sizes": SIZES,
    "serving": Serving(max_batch_size=16),
    "also": (),
}


@dataclass(frozen=True, eq=False)
class Said:
    """What the trained ranker says of every item, [B, N, 3], and the rows of items by their ids."""

    tasks: Any
    row_of: dict[int, int]

    def of(self, user: int, answer: Recommendation) -> Any:
        """Of the items of an answer, [R, 3]."""
        return self.tasks[user, [self.row_of[int(item)] for item in answer.item_ids]]


@pytest.fixture(scope="module")
def cascade(make_cascade: Callable[..., Any]) -> Any:
    return make_cascade(**PLAN, product=Product(score=FORMULA))


def said(cascade: Any) -> Said:
    items = read_catalogue(cascade.checkpoints)
    ranker = checkpoint.load(cascade.checkpoints / RANK, cascade.schema)
    users = cascade.pipeline().encode(cascade.dense, cascade.categorical)
    rows = [torch.from_numpy(x) for x in (items.dense, items.ids)]
    found = []
    with torch.inference_mode():
        for user in range(len(cascade.dense)):
            alone = (torch.from_numpy(x[user]).expand(len(items), -1) for x in users)
            ctr, engagement, revenue = ranker(*alone, *rows).unbind(1)
            mean = torch.nn.functional.softplus(revenue)
            found.append(torch.stack((ctr.sigmoid(), engagement.sigmoid(), mean), 1).numpy())
    return Said(np.stack(found), {int(item): row for row, item in enumerate(items.item_ids)})


@pytest.fixture(scope="module")
def eager(cascade: Any) -> Said:
    return said(cascade)


@pytest.fixture(scope="module")
def server(cascade: Any) -> Iterator[Server]:
    with Server(cascade.repository) as server:
        yield server


def survivors(cascade: Any) -> list[list[int]]:
    """The items that reach the ranker, of each user."""
    pipeline = cascade.pipeline()
    users = pipeline.retrieve(cascade.dense, cascade.categorical)
    rows = pipeline.prerank(*users)
    return [pipeline.item_ids[own[own >= 0]].tolist() for own in rows]


def check(answers: list[Recommendation], cascade: Any, eager: Said, formula: str) -> None:
    """Tasks, scores and order are those of NumPy over the trained model."""
    score = SCORES[formula]
    assert len(answers) == len(cascade.dense)
    for user, (answer, items) in enumerate(zip(answers, survivors(cascade), strict=True)):
        own = eager.of(user, answer)
        assert answer.task_scores is not None
        assert [*answer.task_scores] == NAMES
        given = np.stack([*answer.task_scores.values()], axis=1)
        np.testing.assert_allclose(given, own, rtol=1e-5, atol=1e-5)
        rows = [eager.row_of[item] for item in items]
        best = np.sort(score(eager.tasks[user, rows].astype(np.float64)))[::-1][: SIZES.results]
        np.testing.assert_allclose(score(own.astype(np.float64)), best, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answer.scores, best, rtol=1e-4, atol=1e-5)
        assert {*answer.item_ids.tolist()} <= {*items}


def rewired(cascade: Any, folder: Path, *arguments: str) -> None:
    """`python -m export rewire` into a folder."""
    where = ("--repository", str(cascade.repository), "--out", str(folder))
    command = [sys.executable, "-m", "export", "rewire", *where, *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def test_the_release_says_what_is_served(cascade: Any) -> None:
    release = read_release(cascade.repository, 1)
    assert release["stages"][RANK]["tasks"] == NAMES
    assert release["product"]["score"] == FORMULA
    own = [p for p in release["parity"] if p["stage"] == RANK]
    assert {p["batch"] for p in own} == {1, 3, cascade.serving.max_batch_size}
    assert all(p["max_abs"] <= p["limit"] == 1e-5 for p in own)
    settings = pbtxt.settings(pbtxt.read(cascade.repository / RANK / "config.pbtxt"))
    assert settings.product.score == FORMULA
    settings = pbtxt.settings(pbtxt.read(cascade.repository / RETRIEVE / "config.pbtxt"))
    assert settings.product.score == ""
    for name in (RANK, ENSEMBLE, RECOMMEND_FILTERED):
        config = pbtxt.read(cascade.repository / name / "config.pbtxt")
        outputs = {tensor.name: [*tensor.dims] for tensor in config.output}
        assert outputs[TASK_SCORES] == [SIZES.results, len(NAMES)]


def test_tasks_and_order_are_those_of_the_trained_model(
    cascade: Any, server: Server, eager: Said
) -> None:
    with Recommender(server.url, deadline_s=30) as client:
        assert client.layout().tasks == (*NAMES,)
        answers = client.recommend_many(cascade.users)
    check(answers, cascade, eager, FORMULA)
    found = cascade.pipeline().answer(cascade.dense, cascade.categorical)
    for answer, ids, scores, tasks in zip(
        answers, found["item_ids"], found["scores"], found[TASK_SCORES], strict=True
    ):
        assert answer.item_ids.tolist() == ids.tolist()
        np.testing.assert_allclose(answer.scores, scores, atol=1e-6)
        given = np.stack([*(answer.task_scores or {}).values()], axis=1)
        np.testing.assert_allclose(given, tasks, atol=1e-6)


def test_neighbours_in_a_batch_keep_their_answers(cascade: Any, server: Server) -> None:
    with Recommender(server.url, deadline_s=30) as client:
        together = client.recommend_many(cascade.users[:32])
        with ThreadPoolExecutor(16) as pool:
            alone = list(pool.map(client.recommend, cascade.users[:32]))
    for one, other in zip(together, alone, strict=True):
        assert one.item_ids.tolist() == other.item_ids.tolist()
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


@pytest.mark.parametrize("topology", ["ensemble", "paired", "fused"])
def test_another_formula_needs_no_other_export(
    topology: str, cascade: Any, eager: Said, tmp_path: Path
) -> None:
    """In every wiring, for users by id and for filters, too."""
    store, folder = f"lmdb:{tmp_path / 'users'}", tmp_path / "repository"
    how = ("--topology", topology, "--instances", "1", "--store", store)
    rewired(cascade, folder, "--score", OTHER, *how)
    assert [path.name for path in (folder / ENSEMBLE).glob("[0-9]*")] == ["1"]
    graphs = (next(root.glob("*/1/**/catalogue_ids.bin")) for root in (folder, cascade.repository))
    assert len({path.stat().st_ino for path in graphs}) == 1  # the same file
    release = verify(folder, 1)
    before = read_release(cascade.repository, 1)["canary"]
    assert release["canary"]["item_ids"] != before["item_ids"]
    assert release["canary"]["dense"] == before["dense"]
    first = cascade.ask(cascade.pipeline())[0]
    second = cascade.ask(Pipeline.load(folder, serving=Serving(threads=1)))[0]
    assert (first != second).any(axis=1).mean() > 0.9
    layout = layout_of(folder)
    with UserStore.create(store, layout) as users:
        users.put(range(len(cascade.dense)), cascade.dense, cascade.categorical)
    with Server(folder) as server, Recommender(server.url, deadline_s=30) as client:
        check(client.recommend_many(cascade.users), cascade, eager, OTHER)
        check(client.recommend_users(range(USERS)), cascade, eager, OTHER)
        banned = [first[user, :3].tolist() for user in range(USERS)]
        for user, answer in enumerate(client.recommend_many(cascade.users, exclude=banned)):
            assert not {*answer.item_ids.tolist()} & {*banned[user]}
            given = np.stack([*(answer.task_scores or {}).values()], axis=1)
            np.testing.assert_allclose(given, eager.of(user, answer), rtol=1e-5, atol=1e-5)
    assert (folder / RECOMMEND_USER / "config.pbtxt").exists()


def test_a_formula_may_have_no_value_for_some_items(
    cascade: Any, eager: Said, tmp_path: Path
) -> None:
    rewired(cascade, tmp_path, "--score", "log(ctr - 0.5)")
    none = some = 0
    with Server(tmp_path) as server, Recommender(server.url, deadline_s=30) as client:
        answers = client.recommend_many(cascade.users)
    for user, (answer, items) in enumerate(zip(answers, survivors(cascade), strict=True)):
        ctr = eager.tasks[user, [eager.row_of[item] for item in items], 0]
        best = np.sort(ctr[ctr > 0.5])[::-1][: SIZES.results]
        none, some = none + (len(best) < len(answer.item_ids)), some + (len(best) > 0)
        assert len(answer.item_ids) == SIZES.results
        np.testing.assert_allclose(
            np.exp(answer.scores[: len(best)]) + 0.5, best, rtol=1e-4, atol=1e-5
        )
        assert (answer.scores[len(best) :] == 0).all()
    assert none
    assert some


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("ctr * buys", "unknown output 'buys': known are ctr, engagement, revenue"),
        ("ctr * (", "'ctr * (' is no formula: SyntaxError; the outputs are ctr"),
        ("ctr" + " + ctr" * 100, "operations inside of each other; the outputs are ctr"),
    ],
)
def test_a_bad_formula_is_refused_in_one_line(
    formula: str, message: str, cascade: Any, tmp_path: Path
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        rewired(cascade, tmp_path / "new", "--score", formula)
    assert caught.value.returncode == 1
    assert caught.value.stderr.startswith("error: ")
    assert message in caught.value.stderr
    assert caught.value.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_server_does_not_start_with_a_formula_of_other_tasks(
    cascade: Any, tmp_path: Path
) -> None:
    """As of a release.json that was changed by hand."""
    shutil.copytree(cascade.repository, tmp_path / "repository")
    path = tmp_path / "repository" / ENSEMBLE / "1" / RELEASE_FILE
    release = json.loads(path.read_text())
    release["product"]["score"] = "ctr * buys"
    path.unlink()
    path.write_text(json.dumps(release))
    with pytest.raises(ServerError) as caught, Server(tmp_path / "repository"):
        pass
    said = " ".join(str(caught.value).split("\n"))
    assert "unknown output 'buys': known are ctr, engagement, revenue" in said
    assert "Traceback" not in said


def test_a_list_is_chosen_and_drawn_by_the_formula(
    make_cascade: Callable[..., Any], tmp_path: Path
) -> None:
    product = Product(score=FORMULA, pool=30, diversity=0.3, explored=2)
    explored = make_cascade(**PLAN, product=product)
    eager = said(explored)
    serving, product = settings_of(explored.repository)
    rewire(explored.repository, tmp_path, replace(serving, topology="fused"), product)
    with Server(tmp_path) as server, Recommender(server.url, deadline_s=30) as client:
        answers = client.recommend_many(explored.users)
    for user, answer in enumerate(answers):
        own = eager.of(user, answer)
        assert answer.task_scores is not None
        given = np.stack([*answer.task_scores.values()], axis=1)
        np.testing.assert_allclose(given, own, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answer.scores, SCORES[FORMULA](own), rtol=1e-4, atol=1e-5)
        assert answer.propensities is not None
        assert (answer.propensities[:8] == 1).all()
        assert (answer.propensities[8:] < 1).all()


def test_programs_show_the_tasks(
    cascade: Any, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--url", server.url)
    user = json.dumps(cascade.users[0])
    recommend.main([*url, "--user", user])
    header = capsys.readouterr().out.splitlines()[1].split()
    assert header[-4:] == ["score", *NAMES]
    recommend.main([*url, "--user", user, "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert [*shown["task_scores"]] == NAMES
    lines = "".join(json.dumps(user) + "\n" for user in cascade.users[:5])
    (tmp_path / "users.jsonl").write_text(lines)
    for name in ("answers.jsonl", "answers.csv", "answers.parquet"):
        paths = (str(tmp_path / "users.jsonl"), str(tmp_path / name))
        assert batch.main([*paths, *url, "--no-progress"]) == 0
    first = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(first["task_revenue"], shown["task_scores"]["revenue"], atol=1e-5)
    assert (
        (tmp_path / "answers.csv")
        .read_text()
        .splitlines()[0]
        .endswith("error,task_ctr,task_engagement,task_revenue")
    )


def test_other_clients_read_the_names_in_the_configuration(server: Server) -> None:
    with grpc.InferenceServerClient(server.url) as client:
        config = client.get_model_config(ENSEMBLE).config
    assert json.loads(config.parameters["tasks"].string_value) == NAMES


def test_two_releases_at_once_have_each_its_own_formula(
    cascade: Any, eager: Said, tmp_path: Path
) -> None:
    """Triton keeps one configuration for both, and both stay loaded."""
    rewired(cascade, tmp_path / "other", "--score", OTHER)
    repository = Repository(tmp_path / "live")
    Publisher(repository, say=lambda line: None).publish(from_export(cascade.repository))
    with Server(repository.root, control_key=KEY) as server:
        control = Control(server.url, server.control_headers)
        publisher = Publisher(repository, control, say=lambda line: None)
        publisher.publish(from_export(tmp_path / "other"), share=0.5)
        with Recommender(server.url, deadline_s=30) as client:
            answers = client.recommend_many(cascade.users, keys=range(USERS))
        releases = [answer.release for answer in answers]
        assert {*releases} == {1, 2}
        one_by_one = survivors(cascade)
        for user, answer in enumerate(answers):
            score = SCORES[FORMULA if releases[user] == 1 else OTHER]
            rows = [eager.row_of[item] for item in one_by_one[user]]
            best = np.sort(score(eager.tasks[user, rows]))[::-1][: SIZES.results]
            np.testing.assert_allclose(answer.scores, best, rtol=1e-4, atol=1e-5)
            given = np.stack([*(answer.task_scores or {}).values()], axis=1)
            np.testing.assert_allclose(given, eager.of(user, answer), rtol=1e-5, atol=1e-5)
        publisher.roll_back(2)
        with Recommender(server.url, deadline_s=30) as client:
            check(client.recommend_many(cascade.users), cascade, eager, OTHER)
        publisher.roll_back(1)
        with Recommender(server.url, deadline_s=30) as client:
            check(client.recommend_many(cascade.users), cascade, eager, FORMULA)
