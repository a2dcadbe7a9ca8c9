"""Many different users as requests.

perf_analyzer's random input is one tensor sent over and over: always the same candidates, embedding
rows and cache lines. From `--input-data` it takes the rows in turn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade import pbtxt
from cascade.client.layout import Layout
from cascade.errors import CascadeError
from cascade.layout import RequestLayout
from cascade.spec import ENSEMBLE

FEW_USERS, GENERATED_USERS = 1000, 4096


class PayloadError(CascadeError, ValueError):
    """Users that cannot be turned into requests."""


@dataclass(frozen=True)
class Payload:
    """Users as they go over the wire."""

    dense: npt.NDArray[np.float32]  # [B, F_dense], NaN = missing
    categorical: npt.NDArray[np.object_]  # [B, F_cat] of bytes, empty = missing
    source: str  # file name, or `generated`; goes into the record

    def __len__(self) -> int:
        return len(self.dense)

    def rows(self, start: int, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The two tensors of `count` users from `start` on; after the last comes the first."""
        at = (start + np.arange(count)) % len(self)
        return self.dense[at], self.categorical[at]

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"source": self.source, "rows": len(self)}

    def write(self, path: Path) -> None:
        """Write perf_analyzer's input-data JSON. A missing number is sent as 0, which every
        encoding turns into the same value: with NaN the profile export would come out empty."""
        numbers = np.nan_to_num(self.dense, nan=0.0).tolist()
        rows = [
            {"dense": dense, "categorical": [value.decode() for value in values]}
            for dense, values in zip(numbers, self.categorical, strict=True)
        ]
        path.write_text(json.dumps({"data": rows}, allow_nan=False))


def layout_of(repository: Path) -> Layout:
    """What the requests of an exported repository look like. Raises PayloadError."""
    path = repository / ENSEMBLE / "config.pbtxt"
    if not path.exists():
        raise PayloadError(f"{path} is missing: {repository} is not an exported repository")
    return Layout.from_config(pbtxt.read(path))


def users(path: Path | None, request: RequestLayout) -> Payload:
    """Those of a file; without a file, generated ones."""
    return load(path, request) if path else generated(request)


def load(path: Path, request: RequestLayout) -> Payload:
    """Read users.jsonl: one JSON object of raw features by name per line; absent = missing, a bag
    is a list. Raises PayloadError: says in which line which value cannot be sent."""
    if not path.exists():
        raise PayloadError(f"{path}: there is no such file of users, one JSON object per line")
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if not lines:
        raise PayloadError(f"{path}: is empty; one JSON object of user features per line expected")
    dense, categorical = request.empty(len(lines))
    for row, line in enumerate(lines):
        try:
            request.fill(json.loads(line), dense[row], categorical[row])
        except ValueError as error:  # JSONDecodeError and InvalidInput are some
            raise PayloadError(f"{path}, line {row + 1}: {error}") from error
    return Payload(dense, categorical, path.name)


def generated(request: RequestLayout, rows: int = GENERATED_USERS, seed: int = 0) -> Payload:
    """Made-up users; a tenth of the values is missing. Their categories are in no vocabulary and
    all read the one embedding row for the unknown: kinder to the caches than real users."""
    random = np.random.default_rng(seed)
    dense, categorical = request.empty(rows)
    if request.dense:
        dense[:] = random.lognormal(1.0, 2.0, dense.shape)
        dense[random.random(dense.shape) < 0.1] = np.nan
    for column, feature in enumerate(request.categorical):
        bag = feature.multivalued
        counts = random.integers(6, size=rows) if bag else random.random(rows) >= 0.1
        for row, count in enumerate(counts.astype(int)):
            values = [f"{value:08x}" for value in random.integers(1 << 32, size=count)]
            categorical[row, column] = "|".join(values).encode()
    return Payload(dense, categorical, "generated")
