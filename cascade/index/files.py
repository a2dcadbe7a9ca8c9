"""An index on disk: written once, then mapped by every process that serves it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO

import faiss

from cascade.artifact import ArtifactError, check_file, check_schema, read_json
from cascade.config import Serving
from cascade.files import sha256
from cascade.index import exact
from cascade.index.exact import ExactIndex
from cascade.index.search import Index, IndexFacts, library

FILE, FACTS, FRONTIER = "index.faiss", "index.json", "frontier.json"
_REQUIRED = ("kind", "items", "width", "parameters", "recall", "recall_k", "note")
GPU_KINDS = ("flat", "ivf", "ivfpq")  # that FAISS has on a GPU


def save(index: Index, folder: Path, schema_hash: str) -> None:
    """Write index.faiss and index.json. A process that has the old file mapped keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    with partial.open("wb") as target:
        _write(index, target)
    file = {"bytes": partial.stat().st_size, "sha256": sha256(partial)}
    made = {"schema_hash": schema_hash, "faiss": faiss.__version__}
    os.replace(partial, folder / FILE)
    text = json.dumps({**asdict(index.facts), **made, **file}, indent=1)
    (folder / FACTS).write_text(text + "\n")


def _write(index: Index, target: BinaryIO) -> None:
    """FAISS says nothing of what a full disk did not take when it closes a file of its own."""
    failed: list[OSError] = []

    def write(block: bytes) -> int:
        try:
            return target.write(block)
        except OSError as error:
            failed.append(error)
            raise  # FAISS makes a RuntimeError of it

    try:
        library.write_index(index.raw, library.PyCallbackIOWriter(write))
    except RuntimeError:
        if failed:
            raise failed[0] from None
        raise


def load(folder: Path, schema_hash: str, *, mapped: bool = True, verify: bool = True) -> Index:
    """Open the index that `save` wrote.

    Args:
        mapped: map the file read-only, so that all processes share the pages. It holds for the
            codes of all named kinds (IO_FLAG_MMAP_IFC, FAISS 1.11 or later; IO_FLAG_MMAP maps
            inverted lists only). Fast scan reads its 4-bit codes, HNSW where its links begin.
        verify: compare the sha256: FAISS notices a short file but not a changed byte, which in a
            graph may crash the process.

    ArtifactError: missing, damaged, or made for another schema.
    """
    facts, file = read_json(folder / FACTS, _facts)
    check_schema(folder, file["schema_hash"], schema_hash)
    path = folder / FILE
    check_file(path, file["bytes"], file["sha256"] if verify else None)
    try:
        raw = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:  # FAISS's one error for all that a file can have wrong
        raise ArtifactError(f"FAISS {faiss.__version__} cannot read {path}: {error}") from error
    if (raw.ntotal, raw.d) != (facts.items, facts.width):
        raise ArtifactError(
            f"{path} holds {raw.ntotal} vectors of width {raw.d}; {FACTS} says {facts.items} of "
            f"width {facts.width}: the two files are of different exports"
        )
    return Index(raw, facts, writable=not mapped)


def _facts(saved: Any) -> tuple[IndexFacts, dict[str, Any]]:
    """index.json -> the facts, and what it says about the file beside it.

    Facts that earlier releases did not write may be missing; they keep their defaults.
    """
    known = {f.name: saved[f.name] for f in fields(IndexFacts) if f.name in saved}
    if missing := set(_REQUIRED) - set(known):
        raise KeyError(*sorted(missing))
    return IndexFacts(**known), {name: saved[name] for name in ("schema_hash", "bytes", "sha256")}


def open_index(folder: Path, schema_hash: str, serving: Serving) -> ExactIndex | Index:
    """Whichever index a version folder holds, on the device that serves it. FAISS gets the threads
    of `serving`, for the whole process.

    ArtifactError: there is no such device; or a file is missing, damaged, or made for another
    schema.
    """
    faiss.omp_set_num_threads(max(1, serving.threads))
    if exact.present(folder):
        return exact.load(folder, schema_hash, serving)
    found = load(folder, schema_hash)
    return _on_gpu(found, serving.device_id) if serving.device == "cuda" else found


def _on_gpu(found: Index, device_id: int) -> Index:
    """A FAISS index on the GPU, its vectors as float16, if FAISS has its GPU build and the kind
    exists there. There it finds at most 2048 rows."""
    count = getattr(library, "get_num_gpus", lambda: 0)()
    if not count or not hasattr(library, "index_cpu_to_gpu") or found.facts.kind not in GPU_KINDS:
        return found
    options = library.GpuClonerOptions()
    options.useFloat16 = True
    resources = library.StandardGpuResources()
    return Index(library.index_cpu_to_gpu(resources, device_id, found.raw, options), found.facts)
