"""Many different users as requests, from real rows.

perf_analyzer's random input is one tensor sent over and over: always the same candidates, the same
embedding rows and the same cache lines. From `--input-data` it takes the rows one after the other,
in concurrency and in rate mode alike, and starts again after the last (seen in its profile export).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.errors import CascadeError

FEW_ROWS = 1000


class PayloadError(CascadeError, ValueError):
    """Rows that cannot be turned into requests."""


@dataclass(frozen=True)
class Features:
    """The user features in the order of the request's two tensors."""

    dense: tuple[str, ...]
    categorical: tuple[str, ...]
    bags: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Features:
        """Read the parameter `features` of the served ensemble (`cascade.layout`)."""
        value = json.loads(text)
        return cls(
            dense=tuple(value["dense"]),
            categorical=tuple(feature["name"] for feature in value["categorical"]),
            bags=frozenset(f["name"] for f in value["categorical"] if f["bag"]),
        )

    @classmethod
    def of(cls, config: Any) -> Features:
        """Read them off a ModelConfig.

        Raises:
            PayloadError: the model does not say what its requests look like.
        """
        if "features" not in config.parameters:
            raise PayloadError(
                f"model {config.name} has no parameter 'features', so nobody can tell the order of "
                "its inputs. Export the repository again with `python -m export`."
            )
        return cls.parse(config.parameters["features"].string_value)


@dataclass(frozen=True)
class Payload:
    """Users as they go over the wire.

    Args:
        dense: float32 [B, F_dense], NaN = missing.
        categorical: object [B, F_cat] of bytes, empty = missing.
        source: file name, or `generated`; goes into the record.
    """

    dense: npt.NDArray[np.float32]
    categorical: npt.NDArray[np.object_]
    source: str

    def __len__(self) -> int:
        return len(self.dense)

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"source": self.source, "rows": len(self)}

    def write(self, path: Path) -> None:
        """Write perf_analyzer's input-data JSON.

        A missing number is sent as 0, which every encoding turns into the same value as NaN, so
        that the server does the same work. NaN itself would arrive, but the profile export repeats
        each request, its JSON writer knows no NaN, and the file would come out empty.
        """
        dense = np.nan_to_num(self.dense, nan=0.0)
        rows = [
            {
                "dense": [float(number) for number in numbers],
                "categorical": [value.decode() for value in values],
            }
            for numbers, values in zip(dense, self.categorical, strict=True)
        ]
        path.write_text(json.dumps({"data": rows}, allow_nan=False))


def load(path: Path, features: Features) -> Payload:
    """Read users.jsonl: one JSON object of raw features by name per line; absent = missing, a bag
    is a list.

    Raises:
        PayloadError: says in which line which value cannot be sent.
    """
    if not path.exists():
        raise PayloadError(f"{path}: there is no such file of users, one JSON object per line")
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    if not lines:
        raise PayloadError(f"{path}: is empty; one JSON object of user features per line expected")
    users = []
    for number, line in enumerate(lines, 1):
        try:
            users.append(_user(json.loads(line), features))
        except ValueError as error:  # JSONDecodeError is one
            raise PayloadError(f"{path}, line {number}: {error}") from error
    return _payload(users, features, path.name)


def generated(features: Features, rows: int = 2000, seed: int = 0) -> Payload:
    """Users out of thin air, where there are no real ones: a tenth of the values is missing.

    Their categories are in no vocabulary, so they all read the one embedding row for the unknown:
    kinder to the caches than real users. The record says `generated`.
    """
    rng = np.random.default_rng(seed)
    width = (max(1, len(features.dense)), max(1, len(features.categorical)))
    dense = rng.lognormal(1.0, 2.0, (rows, width[0])).astype(np.float32)
    dense[rng.random(dense.shape) < 0.1] = np.nan
    categorical = np.empty((rows, width[1]), object)
    for column in range(width[1]):
        name = features.categorical[column] if features.categorical else ""
        for row in range(rows):
            count = int(rng.integers(0, 6)) if name in features.bags else int(rng.random() >= 0.1)
            members = [f"{rng.integers(1 << 32):08x}" for _ in range(count)]
            categorical[row, column] = "|".join(members).encode()
    return Payload(dense, categorical, "generated")


def _payload(
    users: Sequence[tuple[list[float], list[bytes]]], features: Features, source: str
) -> Payload:
    # A side without numbers or without categories still sends one column that nobody reads.
    dense = np.full((len(users), max(1, len(features.dense))), np.nan, np.float32)
    categorical = np.full((len(users), max(1, len(features.categorical))), b"", object)
    for row, (numbers, values) in enumerate(users):
        dense[row, : len(numbers)] = numbers
        categorical[row, : len(values)] = values
    return Payload(dense, categorical, source)


def _user(raw: Any, features: Features) -> tuple[list[float], list[bytes]]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{type(raw).__name__} came, an object of features by name is expected")
    unknown = sorted(set(raw) - set(features.dense) - set(features.categorical))
    if unknown:
        raise ValueError(f"the served model has no user feature named {', '.join(unknown)}")
    return (
        [_number(name, raw.get(name)) for name in features.dense],
        [_text(name, raw.get(name), name in features.bags) for name in features.categorical],
    )


def _number(name: str, value: Any) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or np.isinf(value):
        raise ValueError(f"feature {name}: {value!r} is not a finite number")
    return float(value)


def _text(name: str, value: Any, bag: bool) -> bytes:
    if value is None:
        return b""
    members = value if bag else [value]
    if not isinstance(members, list) or not all(isinstance(m, str) for m in members):
        raise ValueError(
            f"feature {name}: {value!r} is not {'a list of strings' if bag else 'a string'}"
        )
    return "|".join(members).encode()
