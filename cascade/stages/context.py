"""Raw feature values by name that a request carries as JSON (its input `context`), over those that
it sends as tensors or that a store holds. Plain JSON over HTTP has no other form for a missing
number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cascade import values
from cascade.artifact import Array
from cascade.encoding import InvalidInput
from cascade.layout import RequestLayout, of_user

MAX_CONTEXT_BYTES = 65_536
Overrides = list[tuple[int, Mapping[str, Any]]]
"""The users of a batch that have a context: the row, and checked values by feature."""


class Contexts:
    """Reads the contexts of users of one layout."""

    def __init__(self, layout: RequestLayout) -> None:
        self.layout = layout

    def read(self, context: Array) -> Overrides:
        """context [B, 1] of bytes, empty = none. Raises InvalidInput: no JSON object, an unknown
        feature or one that comes twice, an unreadable value; says which of several users."""
        found: Overrides = []
        for row, text in enumerate(context[:, 0].tolist()):
            if text:
                try:
                    found.append((row, self._features(text)))
                except InvalidInput as error:
                    raise of_user(row, len(context), error) from error.__cause__
        return found

    def lay(self, overrides: Overrides, dense: Array, categorical: Array) -> None:
        """Write the values into dense [B, F_dense] and categorical [B, F_cat]; null is missing."""
        for row, features in overrides:
            self.layout.fill(features, dense[row], categorical[row])

    def over(self, context: Array, dense: Array, categorical: Array) -> tuple[Array, Array]:
        """Copies of dense and categorical under the contexts. Raises InvalidInput as `read`."""
        overrides = self.read(context)
        dense, categorical = dense.copy(), categorical.copy()
        self.lay(overrides, dense, categorical)
        return dense, categorical

    def _features(self, context: bytes) -> dict[str, Any]:
        if len(context) > MAX_CONTEXT_BYTES:
            raise InvalidInput(
                f"context: {len(context)} bytes came; at most {MAX_CONTEXT_BYTES} are read"
            )
        try:
            features = values.of_json(context)
        except InvalidInput as error:
            raise InvalidInput(f"context: {context[:40]!r} is {error}") from error.__cause__
        if not isinstance(features, dict):
            raise InvalidInput(
                f"context: a JSON {type(features).__name__} came; expected an object of feature "
                "values by name"
            )
        dense, categorical = self.layout.empty()
        try:
            self.layout.fill(features, dense[0], categorical[0])
        except InvalidInput as error:
            raise InvalidInput(f"context: {error}") from error.__cause__
        return features
