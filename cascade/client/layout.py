"""What a request looks like, as the server describes it, and the way from dicts to arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade import encoding, values
from cascade.client.errors import InvalidInput, RecommendError
from cascade.spec import CHALLENGER_SHARE
from cascade.values import unknown_name

User = Mapping[str, Any]
"""Raw feature values by name: numbers, strings, lists of strings. Absent or None = missing."""

UserId = str | int | bytes
"""By which the server knows a user; an integer is its decimal text."""

Dense = npt.NDArray[np.float32]
Categorical = npt.NDArray[np.object_]
PAD = -1
FILTERS = {"exclude", "allow"}


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The best items for one user, best first.

    Args:
        item_ids: int64 [<= 10]; fewer where not so many items are left.
        scores: float32 of the same length, predicted click probabilities.
        release: number of the release that answered, where the server says so.
        short: there are fewer than a full answer holds: no other item is in the catalogue, or none
            passes the filters.
        cold_start: nothing was known of the user but what the request said (`recommend_user`).
        propensities: float32 of the same length, with which the items came into their places;
            where the server explores (`export --explored`).
    """

    item_ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    release: int | None = None
    short: bool = False
    cold_start: bool = False
    propensities: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What the server sent for B users; None for what it did not send.

    Args:
        item_ids, scores: the results, [B, 10] each.
        release: int64 [B, 1], which release each comes from.
        cold_start: bool [B, 1], where the users came by id.
        propensities: float32 [B, 10], where places are drawn by chance.
    """

    item_ids: npt.NDArray[np.int64] | None
    scores: npt.NDArray[np.float32] | None
    release: npt.NDArray[np.int64] | None = None
    cold_start: npt.NDArray[np.bool_] | None = None
    propensities: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class IdFeature:
    """A categorical, or a bag of which the first `length` members are read, or a sequence, of which
    the last are."""

    name: str
    bag: bool
    length: int
    sequence: bool = False


@dataclass(frozen=True)
class Layout:
    """The features of a user in the order of the two tensors.

    Args:
        dense: names of the numbers.
        categorical: the categoricals and bags.
        max_batch_size: most users in one request.
        layout_hash: the server's name for this layout.
        items: features of the items that a user may ask for by value.
        filters: whether the server takes filters at all; one of an older export does not.
        share: of the users who get the challenger, `cascade.client.split`.
    """

    dense: tuple[str, ...]
    categorical: tuple[IdFeature, ...]
    max_batch_size: int
    layout_hash: str
    items: tuple[str, ...] = ()
    filters: bool = False
    share: float = 0.0

    @classmethod
    def from_config(cls, config: Any) -> Layout:
        """Read a layout off the model's configuration (a protobuf ModelConfig).

        Raises:
            RecommendError: the model is not an export of this cascade.
        """
        text = config.parameters["features"].string_value
        try:
            features = json.loads(text)
            layout = cls(
                tuple(features["dense"]),
                tuple(
                    IdFeature(f["name"], f["bag"], f["length"], f.get("sequence", False))
                    for f in features["categorical"]
                ),
                config.max_batch_size,
                config.parameters["layout_hash"].string_value,
                tuple(features.get("items", ())),
                {tensor.name for tensor in config.input} >= FILTERS,
                _share(config),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RecommendError(
                f"model {config.name} does not say which features it takes (its parameter "
                f"'features' is {text[:40]!r}). Is it an export of this cascade?"
            ) from error
        layout._check_widths(config)
        return layout

    def _check_widths(self, config: Any) -> None:
        expected = {"dense": [self._dense_width], "categorical": [self._categorical_width]}
        came = {t.name: list(t.dims) for t in config.input if t.name in expected}
        if came != expected or self.max_batch_size < 1:
            raise RecommendError(
                f"model {config.name} takes {came} in batches of {self.max_batch_size}, but its "
                f"features make {expected} in batches of 1 or more. Export it again."
            )

    @property
    def _dense_width(self) -> int:
        """A user without numbers sends one column that nobody reads (see `Schema.dense_width`)."""
        return max(1, len(self.dense))

    @property
    def _categorical_width(self) -> int:
        return max(1, len(self.categorical))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every feature that a user may have."""
        return (*self.dense, *(feature.name for feature in self.categorical))

    def arrays(self, users: Sequence[User]) -> tuple[Dense, Categorical]:
        """Users as the two tensors: float32 [B, F_dense] and object (bytes) [B, F_cat].

        Raises:
            InvalidInput: names the feature and, where there are several users, which of them.
        """
        dense = np.full((len(users), self._dense_width), np.nan, np.float32)
        categorical = np.full((len(users), self._categorical_width), b"", np.object_)
        for row, user in enumerate(users):
            try:
                self._check_names(user)
                for column, name in enumerate(self.dense):
                    dense[row, column] = values.number(name, user.get(name))
                for column, feature in enumerate(self.categorical):
                    categorical[row, column] = _id_value(feature, user.get(feature.name))
            except (InvalidInput, encoding.InvalidInput) as error:
                raise InvalidInput(f"user {row}: {error}" if len(users) > 1 else str(error)) from (
                    error.__cause__
                )
        return dense, categorical

    def user_ids(self, ids: Sequence[UserId]) -> Categorical:
        """Object (bytes) [B, 1].

        Raises:
            InvalidInput: neither text nor an integer.
        """
        try:
            texts = [values.category("user_id", user_id) for user_id in ids]
        except encoding.InvalidInput as error:
            raise InvalidInput(str(error)) from error.__cause__
        return np.array(texts, np.object_).reshape(-1, 1)

    def contexts(self, contexts: Sequence[User | None]) -> Categorical:
        """Feature values that override stored ones, as JSON: object (bytes) [B, 1], empty = none.

        Raises:
            InvalidInput: names the feature and, where there are several users, which of them.
        """
        self.arrays([context or {} for context in contexts])
        texts = [json.dumps(c, default=_plain).encode() if c else b"" for c in contexts]
        return np.array(texts, np.object_).reshape(-1, 1)

    def _check_names(self, user: object) -> None:
        if not isinstance(user, Mapping):
            raise InvalidInput(
                f"a user is a dict of feature values by name; a {type(user).__name__} came"
            )
        for name in user:
            if name not in self._known:
                raise InvalidInput(unknown_name("feature", name, self.names))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)


def _plain(value: Any) -> Any:
    """What JSON does not know of the values that a user may have."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode()
    return float(value)


def _share(config: Any) -> float:
    """The parameter that a split of the users leaves with `recommend`."""
    if CHALLENGER_SHARE not in config.parameters:
        return 0.0
    return float(config.parameters[CHALLENGER_SHARE].string_value)


def _id_value(feature: IdFeature, value: object) -> bytes:
    if feature.sequence:
        return values.sequence(feature.name, value, feature.length)
    if feature.bag:
        return values.bag(feature.name, value, feature.length)
    return values.category(feature.name, value)


def recommendations(answer: Answer, users: int) -> list[Recommendation]:
    """Split an answer into one list per user without the pads.

    Raises:
        RecommendError: the answer does not belong to a request of so many users.
    """
    item_ids, scores = answer.item_ids, answer.scores
    if item_ids is None or scores is None or not len(item_ids) == len(scores) == users:
        shapes = [None if array is None else array.shape for array in (item_ids, scores)]
        raise RecommendError(
            f"the server answered item_ids and scores of shapes {shapes} to {users} users"
        )
    kept = item_ids != PAD
    releases = [None] * users if answer.release is None else answer.release[:, 0].tolist()
    cold = [False] * users if answer.cold_start is None else answer.cold_start[:, 0].tolist()
    drawn = [None] * users if answer.propensities is None else answer.propensities
    return [
        Recommendation(
            ids[keep],
            score[keep],
            release,
            not keep.all(),
            is_cold,
            None if chance is None else chance[keep],
        )
        for ids, score, keep, release, is_cold, chance in zip(
            item_ids, scores, kept, releases, cold, drawn, strict=True
        )
    ]
