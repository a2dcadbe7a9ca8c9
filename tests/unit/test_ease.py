"""Models of choices begin with EASE."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cascade.data import Dataset, prepare
from cascade.data.seen import Events
from cascade.evaluation.baselines import lists
from cascade.models import build
from cascade.models.embeddings import Embeddings
from cascade.models.retrieval.two_tower import TwoTowerConfig
from cascade.schema import Feature
from cascade.training.choices import ease

SONGS, PEOPLE, HELD = 40, 60, 8
SCHEMA = """\
interactions: log.csv
items: songs.csv
item: id
user: person
label: liked
time: time
log: choices
past: {past}
features:
- {{name: played, side: user, kind: {kind}, length: 8}}
- {{name: genre, side: item, kind: categorical}}
- {{name: song, side: item, kind: categorical}}
"""


def written(folder, kind: str = "sequence", played: str = "name", past: bool = False) -> Dataset:
    """Plays of songs in two genres. The list of a row has what was liked before it, by `played`."""
    random = np.random.default_rng(0)
    names = {song: f"song {song}" if played == "name" else str(100 + song) for song in range(SONGS)}
    before: dict[int, list[str]] = {person: [] for person in range(PEOPLE)}
    lines = ["person,id,liked,time,played"]
    for time in range(3000):
        person, song = int(random.integers(PEOPLE)), int(random.integers(SONGS // 2)) * 2
        song += person % 2 if random.random() < 0.9 else 1 - person % 2
        liked = int(random.random() < 0.8)
        lines.append(f"{person},{100 + song},{liked},{time},{'|'.join(before[person][-HELD:])}")
        if played == "random":
            before[person].append(str(int(random.integers(1000))))
        elif liked:
            before[person].append(names[song])
    songs = ["id,genre,song"] + [f"{100 + n},{n % 2},song {n}" for n in range(SONGS)]
    (folder / "log.csv").write_text("\n".join(lines))
    (folder / "songs.csv").write_text("\n".join(songs))
    (folder / "schema.yaml").write_text(SCHEMA.format(kind=kind, past=str(past).lower()))
    return prepare("table", folder / "data", schema_file=folder / "schema.yaml")


@pytest.mark.parametrize("played", ["name", "id"])
@pytest.mark.parametrize("kind", ["sequence", "bag"])
def test_a_list_that_holds_items_is_found_by_their_names_or_ids(tmp_path, played, kind):
    log = written(tmp_path, kind, played)
    members = ease.members_of(log, Events.read(log, "train"))
    assert members.feature.name == "played"
    vocabulary = log.encoder.vocabulary(members.feature)
    names = [f"song {n - 100}" if played == "name" else str(n) for n in log.item_ids()]
    assert members.of_item.tolist() == [vocabulary.get(name.encode(), 0) for name in names]
    feature, ids = ease.own_ids(log)
    assert (feature.name, len(set(ids.tolist()))) == ("song", SONGS)


def test_a_list_of_something_else_is_none(tmp_path):
    log = written(tmp_path, played="random")
    with pytest.raises(ease.CannotBegin, match="no list of the user with a vocabulary holds"):
        ease.Vectors.of(log, 8)


def test_what_the_user_met_holds_what_the_user_liked(tmp_path):
    """Where no list of the table does."""
    log = written(tmp_path, played="random", past=True)
    assert ease.members_of(log, Events.read(log, "train")).feature.name == "past_items"


def test_too_few_items_are_told(tmp_path):
    with pytest.raises(ease.CannotBegin, match="only 40 items were liked"):
        ease.Vectors.of(written(tmp_path), SONGS)


def test_scores_of_factors_are_those_of_ease(tmp_path):
    """Of all but one of the dimensions; drawn vectors add little."""
    log = written(tmp_path, "bag")
    torch.manual_seed(0)
    config = TwoTowerConfig(width=4, layers=(8, SONGS), factors=True)
    towers = build("two_tower", vars(config), log.schema).eval()
    ease.Vectors.of(log, SONGS - 1).give(towers)
    with torch.no_grad():
        towers.user_tower.scale.zero_()
        towers.item_tower.scale.zero_()
        rows, items = log.sample("test", 20), log.items()
        user = towers.user(torch.tensor(rows.user_dense), torch.tensor(rows.user_ids))
        found = user @ towers.item(*map(torch.tensor, items)).t()
    model = lists.ease(Events.read(log, "train"), log.item_count, ease.L2)
    start = log.schema.first_column(next(f for f in log.schema.ids("user") if f.multivalued))
    of_item = ease.members_of(log, Events.read(log, "train")).of_item
    for scores, ids in zip(found.numpy(), rows.user_ids[:, start:], strict=True):
        held = np.isin(of_item[model.active], ids[ids > 1])
        if held.sum() > 2:
            wanted = model.weights[held].sum(0)
            assert np.corrcoef(scores[model.active], wanted)[0, 1] > 0.9


def test_the_most_liked_items_of_some_users_stay(tmp_path, monkeypatch):
    log = written(tmp_path)
    monkeypatch.setattr(ease, "ITEMS", 10)
    monkeypatch.setattr(ease, "USERS", 20)
    events = Events.read(log, "train")
    left = ease._fewer(events)
    assert len(np.unique(left.user)) == 20
    counts = np.bincount(events.liked().item)
    assert set(left.item.tolist()) <= set(np.argsort(-counts, kind="stable")[:10].tolist())


def test_the_newest_of_a_sequence_weigh_most():
    """Wherever its pads stand, and as far as is learnt."""
    feature = Feature("played", "user", "sequence", "vocabulary", length=4, cardinality=9)
    vectors = Embeddings((feature,), 3, power=0.5, by_age=True)
    table, ages = vectors.table.weight, vectors.ages["0"]
    assert ages.exp().tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    found = vectors(torch.tensor([[0, 0, 5, 7], [5, 7, 0, 0], [0, 0, 0, 0], [2, 3, 4, 5]]))[:, 0]
    expected = (table[7] + table[5] / 2) / np.sqrt(1 + 1 / 4)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], expected)
    assert found[2].abs().max() == 0
    weights = 1 / torch.arange(4.0, 0, -1)
    torch.testing.assert_close(found[3], weights @ table[2:6] / weights.norm())
    with torch.no_grad():
        ages.zero_()
    torch.testing.assert_close(
        vectors(torch.tensor([[0, 0, 5, 7]]))[0, 0], (table[5] + table[7]) / 2**0.5
    )
