"""What a version folder holds: stage.json, and large arrays in files that processes map.

A scoring stage's item state is a file of its own, mapped into memory, so that every process of a
machine shares one copy. ONNX Runtime maps it as external data; the torch runtimes are handed the
mapping, and move it to their device once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cascade.errors import CascadeError

Array = npt.NDArray[Any]

FORMAT = 1
ONNX_FILE, TORCH_FILE, AOTI_FILE = "model.onnx", "model.pt", "model.pt2"
DESCRIPTION_FILE = "stage.json"


class ArtifactError(CascadeError, ValueError):
    """A version folder that cannot be served: files missing, damaged, or of another schema."""


@dataclass(frozen=True)
class Mapped:
    """A matrix in a raw little-endian file of its own, by the name of the graph's initialiser."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape))

    def check(self, folder: Path) -> None:
        """Raises ArtifactError where the file is missing or of another length."""
        file = folder / self.file
        what = f"has {file.stat().st_size} bytes" if file.exists() else "is missing"
        if what != f"has {self.nbytes} bytes":
            raise ArtifactError(
                f"{file} {what}, where {self.shape} of {self.dtype} take {self.nbytes}: "
                "export again, or restore the file"
            )

    def open(self, folder: Path) -> Array:
        """Map the file. Processes share its pages; what one writes would stay its own copy (torch
        warns of memory that it may not write at all)."""
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)  # nothing cannot be mapped
        return np.memmap(folder / self.file, self.dtype, "c", shape=self.shape)


@dataclass(frozen=True)
class Description:
    """stage.json: what a version folder holds.

    Args:
        widths: the columns with which an input is served, where the graph takes any number of
            them. A runtime that tunes for shapes wants to know.
        one_by_one: model.onnx rounds a user's numbers by the largest of the whole batch, so each
            user runs alone: nobody's answer may depend on who else asks.
    """

    stage: str
    schema_hash: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    mapped: dict[str, Mapped]
    widths: dict[str, int] = field(default_factory=dict)
    one_by_one: bool = False

    def save(self, folder: Path) -> None:
        mapped = {name: vars(value) for name, value in self.mapped.items()}
        content = {"format": FORMAT, **vars(self), "mapped": mapped}
        (folder / DESCRIPTION_FILE).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Description:
        """Read and check a version folder.

        Raises:
            ArtifactError: says which file is missing, damaged, or too short.
        """
        path = folder / DESCRIPTION_FILE
        if not path.exists():
            raise ArtifactError(f"{folder} holds no exported stage: {path.name} is missing")
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise ArtifactError(f"{path} has another format than {FORMAT}: export again")
            mapped = {
                name: Mapped(value["file"], value["dtype"], tuple(value["shape"]))
                for name, value in content.pop("mapped").items()
            }
            found = cls(
                stage=content["stage"],
                schema_hash=content["schema_hash"],
                inputs=tuple(content["inputs"]),
                outputs=tuple(content["outputs"]),
                mapped=mapped,
                widths={name: int(width) for name, width in content.get("widths", {}).items()},
                one_by_one=bool(content.get("one_by_one", False)),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{path} is damaged: {error}") from error
        for value in found.mapped.values():
            value.check(folder)
        return found


def unloadable(path: Path, error: Exception) -> ArtifactError:
    """What a library said about a graph that it could not open."""
    reason = str(error).splitlines()[0]
    return ArtifactError(f"{path} cannot be loaded ({reason}): export again, or restore the file")
