"""Many different users as requests.

perf_analyzer's random input is one tensor sent over and over: always the same candidates, the same
embedding rows and the same cache lines. From `--input-data` it takes the rows one after the other,
and starts again after the last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade import pbtxt
from cascade.config import Serving
from cascade.errors import CascadeError
from cascade.layout import RequestLayout
from cascade.spec import ENSEMBLE

FEW_USERS, GENERATED_USERS = 1000, 4096


class PayloadError(CascadeError, ValueError):
    """Users that cannot be turned into requests."""


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

    def rows(self, start: int, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The two tensors of `count` users from `start` on; after the last comes the first."""
        at = (start + np.arange(count)) % len(self)
        return self.dense[at], self.categorical[at]

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"source": self.source, "rows": len(self)}

    def write(self, path: Path) -> None:
        """Write perf_analyzer's input-data JSON.

        A missing number is sent as 0, which every encoding turns into the same value as NaN, so
        that the server does the same work. NaN itself would arrive, but the profile export repeats
        each request, its JSON writer knows no NaN, and the file would come out empty.
        """
        rows = [
            {"dense": numbers, "categorical": [value.decode() for value in values]}
            for numbers, values in zip(
                np.nan_to_num(self.dense, nan=0.0).tolist(), self.categorical, strict=True
            )
        ]
        path.write_text(json.dumps({"data": rows}, allow_nan=False))


def ensemble_of(repository: Path) -> Any:
    """The ModelConfig that clients call, from its file.

    Raises:
        PayloadError: there is no such model in the repository.
    """
    path = repository / ENSEMBLE / "config.pbtxt"
    if not path.exists():
        raise PayloadError(f"{path} is missing: {repository} is not an exported repository")
    config = pbtxt.read(path)
    config.name = config.name or ENSEMBLE
    return config


def members(ensemble: Any) -> tuple[str, ...]:
    """Models that an ensemble's ModelConfig chains, in order; the model itself if it is none."""
    steps = tuple(step.model_name for step in ensemble.ensemble_scheduling.step)
    return steps or (ensemble.name,)


def configuration_name(kind: str, processes: Iterable[Serving]) -> str:
    """A name for how processes with these settings run: `ensemble-cpu`,
    `ensemble-cuda-torchscript`, ..."""
    found = list(processes)
    device = "cuda" if any(serving.device == "cuda" for serving in found) else "cpu"
    runtimes = sorted({serving.runtime for serving in found} - {"onnx"})
    return "-".join([kind, device, *runtimes])


def layout_of(repository: Path) -> RequestLayout:
    """What the requests of an exported repository look like."""
    return layout(ensemble_of(repository))


def layout(model: Any) -> RequestLayout:
    """What the requests of a model look like, from its ModelConfig.

    Raises:
        PayloadError: the model does not say it.
    """
    parameters = {key: value.string_value for key, value in model.parameters.items()}
    if "features" not in parameters:
        raise PayloadError(
            f"model {model.name} has no parameter 'features', which lists its inputs in order. "
            "Export the repository again with `python -m export`."
        )
    return RequestLayout.from_json(parameters["features"], parameters.get("layout_hash", ""))


def users(path: Path | None, request: RequestLayout) -> Payload:
    """Those of a file; without a file, generated ones."""
    return load(path, request) if path else generated(request)


def load(path: Path, request: RequestLayout) -> Payload:
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
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(request.arrays([json.loads(line)]))
        except ValueError as error:  # JSONDecodeError and InvalidInput are some
            raise PayloadError(f"{path}, line {number}: {error}") from error
    dense, categorical = (np.concatenate(part) for part in zip(*rows, strict=True))
    return Payload(dense, categorical, path.name)


def generated(request: RequestLayout, rows: int = GENERATED_USERS, seed: int = 0) -> Payload:
    """Made-up users; a tenth of the values is missing.

    Their categories are in no vocabulary, so they all read the one embedding row for the unknown:
    kinder to the caches than real users. The record says `generated`.
    """
    random = np.random.default_rng(seed)
    dense, categorical = request.arrays([{}] * rows)
    if request.dense:
        dense[:] = random.lognormal(1.0, 2.0, dense.shape)
        dense[random.random(dense.shape) < 0.1] = np.nan
    for column, feature in enumerate(request.categorical):
        for row in range(rows):
            count = (
                int(random.integers(0, 6)) if feature.multivalued else int(random.random() >= 0.1)
            )
            values = [f"{random.integers(1 << 32):08x}" for _ in range(count)]
            categorical[row, column] = "|".join(values).encode()
    return Payload(dense, categorical, "generated")
