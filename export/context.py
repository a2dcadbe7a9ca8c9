"""`Build`, what an export is asked for, and `Source`, the checkpoints that it reads."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cascade.artifact import Array, ArtifactError
from cascade.config import Device, Product, Runtime, Serving
from cascade.data.parts import matrix
from cascade.encoding import Encoder
from cascade.errors import CascadeError
from cascade.index import Kind
from cascade.models.scorer import Scorer
from cascade.schema import Schema
from cascade.server import shell
from cascade.spec import PRERANK, RETRIEVE, Precision, Sizes, Weights, stage_path
from cascade.training import checkpoint
from export import whole
from export.item_ids import check_kind, read_item_ids

REQUIRED = ("schema.json", "catalogue.parquet", "users.parquet")
Auto = Literal["auto"]
FOREIGN_RETRIEVER = "retriever.json"  # in the folder of a retriever that was trained elsewhere


class BuildError(CascadeError, ValueError):
    """Options of an export that contradict each other."""


@dataclass(frozen=True)
class Forms:
    """The forms in which a graph is written beside model.onnx."""

    also: Collection[Runtime] = ()  # torchscript adds model.pt, aoti adds model.pt2
    device: Device = "cpu"  # that model.pt2 is compiled for

    @property
    def torch(self) -> list[Runtime]:
        """Those that torch runs."""
        return [runtime for runtime in self.also if runtime in ("torchscript", "aoti")]


@dataclass(frozen=True)
class Build:
    """Everything that one release is built from. The flags of `python -m export build` fill it.
    Raises BuildError: the options contradict each other."""

    checkpoints: Path  # what training wrote: encoder, catalogue, users, one model per stage
    repository: Path  # the model repository to write
    version: int = 1  # number of the release in it
    preranker: str = PRERANK  # the subfolder of `checkpoints` with the preranker
    sizes: Sizes = field(default_factory=Sizes)  # how many candidates leave each stage
    serving: Serving = field(default_factory=Serving)
    product: Product = field(default_factory=Product)
    # `auto` takes the fastest kind whose recall at the candidates reaches `recall`.
    index: Kind | Literal["auto", "exact"] = "auto"
    # `index` puts items of one list side by side, `catalogue` keeps the order of the checkpoints.
    row_order: Literal["index", "catalogue"] = "index"
    retrieve_from: Path | None = None  # a repository that lends its index and its row order
    effort: int | None = None  # nprobe or efSearch in place of the lent index's own
    recall: float = 0.95
    filter_features: tuple[str, ...] | None = None  # that a request may filter by; None = all
    state: Precision | Auto = "auto"  # of the items; `export.artifacts.variants` chooses
    weights: Weights | Auto = "auto"  # of the layers, likewise
    also: tuple[Runtime, ...] = ()  # forms of the graphs beyond ONNX and what the runtime loads
    measure_batching: bool = True  # measure the best `users_per_run` of each process
    # By stage, an ONNX file and the JSON of its inputs in place of a checkpoint.
    foreign: Mapping[str, tuple[Path, Path]] = field(default_factory=dict)
    flat: bool = False  # serve these as they are: all of it for every candidate
    preranks: bool = True  # False: the ranker scores all candidates

    def __post_init__(self) -> None:
        product, sizes = self.product, self.sizes
        if not self.preranks and sizes.survivors != sizes.candidates:
            raise BuildError(
                f"without a preranker the ranker scores all candidates: {sizes.candidates} "
                f"candidates and {sizes.survivors} survivors came; leave --survivors out"
            )
        if self.foreign and self.serving.runtime not in ("onnx", "tensorrt"):
            raise BuildError("a third-party ONNX file is served by --runtime onnx or tensorrt")
        if not product.pool and (product.diversity or product.explored):
            raise BuildError("--diversity and --explored need a --pool")
        if product.pool and not sizes.results <= product.pool <= sizes.survivors:
            raise BuildError(
                f"--pool {product.pool}: expected {sizes.results} (results) to {sizes.survivors} "
                "(survivors)"
            )
        if not (0 <= product.diversity <= 1 and 0 <= product.explored <= sizes.results):
            raise BuildError("--diversity is from 0 to 1, --explored from 0 to the results")
        if product.temperature <= 0:
            raise BuildError(f"--temperature {product.temperature:g}: expected a positive number")
        if "aoti" in self.forms.also:
            _check_compiles()

    def folder(self, stage: str) -> Path:
        """The version folder of a stage, created where it is missing."""
        folder = self.repository / stage_path(self.serving.topology, stage, self.version)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def trained(self, stage: str) -> bool:
        """Whether a stage has a checkpoint of training, instead of a model from elsewhere."""
        if stage == RETRIEVE:
            return not (self.checkpoints / RETRIEVE / FOREIGN_RETRIEVER).exists()
        return stage not in self.foreign and (self.preranks or stage != PRERANK)

    def checkpoint(self, stage: str) -> str:
        """The subfolder of `checkpoints` that holds the model of a stage."""
        return self.preranker if stage == PRERANK else stage

    @property
    def forms(self) -> Forms:
        """The forms of a graph to write beside model.onnx."""
        return Forms({self.serving.runtime, *self.also}, self.serving.device)


def _check_compiles() -> None:
    """Raises BuildError: AOTInductor takes the compiler's command apart where one of its paths has
    a space."""
    spec = importlib.util.find_spec("torch")
    torch = Path(spec.origin).parent if spec and spec.origin else Path("/")
    for path, do in (
        (Path(tempfile.gettempdir()), "set TMPDIR to a folder without"),
        (torch, "make the environment in a folder without"),
    ):
        if not shell.is_safe(path):
            raise BuildError(
                f"the form aoti cannot be compiled with {path}, which has a space or another "
                f"special character: {do}, or export another form"
            )


@dataclass(frozen=True)
class Catalogue:
    """Encoded items: dense [N, F_dense], ids [N, C], item_ids int64 [N]; raw features if at hand.
    Where ids are strings, item_ids are their keys and names are the ids, large_string [N]."""

    dense: Array
    ids: Array
    item_ids: Array
    raw: pa.Table | None = None
    names: pa.Array | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Array) -> Catalogue:
        """These rows, in this order."""
        raw = None if self.raw is None else self.raw.take(rows)
        names = None if self.names is None else self.names.take(pa.array(rows))
        return Catalogue(self.dense[rows], self.ids[rows], self.item_ids[rows], raw, names)


@dataclass(frozen=True)
class Source:
    """What a folder of checkpoints holds."""

    folder: Path
    encoder: Encoder
    items: Catalogue  # in the order of the release
    order: Array  # int64 [N], the row of catalogue.parquet that is in each row of the release

    @classmethod
    def load(cls, folder: Path) -> Source:
        """Read the encoder, and the catalogue in its own order. Raises ArtifactError: no folder of
        checkpoints, or the catalogue has no valid ids; SchemaError: the vocabularies are not those
        of the schema."""
        if missing := [name for name in REQUIRED if not (folder / name).is_file()]:
            raise ArtifactError(
                f"{folder} is not a folder of checkpoints, {', '.join(missing)} missing: give the "
                "folder that python -m cascade.training wrote"
            )
        items, encoder = read_catalogue(folder), Encoder.load(folder)
        check_kind(items.names, encoder.schema, folder / "catalogue.parquet")
        whole.check_items(items, encoder.schema, folder / "catalogue.parquet")
        return cls(folder, encoder, items, np.arange(len(items)))

    @property
    def schema(self) -> Schema:
        return self.encoder.schema

    @cached_property
    def users(self) -> tuple[Array, Array]:
        """Encoded held-out users, dense [U, F_dense] and ids [U, C]."""
        return self.encoder.encode_table("user", pq.read_table(self.folder / "users.parquet"))

    @property
    def places(self) -> Array:
        """int64 [N], the row of the release that each row of catalogue.parquet is in."""
        places = np.empty_like(self.order)
        places[self.order] = np.arange(len(places))
        return places

    def ordered(self, order: Array) -> Source:
        """The same with the catalogue in another order: row i holds item `order[i]`."""
        return replace(self, items=self.items.take(order), order=self.order[order])

    def scorer(self, name: str) -> Scorer:
        """The model in a subfolder. Raises CheckpointError, SchemaError."""
        return checkpoint.load(self.folder / name, self.schema)

    def facts(self, name: str) -> dict[str, Any]:
        """What release.json says about the checkpoint in a subfolder."""
        folder = self.folder / name
        metrics = checkpoint.describe(folder).get("metrics", {})
        return {"checkpoint": name, "digest": checkpoint.digest(folder), "metrics": metrics}


def read_catalogue(checkpoints: Path) -> Catalogue:
    """The encoded items of a folder of checkpoints. Raises ArtifactError for invalid item ids."""
    path = checkpoints / "catalogue.parquet"
    table = pq.read_table(path, columns=["item_id", "dense", "ids"])
    keys, names = read_item_ids(table["item_id"], path)
    return Catalogue(
        matrix(table["dense"]).copy(),  # Arrow's memory is read-only, and torch warns of that
        matrix(table["ids"]).astype(np.int64),
        keys,
        names=names,
    )
