"""The files of a version folder: JSON that describes it, and large arrays that processes map.

A scoring stage's item state is a file of its own, mapped into memory, so that every process of a
machine shares one copy. ONNX Runtime maps it as external data; the torch runtimes get the mapping
and copy it to their device once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cascade.errors import CascadeError
from cascade.files import sha256
from cascade.spec import CATALOGUE_IDS, ITEM_STATE, NOT_FINITE, TASKS

Array = npt.NDArray[Any]
T = TypeVar("T")

FORMAT = 1
ONNX_FILE, TORCH_FILE, AOTI_FILE = "model.onnx", "model.pt", "model.pt2"
DESCRIPTION_FILE = "stage.json"


class ArtifactError(CascadeError, ValueError):
    """A version folder that cannot be served: files missing, damaged, or of another schema."""


def read_json(path: Path, parse: Callable[[Any], T]) -> T:
    """Read a JSON file of a release; `parse` takes its content. Raises ArtifactError if the file is
    missing, or its content is not what `parse` expects."""
    try:
        return parse(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: export again") from error
    except CascadeError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error!r}. Export again") from error


def check_format(path: Path, content: Mapping[str, Any], expected: int) -> None:
    """Raises ArtifactError if a JSON file has another format than this version reads."""
    if content["format"] != expected:
        raise ArtifactError(
            f"{path} has format {content['format']}; this version reads {expected}: export again"
        )


def check_schema(place: Path, found: str, expected: str) -> None:
    """Raises ArtifactError if files were made for another schema, by the hashes of the two."""
    if found != expected:
        raise ArtifactError(
            f"{place} was made for schema {found}, but the schema here is {expected}: export all "
            "stages together"
        )


def check_file(path: Path, nbytes: int, digest: str | None = None, content: str = "") -> None:
    """Raises ArtifactError if a file is missing, of another length, or of another sha256; the
    message names its `content`."""
    size = path.stat().st_size if path.is_file() else None
    if size != nbytes:
        what = "is missing" if size is None else f"has {size} bytes"
        raise ArtifactError(
            f"{path} {what}; {nbytes} bytes were saved{content}: export again, or restore the file"
        )
    if digest is not None and sha256(path) != digest:
        differs = f"{path} is not the file that was saved (sha256 differs)"
        raise ArtifactError(f"{differs}: export again, or restore the file")


@dataclass(frozen=True)
class Mapped:
    """A matrix in a raw little-endian file of its own, by the name of the graph's initialiser."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape))

    def check(self, folder: Path, digest: str | None = None) -> None:
        """Raises ArtifactError if the file is missing, of another length or sha256."""
        check_file(folder / self.file, self.nbytes, digest, f", {self.shape} of {self.dtype}")

    def open(self, folder: Path) -> Array:
        """Map the file. Processes share its pages; a process that writes to the array gets a copy
        of the page (torch warns of memory that it must not write to at all)."""
        if not self.nbytes:
            return np.empty(self.shape, self.dtype)  # an empty file cannot be mapped
        return np.memmap(folder / self.file, self.dtype, "c", shape=self.shape)


def mapped_from(content: Mapping[str, Any]) -> dict[str, Mapped]:
    """The mapped arrays of a JSON file, by name."""
    return {name: _mapped(value) for name, value in content["mapped"].items()}


def _mapped(value: Mapping[str, Any]) -> Mapped:
    return Mapped(value["file"], value["dtype"], tuple(value["shape"]))


def save_described(path: Path, format: int, description: Any) -> None:
    """Write a description, a dataclass with `mapped` arrays, as a JSON file."""
    path.write_text(json.dumps({"format": format, **asdict(description)}, indent=1) + "\n")


@dataclass(frozen=True)
class Description:
    """stage.json: what a version folder holds.

    Args:
        widths: the columns with which an input is served, if the graph takes any number of them:
            for runtimes that tune for shapes.
        one_by_one: model.onnx rounds a user's numbers by the largest of the whole batch, so each
            user runs alone: an answer must not depend on the other users of the batch.
        torch_state: the item state of the torch forms, where model.onnx was taken apart and reads
            another.
        counts_not_finite: behind its outputs, the graph has `cascade.spec.NOT_FINITE`; those of
            earlier versions have not.
        tasks: names of the outputs that a final score is made of (`cascade.formula`). The graph
            then has one output, `cascade.spec.TASKS` [B, K, T]; its stage makes `outputs` of that.
        keep: how many items a stage of several tasks hands on.
    """

    stage: str
    schema_hash: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    mapped: dict[str, Mapped]
    widths: dict[str, int] = field(default_factory=dict)
    one_by_one: bool = False
    torch_state: Mapped | None = None
    counts_not_finite: bool = False
    tasks: tuple[str, ...] = ()
    keep: int = 0

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        """The names of all outputs of the graph, in their order."""
        if self.tasks:
            return (TASKS,)
        return (*self.outputs, *([NOT_FINITE.name] if self.counts_not_finite else []))

    @property
    def graph_mapped(self) -> dict[str, Mapped]:
        """What model.onnx reads: one of several tasks knows no ids of items."""
        return {n: m for n, m in self.mapped.items() if not self.tasks or n != CATALOGUE_IDS}

    @property
    def torch_mapped(self) -> dict[str, Mapped]:
        """What the torch forms read, by the name of the module's buffer."""
        mapped = self.graph_mapped
        if self.torch_state is None:
            return mapped
        ids = {name: mapped[name] for name in (CATALOGUE_IDS,) if name in mapped}
        return {ITEM_STATE: self.torch_state, **ids}

    @property
    def files(self) -> list[Mapped]:
        """All mapped files of the folder."""
        return [*self.mapped.values(), *([self.torch_state] if self.torch_state else [])]

    def save(self, folder: Path) -> None:
        save_described(folder / DESCRIPTION_FILE, FORMAT, self)

    @classmethod
    def load(cls, folder: Path) -> Description:
        """Read and check a version folder. The ArtifactError says which file is missing, damaged,
        or too short."""
        path = folder / DESCRIPTION_FILE
        if not path.exists():
            raise ArtifactError(f"{folder} holds no exported stage: {path.name} is missing")

        def parse(content: Any) -> Description:
            check_format(path, content, FORMAT)
            return cls(
                stage=content["stage"],
                schema_hash=content["schema_hash"],
                inputs=tuple(content["inputs"]),
                outputs=tuple(content["outputs"]),
                mapped=mapped_from(content),
                widths={name: int(width) for name, width in content.get("widths", {}).items()},
                one_by_one=bool(content.get("one_by_one", False)),
                torch_state=_mapped(state) if (state := content.get("torch_state")) else None,
                counts_not_finite=bool(content.get("counts_not_finite", False)),
                tasks=tuple(content.get("tasks", ())),
                keep=int(content.get("keep", 0)),
            )

        found = read_json(path, parse)
        for value in found.files:
            value.check(folder)
        return found


def unloadable(path: Path, error: Exception) -> ArtifactError:
    """The error for a graph that a library could not open."""
    reason = str(error).splitlines()[0]
    return ArtifactError(f"{path} cannot be loaded ({reason}): export again, or restore the file")
