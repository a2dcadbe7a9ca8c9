"""The two ends of a call: `plan` makes a client's request into calls of the server, `merge` makes
their answers into recommendations. Neither does any input or output.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade import values
from cascade.client import split
from cascade.client.errors import RecommendError
from cascade.client.layout import Layout
from cascade.client.split import Key
from cascade.encoding import InvalidInput
from cascade.filters_wire import Allow, Exclude, encode_allow, encode_exclude
from cascade.item_keys import PAD
from cascade.layout import Categorical, User, of_user
from cascade.spec import ALLOW, CONTEXT, EXCLUDE, FEATURES, RECOMMEND_USER, USER_ID

UserId = str | int | bytes
"""By which the server knows a user; an integer is its decimal text."""

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Request:
    """What one call of a client asks for B users, read once; all have an entry for each user.

    Args:
        users: raw feature values by name; not with `ids`.
        ids: by which the server finds the features in its store.
        contexts: with `ids`, values that override the stored ones; None = none.
        keys: by which a split between two releases tells users apart; with `ids`, the ids.
    """

    users: Iterable[User] = ()
    ids: Iterable[UserId] | None = None
    contexts: Iterable[User | None] | None = None
    exclude: Iterable[Exclude] | None = None
    allow: Iterable[Allow] | None = None
    keys: Iterable[Key] | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """One request to the server.

    Args:
        tensors: the inputs by name, [B, ...] each: float32, or object for bytes.
        users: int64 [B], positions of its users in the client's request.
        model: None = the one that the client was made for.
        ending: of the model's name (`cascade.client.split`).
    """

    tensors: Tensors
    users: npt.NDArray[np.int64]
    model: str | None
    ending: str


@dataclass(frozen=True, eq=False)
class Answer:
    """What the server sent for B users, by output; None for what it did not send."""

    # [B, 10], as scores and propensities; int64, or object of UTF-8 where ids are strings
    item_ids: npt.NDArray[Any] | None
    scores: npt.NDArray[np.float32] | None
    release: npt.NDArray[np.int64] | None = None  # [B, 1], as cold_start
    cold_start: npt.NDArray[np.bool_] | None = None
    propensities: npt.NDArray[np.float32] | None = None
    unknown_values: npt.NDArray[np.int64] | None = None  # [B, 1]
    task_scores: npt.NDArray[np.float32] | None = None  # [B, 10, T]


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The best items for one user, best first.

    Args:
        item_ids: int64 [<= 10], or object [<= 10] of str where the catalogue names its items by
            strings; fewer where fewer items are left.
        scores: float32 of the same length, predicted click probabilities, or what the formula of
            a model of several tasks makes of these.
        release: number of the release that answered, where the server says so.
        short: the list is not full: no other item is in the catalogue, or none passes the filters.
        cold_start: the store knows nothing of the user (`recommend_user`).
        propensities: float32 of the same length, the probabilities with which the items came into
            their places; where the server explores (`export --explored`).
        unknown_values: how many of the user's values are not in the vocabularies of the features,
            because they are new, rare or misspelt; where the server says so.
        task_scores: by the name of a task, float32 of the same length: what the ranker says of each
            item; where it has several tasks.
    """

    item_ids: npt.NDArray[Any]
    scores: npt.NDArray[np.float32]
    release: int | None = None
    short: bool = False
    cold_start: bool = False
    propensities: npt.NDArray[np.float32] | None = None
    unknown_values: int | None = None
    task_scores: Mapping[str, npt.NDArray[np.float32]] | None = None


def plan(request: Request, layout: Layout) -> list[Call]:
    """The calls of a request: one for each release and each `max_batch_size` users.

    Raises InvalidInput: a value cannot be read; names its feature and, of several users, which one;
    RecommendError: there are filters, but the server takes none; ValueError: not one key for each
    user.
    """
    model, keys = None, _listed("keys", request.keys)
    ids = _listed("user_ids", request.ids)
    if ids is None:
        users_given = _listed("users", request.users) or []
        tensors: Tensors = dict(zip(FEATURES, layout.arrays(users_given), strict=True))
    else:
        model, keys = RECOMMEND_USER, ids
        tensors = _by_id(ids, _listed("contexts", request.contexts), layout)
    users = min(map(len, tensors.values()))
    filters = filter_tensors(layout, users, request.exclude, request.allow)
    tensors |= filters
    if filters and model is None:
        model = layout.filtered
    calls = []
    for ending, places in split.arms(keys, users, layout.share):
        for start in range(0, len(places), layout.max_batch_size):
            some = places[start : start + layout.max_batch_size]
            part = {name: whole[some] for name, whole in tensors.items()}
            calls.append(Call(part, some, model, ending))
    return calls


def _listed(name: str, given: Iterable[Any] | None) -> list[Any] | None:
    """Entries for several users, of any iterable. Raises InvalidInput for what is one user's."""
    if given is None:
        return None
    if not _is_several(given):
        raise values.unexpected(name, given, "a list, or what else yields an entry for each user")
    return list(given)


def _is_several(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)


def merge(
    calls: Sequence[Call], answers: Sequence[Answer], tasks: Sequence[Sequence[str]]
) -> list[Recommendation]:
    """One recommendation per user of the request, in their order; `tasks` are the names of those of
    each answer."""
    found: dict[int, Recommendation] = {}
    for call, answer, names in zip(calls, answers, tasks, strict=True):
        results = recommendations(answer, len(call.users), names)
        found.update(zip(call.users.tolist(), results, strict=True))
    return [found[user] for user in range(len(found))]


def recommendations(answer: Answer, users: int, tasks: Sequence[str] = ()) -> list[Recommendation]:
    """Split an answer into one list per user, without the pads. Raises RecommendError if the answer
    does not belong to a request of so many users."""
    item_ids, scores = answer.item_ids, answer.scores
    if item_ids is None or scores is None or not len(item_ids) == len(scores) == users:
        shapes = [None if array is None else array.shape for array in (item_ids, scores)]
        raise RecommendError(
            f"the server answered item_ids and scores of shapes {shapes} to {users} users"
        )
    found, strings = [], item_ids.dtype == np.object_
    for user, keep in enumerate(item_ids != (b"" if strings else PAD)):
        items = item_ids[user, keep]
        found.append(
            Recommendation(
                np.array([item.decode() for item in items], np.object_) if strings else items,
                scores[user, keep],
                None if answer.release is None else int(answer.release[user, 0]),
                not keep.all(),
                answer.cold_start is not None and bool(answer.cold_start[user, 0]),
                None if answer.propensities is None else answer.propensities[user, keep],
                None if answer.unknown_values is None else int(answer.unknown_values[user, 0]),
                _by_name(answer, user, keep, tasks),
            )
        )
    return found


def _by_name(
    answer: Answer, user: int, keep: npt.NDArray[np.bool_], tasks: Sequence[str]
) -> dict[str, npt.NDArray[np.float32]] | None:
    found = answer.task_scores
    if found is None or found.shape[2] != len(tasks):
        return None
    return {name: found[user, keep, place] for place, name in enumerate(tasks)}


def filter_tensors(
    layout: Layout, users: int, exclude: Iterable[Exclude] | None, allow: Iterable[Allow] | None
) -> Tensors:
    """The filters of so many users by input name, [B, 1] each, without those that no user has.
    Raises InvalidInput for not one per user, and for one that cannot be read, with the user."""
    encode = partial(encode_exclude, string_ids=layout.string_ids)
    excluded = _column(EXCLUDE, exclude, users, encode)
    allowed = _column(ALLOW, allow, users, partial(encode_allow, known=layout.items))
    columns = {EXCLUDE: excluded, ALLOW: allowed}
    found: Tensors = {name: column for name, column in columns.items() if column[:, 0].any()}
    if found and not layout.filters:
        raise RecommendError("the served release takes no filters: export it again")
    return found


def _column(
    name: str, given: Iterable[Any] | None, users: int, encode: Callable[[Any], bytes]
) -> Categorical:
    column = np.full((users, 1), b"", np.object_)
    if given is None:
        return column
    filters = list(given) if _is_several(given) else []
    if len(filters) != users:
        expected = f"a list with one entry for each of the {users} users (None = no filter)"
        raise InvalidInput(f"{name}: expected {expected}; {reprlib.repr(filters or given)} came")
    for user, value in enumerate(filters):
        try:
            column[user, 0] = encode(value)
        except InvalidInput as error:
            raise of_user(user, users, error) from error.__cause__
    return column


def _by_id(
    ids: Sequence[UserId], contexts: Sequence[User | None] | None, layout: Layout
) -> Tensors:
    """user_id [B, 1] and, where a user has one, context [B, 1]: JSON, empty = none."""
    texts = [values.category("user_id", user_id) for user_id in ids]
    tensors: Tensors = {USER_ID: np.array(texts, np.object_).reshape(-1, 1)}
    if contexts is not None and len(contexts) != len(ids):
        raise InvalidInput(f"{len(contexts)} contexts came for {len(ids)} users")
    if any(contexts or ()):
        layout.arrays([context or {} for context in contexts or ()])  # checks them
        texts = [json.dumps(c, default=_plain).encode() if c else b"" for c in contexts or ()]
        tensors[CONTEXT] = np.array(texts, np.object_).reshape(-1, 1)
    return tensors


def _plain(value: Any) -> Any:
    """A value that JSON has no form for, of those that a user may have."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode()
    return float(value)
