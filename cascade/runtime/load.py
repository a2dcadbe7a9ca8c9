"""Opens the graph of a version folder with the runtime that serves it."""

from __future__ import annotations

from pathlib import Path

from cascade.artifact import Description
from cascade.config import Serving
from cascade.runtime.graph import Graph, OneByOne
from cascade.schema import Schema


def load_graph(folder: Path, schema: Schema | None, serving: Serving) -> tuple[Description, Graph]:
    """Open a version folder's graph.

    Raises:
        ArtifactError: the folder cannot be served.
        SchemaError: the folder was exported for another schema.
    """
    description = Description.load(folder)
    if schema is not None:
        schema.check_same(description.schema_hash, str(folder))
    graph = _open(folder, description, serving)
    alone = description.one_by_one and serving.runtime not in ("torchscript", "aoti")
    return description, OneByOne(graph) if alone else graph


def _open(folder: Path, description: Description, serving: Serving) -> Graph:
    """A runtime's module is imported here, not above, because it needs its library: a server of
    ONNX files has no torch."""
    if serving.runtime == "torchscript":
        from cascade.runtime.torchscript import TorchGraph

        return TorchGraph(folder, description, serving)
    if serving.runtime == "aoti":
        from cascade.runtime.aoti import AotiGraph

        return AotiGraph(folder, description, serving)
    from cascade.runtime.onnx import OnnxGraph

    return OnnxGraph(folder, description, serving)
