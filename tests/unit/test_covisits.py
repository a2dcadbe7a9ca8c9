"""What users met around the items that a user met last."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from cascade.data import Dataset, prepare
from cascade.data.seen import Events
from cascade.models import build
from cascade.models.blend import Blend, BlendConfig
from cascade.models.contract import check
from cascade.models.covisitation import SLOTS, CoVisitation, CoVisitationConfig
from cascade.models.retrieval.two_tower import TwoTowerConfig
from cascade.schema import Feature, Schema, SchemaError
from cascade.training.choices.covisits import APART, PRIOR, CoVisits
from cascade.training.choices.rank import ChoiceRankTask, usual
from cascade.training.choices.rows import Recency
from cascade.training.loop import Hyperparameters

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
SHOWS, USERS = 120, 40
CONFIG = CoVisitationConfig("met", "show", last=3, neighbours=4)
LARGE = 2**24 - 1  # the largest id of an item that a state holds

SHOW = "- {name: show, side: item, kind: categorical"
SCHEMA = f"""\
interactions: log.csv
item: show
user: user
label: liked
time: time
log: choices
features:
- {{name: who, side: user, kind: categorical, column: user}}
{SHOW}}}
"""


def schema(length: int = 5) -> Schema:
    return Schema(
        "shows",
        (
            Feature("who", "user", "categorical", "vocabulary", cardinality=9),
            Feature("met", "user", "sequence", "vocabulary", length=length, cardinality=50),
            Feature("kind", "item", "categorical", "vocabulary", cardinality=5),
            Feature("show", "item", "categorical", "vocabulary", cardinality=LARGE + 1),
        ),
    )


def drawn(seed: int = 0) -> tuple[CoVisitation, torch.Tensor, torch.Tensor]:
    """A matrix of large ids, users with lists of every length, and items."""
    model, random = CoVisitation(schema(), CONFIG), np.random.default_rng(seed)
    ids = LARGE - random.integers(0, 40, (50, CONFIG.neighbours))
    strengths = random.random(ids.shape) * (random.random(ids.shape) < 0.8)
    strengths[0] = 0
    model.begin(torch.tensor(ids), torch.tensor(strengths))
    users = np.concatenate((random.integers(2, 9, (20, 1)), random.integers(2, 50, (20, 5))), 1)
    users[:, 1:] *= np.arange(5) >= 5 - random.integers(0, 6, (20, 1))
    items = np.stack((random.integers(2, 5, 30), LARGE - random.integers(0, 60, 30)), 1)
    return model.eval(), torch.tensor(users), torch.tensor(items)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_score_is_the_strength_beside_the_items_met_last(dtype: torch.dtype) -> None:
    model, users, items = drawn()
    if dtype == torch.float32:
        check(model)
    expected = np.zeros((len(users), len(items)))
    for row, user in enumerate(users.tolist()):
        for place, met in enumerate(user[: -CONFIG.last - 1 : -1], 1):
            entries = zip(model.neighbours[met], model.strengths[met], strict=True)
            for neighbour, strength in entries:
                same = items[:, 1].numpy() == int(neighbour)
                expected[row] += same * float(strength) / place**0.5
    assert (expected > 0).sum() > 20
    model = model.to(dtype)
    none = torch.zeros(0, dtype=dtype)
    states = model.item(none.expand(len(items), 0), items)[None].expand(len(users), -1, -1)
    found = model.cross(model.user(none.expand(len(users), 0), users), states)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    np.testing.assert_allclose(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_ids_that_share_a_slot() -> None:
    """Another item than the neighbour has nothing; of two neighbours, the larger id has both."""
    model, small, none = CoVisitation(schema(), CONFIG), 7, torch.zeros(1, 0)
    large = small + SLOTS
    ids, strengths = torch.zeros(50, 4), torch.zeros(50, 4)
    ids[2, :2], strengths[2, :2] = torch.tensor([small, large]), torch.tensor([0.25, 0.5])
    ids[3, 0], strengths[3, 0] = small, 0.25
    model.begin(ids, strengths)
    items = torch.tensor([[2, small], [2, large], [2, large + SLOTS], [2, 0]])
    states = model.item(none.expand(4, 0), items)[None]
    for met, expected in ((2, [0, 0.75, 0, 0]), (3, [0.25, 0, 0, 0]), (0, [0] * 4)):
        user = torch.tensor([[2, 0, 0, 0, 0, met]])
        assert model.cross(model.user(none, user), states).tolist() == [expected]


def test_a_list_that_is_too_short_is_told() -> None:
    with pytest.raises(SchemaError, match="'met': expected a sequence of at least 3 items"):
        CoVisitation(schema(2), CONFIG)


def written(folder, alike: float, features: str = "") -> Dataset:
    """Users who, with a share `alike`, take the show whose number follows that of the last one."""
    random, last = np.random.default_rng(0), np.zeros(USERS, np.int64)
    lines = ["user,show,time,liked"]
    for time in range(6000):
        user = int(random.integers(USERS))
        chosen = int(random.integers(SHOWS))
        last[user] = (last[user] + 1) % SHOWS if random.random() < alike else chosen
        lines.append(f"u{user},{last[user]},{time},{int(random.random() < 0.8)}")
    (folder / "log.csv").write_text("\n".join(lines))
    (folder / "schema.yaml").write_text(SCHEMA + features)
    return prepare("table", folder / "data", schema_file=folder / "schema.yaml")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return written(tmp_path_factory.mktemp("covisits"), 0.5)


def test_the_matrix_is_that_of_its_definition(log: Dataset) -> None:
    found = CoVisits(log)
    neighbours, strengths = (part.numpy() for part in found.neighbours)
    events, recency = Events.read(log, "train"), Recency(log)
    weight = recency.weight(events.time, len(events.user))
    counts = np.zeros((log.item_count, log.item_count))
    for user in range(USERS):
        own = np.flatnonzero(events.user == user)
        for at, later in enumerate(own):
            for apart in range(1, min(APART, at) + 1):
                pair = events.item[own[at - apart]], events.item[later]
                if pair[0] != pair[1]:
                    counts[pair] += weight[later] / apart**0.5
                    counts[pair[::-1]] += weight[later] / apart**0.5
    norm = (counts.sum(1) + PRIOR) ** -0.5
    matrix = counts * norm[:, None] * norm
    features = {feature.name: feature for feature in log.schema.features}
    words = log.encoder.vocabulary(features["past_items"])
    own = log.items()[1][:, log.schema.first_column(features["show"])]
    for row, name in enumerate(log.item_ids().tolist()):
        best = np.argsort(-matrix[row])[: neighbours.shape[1]]
        held = words[str(name).encode()]
        np.testing.assert_allclose(strengths[held], matrix[row, best], rtol=1e-5)
        assert set(own[best[:20]]) <= set(neighbours[held])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("log: choices\n", "log: impressions\n"),
        ("log: choices\n", "log: choices\npast: false\n"),
        (SHOW, SHOW + ", encoding: hash, buckets: 9"),
    ],
)
def test_without_the_items_that_users_met_there_is_none(tmp_path, old: str, new: str) -> None:
    """Or without a feature that tells the items apart."""
    lines = [f"u{n % 7},{n % 50},{n},1" for n in range(400)]
    (tmp_path / "log.csv").write_text("\n".join(["user,show,time,liked", *lines]))
    (tmp_path / "schema.yaml").write_text(SCHEMA.replace(old, new))
    dataset = prepare("table", tmp_path / "data", schema_file=tmp_path / "schema.yaml")
    assert CoVisits(dataset).config is None


@pytest.mark.parametrize("alike", [0.5, 0.0])
def test_the_weight_is_what_validation_lists_gain_by(tmp_path, alike: float) -> None:
    """Where the last show says nothing of the next one, there is none."""
    dataset = written(tmp_path, alike)
    covisits, towers = CoVisits(dataset), TwoTowerConfig(width=4, layers=(16, 16), factors=True)
    assert covisits.config is not None
    config = BlendConfig(
        "two_tower", vars(towers), "two_tower", vars(towers), covisitation=asdict(covisits.config)
    )
    torch.manual_seed(0)
    ranker = Blend(dataset.schema, config)
    retriever = build("two_tower", vars(towers), dataset.schema)
    ranker.begin(retriever, lambda model: usual(dataset, model, CPU))
    ranker.covisits.begin(*covisits.neighbours)
    check(ranker.eval())
    task = ChoiceRankTask(ranker, retriever, dataset, Hyperparameters(batch_size=64), CPU)
    before = task.validate()
    told = task.weigh(task.scorer)
    after = task.validate()
    if alike:
        assert "with co-visitation, NDCG@10 of validation lists" in told
        assert after["validation_ndcg_at_10"] > before["validation_ndcg_at_10"] + 0.1
        assert float(ranker.covisits_weight) > 0
    else:
        assert told == "without co-visitation, which makes lists no better by more than noise"
        assert after["validation_ndcg_at_10"] == before["validation_ndcg_at_10"]
        assert float(ranker.covisits_weight) == 0
    again, calibrated = task.finish()
    assert again == told
    assert "calibrated" in calibrated
