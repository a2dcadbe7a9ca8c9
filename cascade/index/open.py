"""Opens whichever index a version folder holds, on the device that serves it."""

from __future__ import annotations

from pathlib import Path

from cascade.config import Serving
from cascade.index import exact, files
from cascade.index.exact import ExactIndex
from cascade.index.kinds import library
from cascade.index.search import Index

GPU_KINDS = ("flat", "ivf", "ivfpq")  # that FAISS has on a GPU


def open_index(folder: Path, schema_hash: str, serving: Serving) -> ExactIndex | Index:
    """The index of a version folder.

    Raises:
        ArtifactError: there is no such device; or a file is missing, damaged, or made for another
            schema.
    """
    if exact.present(folder):
        return exact.load(folder, schema_hash, serving)
    found = files.load(folder, schema_hash)
    return on_gpu(found, serving.device_id) if serving.device == "cuda" else found


def on_gpu(found: Index, device_id: int) -> Index:
    """A FAISS index on the GPU, its vectors as float16, if FAISS has its GPU build and the kind
    exists there. There it finds at most 2048 rows."""
    count = getattr(library, "get_num_gpus", lambda: 0)()
    if not count or not hasattr(library, "index_cpu_to_gpu") or found.facts.kind not in GPU_KINDS:
        return found
    options = library.GpuClonerOptions()
    options.useFloat16 = True
    resources = library.StandardGpuResources()
    return Index(library.index_cpu_to_gpu(resources, device_id, found.raw, options), found.facts)
