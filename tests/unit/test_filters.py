"""Filtered answers are the unfiltered order without what was filtered out, and never short of
items that are left."""

from __future__ import annotations

import codecs
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade import index
from cascade.artifact import ArtifactError
from cascade.config import Product, Serving
from cascade.encoding import InvalidInput
from cascade.filters_wire import MOST_EXCLUDED, MOST_VALUES, decode_allow, decode_exclude
from cascade.index import KINDS
from cascade.index.exact import ExactIndex
from cascade.spec import DENY_LIST, RETRIEVE, ConfigError, Sizes
from cascade.stages.filters.deny import DenyFile, DenyList, DenyListError, Memory
from cascade.stages.filters.items import FilterItems
from cascade.stages.load import deny_list_of
from cascade.stages.pipeline import Pipeline
from cascade.training import checkpoint
from export.context import read_catalogue
from tests.cascades import BAGS
from tests.filter_cases import Case, Shop, column, draw

ITEMS, CASES, DENY_LISTS = 240, 1000, 10
SMALL = Sizes(candidates=100, survivors=40, results=10)


@pytest.fixture(scope="module")
def whole(make_cascade: Callable[..., Any]) -> Any:
    """Candidates and survivors cover the catalogue: the ranker sees all that is left."""
    return make_cascade(schema=BAGS, items=ITEMS, users=40, sizes=Sizes(ITEMS, ITEMS, 10))


@pytest.fixture(scope="module", params=["flat", "exact"])
def narrow(request: pytest.FixtureRequest, make_cascade: Callable[..., Any]) -> Any:
    """Stages that leave most items behind, and retrieval that errs in none."""
    return make_cascade(schema=BAGS, items=1500, users=40, sizes=SMALL, index=request.param)


def scores_of(cascade: Any, model: str) -> Any:
    """What a model makes of every user and every item of the checkpoints: [B, N]."""
    items = read_catalogue(cascade.checkpoints)
    scorer = checkpoint.load(cascade.checkpoints / model, cascade.schema)
    users = cascade.pipeline().retrieve(cascade.dense, cascade.categorical)[:2]
    with torch.inference_mode():
        states = scorer.item(torch.from_numpy(items.dense), torch.from_numpy(items.ids))
        user = scorer.user(*map(torch.from_numpy, users))
        found: Any = scorer.cross(user, states.expand(len(user), -1, -1)).numpy()
    return found


def ask(pipeline: Pipeline, cascade: Any, users: Any, cases: list[Case]) -> tuple[Any, Any]:
    """What the cascade answers to these users under these filters."""
    exclude, allow = zip(*(case.wire for case in cases), strict=True)
    return pipeline(
        cascade.dense[users],
        cascade.categorical[users],
        column(list(exclude)),
        column(list(allow)),
    )


def deny(repository: Path, ids: Any) -> None:
    """Write the deny list."""
    lines = "".join(f"{item}  # no longer sold\n" for item in ids)
    (repository / DENY_LIST).write_text(f"# by hand\n\n{lines}")


@pytest.fixture
def clean() -> Any:
    """Removes deny lists that a test has left."""
    written: list[Path] = []
    yield written
    for repository in written:
        (repository / DENY_LIST).unlink(missing_ok=True)


def test_the_answer_is_the_rankers_full_order_filtered(
    whole: Any, clean: list[Path], assert_same_answers: Callable[..., None]
) -> None:
    clean.append(whole.repository)
    shop, random = Shop.of(whole.checkpoints, whole.schema), np.random.default_rng(0)
    scores = 1 / (1 + np.exp(-scores_of(whole, "rank").astype(np.float64)))
    order = np.argsort(-scores, axis=1)
    for number in range(DENY_LISTS):
        denied = set(random.permutation(shop.ids)[: number * ITEMS // DENY_LISTS].tolist())
        deny(whole.repository, denied)
        pipeline = whole.pipeline()
        users = random.integers(len(whole.dense), size=CASES // DENY_LISTS)
        cases = [draw(shop, random) for _ in users]
        expected_ids = np.full((len(users), 10), -1, np.int64)
        expected_scores = np.zeros((len(users), 10), np.float32)
        for row, (user, case) in enumerate(zip(users, cases, strict=True)):
            left = shop.left(case, denied)
            best = [place for place in order[user] if int(shop.ids[place]) in left][:10]
            expected_ids[row, : len(best)] = shop.ids[best]
            expected_scores[row, : len(best)] = scores[user, best]
        got = ask(pipeline, whole, users, cases)
        assert_same_answers(got, (expected_ids, expected_scores))


def test_candidates_are_the_best_of_what_is_left(
    narrow: Any, clean: list[Path], assert_same_answers: Callable[..., None]
) -> None:
    """Against a pipeline that compares every item that is left with the user."""
    clean.append(narrow.repository)
    shop, random = Shop.of(narrow.checkpoints, narrow.schema), np.random.default_rng(1)
    denied = set(random.permutation(shop.ids)[:300].tolist())
    deny(narrow.repository, denied)
    pipeline, cosines = narrow.pipeline(), scores_of(narrow, RETRIEVE)
    place_of = {int(item): place for place, item in enumerate(shop.ids)}
    row_of = {int(item): row for row, item in enumerate(pipeline.item_ids)}
    users = random.integers(len(narrow.dense), size=200)
    cases = [draw(shop, random) for _ in users]
    reference = np.full((len(users), SMALL.candidates), -1, np.int64)
    for row, (user, case) in enumerate(zip(users, cases, strict=True)):
        left = sorted(shop.left(case, denied), key=lambda i: -cosines[user, place_of[i]])
        best = left[: SMALL.candidates]
        reference[row, : len(best)] = [row_of[item] for item in best]
    exclude, allow = zip(*(case.wire for case in cases), strict=True)
    wire = narrow.dense[users], narrow.categorical[users]
    *encoded, candidates = pipeline.retrieve(*wire, column(list(exclude)), column(list(allow)))
    np.testing.assert_array_equal((candidates >= 0).sum(1), (reference >= 0).sum(1))
    expected = pipeline.rank(*encoded, pipeline.prerank(*encoded, reference))
    assert_same_answers(ask(pipeline, narrow, users, cases), expected)


def test_neighbours_in_a_batch_do_not_matter(
    criteo: Any, assert_same_answers: Callable[..., None]
) -> None:
    pipeline, random = criteo.pipeline(), np.random.default_rng(2)
    shop = Shop.of(criteo.checkpoints, criteo.schema)
    users, cases = np.arange(12), [Case(), *(draw(shop, random) for _ in range(11))]
    together = ask(pipeline, criteo, users, cases)
    alone = [ask(pipeline, criteo, [u], [case]) for u, case in zip(users, cases, strict=True)]
    ids, scores = (np.concatenate(part) for part in zip(*alone, strict=True))
    assert_same_answers(together, (ids, scores))
    assert_same_answers((ids[:1], scores[:1]), criteo.ask(pipeline, 0, 1))


def test_without_filters_the_present_path_is_taken(criteo: Any) -> None:
    """Nothing is searched but what was searched before, empty filters included."""
    stage = criteo.pipeline()._retrieve
    asked: list[int] = []
    found = np.zeros((3, 1), np.int64)
    stage._search._search = lambda *users: asked.append(len(users[0])) or found
    users = criteo.dense[:3], criteo.categorical[:3]
    empty = column([b""] * 3)
    for filters in ((), (None, None), (empty, None), (None, empty), (empty, column([b"{}"] * 3))):
        assert stage(*users, *filters)[2] is found
    assert asked == [3] * 5


@pytest.mark.parametrize("runtime", ["onnx", "torchscript"])
def test_stages_answer_to_pads_alone(criteo: Any, runtime: Any) -> None:
    """One user of the batch has nothing left; the others have their answers."""
    pipeline = criteo.pipeline(runtime=runtime)
    cases = [Case(allow={"C7": ["nobody has this"]}), Case()]
    for users, asked in (([0], cases[:1]), ([0, 1], cases), ([0, 0], [cases[0]] * 2)):
        ids, scores = ask(pipeline, criteo, users, asked)
        assert (ids[0] == -1).all()
        assert (scores[0] == 0).all()
    ids, _ = ask(pipeline, criteo, [0, 1], cases)
    np.testing.assert_array_equal(ids[1], criteo.ask(pipeline, 1, 2)[0][0])


# --- the index

FACTORY = ("IVF60,PQ8x4fs,RFlat", "IVF60,PQ4x4", "HNSW32,Flat", "PCA8,HNSW32,SQ8")


@pytest.fixture(scope="module")
def vectors() -> Any:
    random = np.random.default_rng(3)
    centres = random.standard_normal((40, 16))
    found = centres[random.integers(40, size=4000)] + 0.5 * random.standard_normal((4000, 16))
    return found.astype(np.float32)


@pytest.mark.parametrize("kind", [*KINDS, *FACTORY, "exact"])
@pytest.mark.parametrize("share", [0.5, 0.02])
def test_every_kind_searches_among_what_is_allowed(kind: Any, share: float, vectors: Any) -> None:
    random, k = np.random.default_rng(4), 50
    allowed = random.random(len(vectors)) < share
    queries = vectors[random.integers(len(vectors), size=20)]
    built: Any
    if kind == "exact":
        built, recall = ExactIndex(torch.from_numpy(vectors).half()), 1.0
    else:
        built = index.build(vectors, kind)
        recall = index.tune(built, vectors, queries, k, 0.95)
    found = built.search_among(queries, k, allowed)
    assert found.shape == (20, k)
    assert allowed[found[found >= 0]].all()
    for row in found:
        assert len(set(row[row >= 0])) == (row >= 0).sum()
    best = np.argsort(-np.where(allowed, queries @ vectors.T, -np.inf), axis=1)[:, :k]
    hits = [len(set(mine) & set(right)) for mine, right in zip(found, best, strict=True)]
    assert np.mean(hits) / k >= recall - 0.05  # as good as it is without a filter


@pytest.mark.parametrize("kind", [*KINDS, *FACTORY, "exact"])
def test_every_kind_finds_enough_for_some_to_be_left_out(kind: Any, vectors: Any) -> None:
    """Even the best of all."""
    k, queries = 50, vectors[:20]
    built: Any
    if kind == "exact":
        built, recall = ExactIndex(torch.from_numpy(vectors).half()), 1.0
    else:
        built = index.build(vectors, kind)
        recall = index.tune(built, vectors, queries, k, 0.95)
    order = np.argsort(-queries @ vectors.T, axis=1)
    hits = 0
    for number, right in enumerate(order):
        extra = number % 3 * 30
        [mine] = built.search_oversampled(queries[number : number + 1], k, extra)
        assert len(set(mine[mine >= 0])) == (mine >= 0).sum()
        left = mine[~np.isin(mine, right[:extra])][:k]
        hits += len(set(left) & set(right[extra : extra + k]))
    assert hits / (len(queries) * k) >= recall - 0.05


def test_exact_search_pads_where_too_few_are_allowed(vectors: Any) -> None:
    built = ExactIndex(torch.from_numpy(vectors).half())
    allowed = np.zeros(len(vectors), bool)
    assert (built.search_among(vectors[:2], 5, allowed) == -1).all()
    allowed[[7, 3000]] = True
    found = built.search_among(vectors[:2], 5, allowed)
    assert [sorted(row) for row in found.tolist()] == [[-1, -1, -1, 7, 3000]] * 2


# --- what comes over the wire


def test_ids_are_unpacked() -> None:
    assert decode_exclude(b"").tolist() == []
    assert decode_exclude(np.array([5, -1, 2**62], "<i8").tobytes()).tolist() == [5, -1, 2**62]
    assert len(decode_exclude(bytes(8 * MOST_EXCLUDED))) == MOST_EXCLUDED
    with pytest.raises(InvalidInput, match="1001 ids came; at most 1000"):
        decode_exclude(bytes(8 * 1001))
    with pytest.raises(InvalidInput, match=r"13 bytes came; .*8 bytes each"):
        decode_exclude(bytes(13))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (b"[]", []),
        (b"[5]", [5]),
        (b"[5, 123]", [5, 123]),  # as many bytes as a packed id
        (b'[-1,\n "9223372036854775807"]', [-1, 2**63 - 1]),
    ],
)
def test_ids_are_read_from_json(text: bytes, ids: list[int]) -> None:
    assert decode_exclude(text).tolist() == ids


@pytest.mark.parametrize(
    "text", [b"[1.5]", b"[1,]", b'["a"]', b'["1.5", 7]', b"[9223372036854775808]", b"[--12345]"]
)
def test_ids_that_are_no_integers_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidInput, match="list of integers"):
        decode_exclude(text)
    with pytest.raises(InvalidInput, match="1001 ids came; at most 1000"):
        decode_exclude(str([*range(1001)]).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"12345678",
        b"[17, 18,",
        b"17,18,19",
        b'"123456"',
        b'["sku-1"',
        b'["sku-1", "sku-2',
        b'{"ids": [17, 18]}       ',
        b"[" * 8000,
    ],
)
@pytest.mark.parametrize("string_ids", [False, True])
def test_what_may_be_meant_as_a_list_is_not_taken_for_packed_ids(
    text: bytes, string_ids: bool
) -> None:
    """It would exclude items that do not exist, and the user would get those that were meant."""
    with pytest.raises(InvalidInput, match="list of"):
        decode_exclude(text, string_ids)


def test_values_are_read() -> None:
    assert decode_allow(b"") == decode_allow(b"{}") == {}
    assert decode_allow('{"a": ["é", 5], "b": []}'.encode()) == {
        "a": ["é".encode(), b"5"],
        "b": [],
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"a": "Comedy"}', "feature a: 'Comedy' came; expected a list"),
        (b'{"a": [1.5]}', "feature a: '1.5' came among"),
        (b'{"a": ["x"], "b": [], "a": ["y"]}', "feature a came twice"),
        (b'{"a": [{"x": 1, "x": 2}]}', "feature x came twice"),
        (b'{"a": [null]}', "feature a: 'None' came among"),
        (b'{"a": [true]}', "feature a: 'True' came among"),
        (json.dumps({"a": ["x"] * (MOST_VALUES + 1)}).encode(), "1001 values came; at most 1000"),
    ],
)
def test_what_is_no_filter_is_refused(text: bytes, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        decode_allow(text)


def test_half_a_character_matches_nothing(criteo: Any) -> None:
    ids, _ = criteo.pipeline()(
        criteo.dense[:1], criteo.categorical[:1], None, column([rb'{"C7": ["\ud800"]}'])
    )
    assert (ids == -1).all()


@pytest.mark.parametrize("feature", ["genre", "I1", "C1"])
def test_an_unknown_feature_is_named_with_those_known(criteo: Any, feature: str) -> None:
    pipeline = criteo.pipeline()
    allow = column([json.dumps({feature: ["x"]}).encode()])
    with pytest.raises(InvalidInput, match=f"called '{feature}'; known: C7, C8"):
        pipeline(criteo.dense[:1], criteo.categorical[:1], None, allow)


# --- the deny list


@pytest.fixture
def items(criteo: Any) -> FilterItems:
    return FilterItems(criteo.repository / RETRIEVE / "1", criteo.schema.hash)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_deny_list_is_in_force_within_a_second(
    items: FilterItems, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, path = Clock(), tmp_path / "deny.txt"
    watched = DenyList(path, items, clock)

    def after_a_second() -> int:
        clock.now_s += 1
        return watched.now().count

    assert after_a_second() == 0
    path.write_text("5000000000 # the first\n\n# nothing\n5000000003\n4\n")  # nobody has 4
    clock.now_s += 0.1
    assert watched.now().count == 0
    assert after_a_second() == 2
    replacement = tmp_path / "new"
    replacement.write_text("5000000006\n")
    os.replace(replacement, path)
    assert after_a_second() == 1
    assert not caplog.records
    path.write_text("5000000003\n5000000009\r\n5000000006")
    assert after_a_second() == 3
    path.write_text("")
    assert after_a_second() == 0
    path.unlink()
    assert after_a_second() == 0
    assert not caplog.records


FIRST, SECOND, THIRD = 5000000000, 5000000003, 5000000006
TWO = f"{FIRST}\n{SECOND}\n"


def denied(watched: DenyList, clock: Clock, shop: FilterItems) -> set[int]:
    """The ids that are denied a second later."""
    clock.now_s += 1
    return {int(shop._row_ids[row]) for row in np.flatnonzero(watched.now().mask)}


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + TWO.encode(),
        TWO.encode("utf-16"),
        TWO.encode("utf-16-le"),
        b"item_id\n" + TWO.encode(),
        f'item_id,reason\n{FIRST},"recalled, again"\n{SECOND},\n'.encode(),
        f'"{FIRST}"\n"{SECOND}"\n'.encode(),
        f"{FIRST}.0\n{SECOND}.0\n".encode(),
        f"{FIRST},{SECOND}\n".encode(),
        f"{FIRST}\nnot an id\n{SECOND}\n".encode(),
    ],
)
def test_a_deny_list_denies_whatever_can_be_read_of_it(
    content: bytes, items: FilterItems, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start, and where it comes while requests are answered."""
    clock, path = Clock(), tmp_path / "deny.txt"
    path.write_text(f"{THIRD}\n")
    watched = DenyList(path, items, clock)
    assert denied(watched, clock, items) == {THIRD}
    path.write_bytes(content)
    bad = b"not an id" in content
    kept = {THIRD} if bad else set()
    for _ in range(2):
        assert denied(watched, clock, items) == {FIRST, SECOND} | kept
    assert denied(DenyList(path, items, clock), clock, items) == {FIRST, SECOND}
    lines = watched.levels()["deny_list_lines"]
    assert isinstance(lines, dict)
    assert lines["bad"] == bad
    assert lines["applied"] >= 1
    assert watched.levels()["deny_list_ok"] == 1 - bad
    told = [record.getMessage() for record in caplog.records]
    assert [("line 2: 'not an id' is no item id" in line) for line in told] == [True] * 2 * bad


def test_a_process_that_starts_later_denies_what_those_before_it_did(
    items: FilterItems, tmp_path: Path
) -> None:
    clock, path = Clock(), tmp_path / "deny.txt"

    def started() -> DenyList:
        return DenyList(path, items, clock, memory=Memory(tmp_path / "kept"))

    first = started()
    path.write_text(TWO)
    assert denied(first, clock, items) == {FIRST, SECOND}
    path.unlink()
    assert denied(started(), clock, items) == {FIRST, SECOND}
    assert started().levels()["deny_list_ok"] == 0
    path.write_bytes(bytes(range(128, 256)))  # nothing of it can be read
    assert denied(started(), clock, items) == {FIRST, SECOND}
    path.write_text(f"{THIRD}\nnot an id\n")
    assert denied(started(), clock, items) == {FIRST, SECOND, THIRD}
    path.write_text(TWO + "still no id\n")
    assert denied(started(), clock, items) == {FIRST, SECOND, THIRD}
    path.unlink()
    assert denied(started(), clock, items) == {FIRST, SECOND, THIRD}
    path.write_text("")  # whole again: it is a decision
    assert denied(started(), clock, items) == set()
    path.unlink()
    assert started().levels()["deny_list_ok"] == 1
    (tmp_path / "kept").write_text("{")
    with pytest.raises(DenyListError, match="what was denied before, is damaged"):
        started()


def test_a_deny_list_of_integers_denies_every_reading_of_a_line(
    criteo: Any, tmp_path: Path
) -> None:
    folder = criteo.repository / RETRIEVE / "1"

    class Renamed(FilterItems):
        """Items with ids below a million."""

        def known(self, keys: Any) -> Any:
            return super().known(keys + FIRST)

        def rows(self, keys: Any) -> Any:
            return super().rows(keys + FIRST)

    items = Renamed(folder, criteo.schema.hash)
    file = DenyFile.of(b"3,012\n6\n", items, False)  # 3 and 12, or 3012; two are items, or all
    wanted = {3, 12, 6, 3012} & {int(key - FIRST) for key in items._row_ids}
    assert 3012 in wanted
    assert len(wanted) >= 3
    assert file.denied.count == len(wanted)
    assert (file.applied, file.absent, file.bad) == (2, 0, ())


def test_an_error_of_a_deny_list_permits_nothing(
    items: FilterItems, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, path = Clock(), tmp_path / "lists" / "deny.txt"
    path.parent.mkdir()
    path.write_text(TWO)
    watched = DenyList(path, items, clock)
    assert watched.levels()["deny_list_ok"] == 1
    assert 0 <= float(watched.levels()["deny_list_age_s"]) < 60  # type: ignore[arg-type]

    def broken() -> str:
        """It still denies both, says so in the metrics, and logs it once -> what it logs."""
        caplog.clear()
        for _ in range(3):
            assert denied(watched, clock, items) >= {FIRST, SECOND}
            assert watched.levels()["deny_list_ok"] == 0
        [record] = caplog.records
        return record.getMessage()

    def mended() -> None:
        caplog.clear()
        path.write_text(TWO)
        assert denied(watched, clock, items) == {FIRST, SECOND}
        assert watched.levels()["deny_list_ok"] == 1
        assert "as it stands again" in caplog.text

    path.unlink()
    assert "the file is gone; to deny nothing, leave an empty one" in broken()
    mended()
    path.write_bytes(bytes(range(128, 256)) * 9)
    assert "none of its 1 lines can be read" in broken()
    mended()
    path.unlink()
    path.mkdir()
    assert "Is a directory" in broken()
    path.rmdir()
    mended()
    path.unlink()
    os.mkfifo(path)
    assert "it is no regular file" in broken()
    path.unlink()
    mended()
    path.parent.rename(tmp_path / "away")
    assert "No such file" in broken()
    (tmp_path / "away").rename(path.parent)
    mended()
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert "No such file" in broken()
    path.unlink()
    mended()
    path.write_text(f"{THIRD}\n12 monkeys\n{2**63}\n")
    assert "2 of 3 lines cannot be read" in broken()
    assert denied(watched, clock, items) == {FIRST, SECOND, THIRD}
    path.write_text(f"{THIRD}\n")
    assert denied(watched, clock, items) == {THIRD}


def test_a_process_does_not_start_over_a_deny_list_that_it_cannot_read(
    items: FilterItems, tmp_path: Path
) -> None:
    path = tmp_path / "deny.txt"
    path.write_text("sku-1\nsku-2\n")
    with pytest.raises(DenyListError, match=r"deny\.txt: none of its 2 lines .*line 1: 'sku-1'"):
        DenyList(path, items)
    path.unlink()
    path.mkdir()
    with pytest.raises(DenyListError, match="Is a directory"):
        DenyList(path, items)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(DenyListError, match="no regular file"):
        DenyList(path, items)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DenyListError, match="No such file"):
        DenyList(path, items)
    with pytest.raises(DenyListError, match="No such file"):
        DenyList(tmp_path / "nowhere" / "deny.txt", items)


def test_a_deny_list_that_a_release_names_must_be_there_to_serve(tmp_path: Path) -> None:
    assert deny_list_of(tmp_path, Product(), serving=True) == tmp_path / DENY_LIST
    assert deny_list_of(tmp_path, Product(deny_list=""), serving=True) is None
    named = Product(deny_list="lists/deny.csv")
    assert deny_list_of(tmp_path, named) == tmp_path / "lists" / "deny.csv"
    with pytest.raises(ConfigError, match=r"there is no deny list .*deny\.csv"):
        deny_list_of(tmp_path, named, serving=True)


def test_a_deny_list_elsewhere_is_found_by_its_path(criteo: Any, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(criteo.repository, tmp_path / "repository"))
    file = repository / "recommend" / "1" / "release.json"
    release = json.loads(file.read_text())
    elsewhere = tmp_path / "elsewhere.txt"
    release["product"]["deny_list"] = str(elsewhere)
    file.write_text(json.dumps(release))
    ids, _ = criteo.ask(criteo.pipeline(), 0, 1)
    elsewhere.write_text("\n".join(map(str, ids[0])))
    pipeline = Pipeline.load(repository, serving=Serving(threads=1))
    others, _ = criteo.ask(pipeline, 0, 1)
    assert (others >= 0).all()
    assert not set(others[0]) & set(ids[0])


# --- artifacts


def test_a_release_without_its_files_is_refused(criteo: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(criteo.repository / RETRIEVE / "1", tmp_path / "1"))
    (folder / "filter_rows.bin").write_bytes(b"short")
    with pytest.raises(ArtifactError, match=r"filter_rows.bin has 5 bytes"):
        FilterItems(folder, criteo.schema.hash)
    with pytest.raises(ArtifactError, match="was made for schema"):
        FilterItems(folder, "another")
    (folder / "filters.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is damaged"):
        FilterItems(folder, criteo.schema.hash)
    (folder / "filters.json").unlink()
    with pytest.raises(ArtifactError, match=r"filters\.json is missing: export again"):
        FilterItems(folder, criteo.schema.hash)
