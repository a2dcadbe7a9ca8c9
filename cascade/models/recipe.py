"""Which models a cascade is made of: `model:preset` by stage."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cascade import values
from cascade.models.registry import ModelError, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Recipe:
    """The models of the three stages, and the one that rankers are compared with.

    On a command line: `retrieve=two_tower:default rank=my_package.models:Net:large`. In a file
    (TOML): `rank = "my_package.models:Net:large"`.
    """

    retrieve: str = "two_tower:default"
    prerank: str = "dlrm:small"
    rank: str = "dlrm:criteo"
    baseline: str = "logistic:default"

    def __post_init__(self) -> None:
        for stage in asdict(self):
            self.model(stage)

    def model(self, stage: str) -> tuple[str, str]:
        """The model of a stage and its preset."""
        try:
            return parse(getattr(self, stage))
        except ModelError as error:
            raise ModelError(f"recipe, {stage}: {error}") from error

    @classmethod
    def read(cls, words: Sequence[str]) -> Recipe:
        """From words `stage=model:preset` and names of files; later ones win."""
        chosen: dict[str, Any] = {}
        for word in words:
            stage, equals, model = word.partition("=")
            chosen |= {stage: model} if equals else _content(Path(word))
        stages = [field.name for field in fields(cls)]
        for stage, model in chosen.items():
            if stage not in stages:
                raise ModelError(f"recipe: {values.unknown_name('stage', stage, stages)}")
            if not isinstance(model, str):
                raise ModelError(f"recipe, {stage}: {model!r} came; expected text, model:preset")
        return cls(**chosen)


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"recipe {path} is neither stage=model:preset nor a TOML file: {error}"
        ) from error
