"""What the features of the file bring to a converted model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cascade.located import Node
from cascade.schema import Schema


@dataclass(frozen=True)
class Field:
    """A feature of ids: its columns [n, length], and the id of the pads of a bag or a sequence."""

    name: str
    length: int
    pad: int | None  # None = no list, a single id that is always looked up


@dataclass(frozen=True)
class Fields:
    """The columns of `dense`, and the features of `ids` in their order."""

    node: Node
    dense: int
    ids: list[Field]

    @classmethod
    def of(cls, node: Node, features: Mapping[str, Sequence[str]], schema: Schema) -> Fields:
        """Read `inputs`. Raises LocatedError: an input has features of the other kind, or there are
        no ids."""
        known = {feature.name: feature for feature in schema.features}
        for name in features.get("dense", ()):
            if known[name].kind != "dense":
                raise node.error(f"{name} is a {known[name].kind} feature; list it in `ids`")
        fields = []
        for name in features.get("ids", ()):
            feature = known[name]
            if feature.kind == "dense":
                raise node.error(f"{name} is a dense feature; list it in `dense`")
            pad = feature.missing_id if feature.multivalued else None
            fields.append(Field(name, feature.length, pad))
        if not fields:
            raise node.error("`ids` is missing: the features whose ids the tables look up")
        return cls(node, len(features.get("dense", ())), fields)

    def check_dense(self, wanted: int, where: str) -> None:
        """Refuse another number of dense columns than the model has."""
        if self.dense != wanted:
            raise self.node.error(
                f"`dense` has {self.dense} features; expected {wanted}, as {where} takes"
            )

    def check_ids(self, wanted: int, where: str) -> None:
        """Refuse another number of features of ids than there are tables."""
        if len(self.ids) != wanted:
            raise self.node.error(
                f"`ids` has {len(self.ids)} features ({', '.join(f.name for f in self.ids)}); "
                f"expected {wanted}, one for each of {where}, in their order"
            )
