"""An index on disk: written once, then mapped by every process that serves it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import faiss

from cascade.errors import CascadeError
from cascade.files import sha256
from cascade.index.search import Index, IndexFacts

FILE, FACTS, FRONTIER = "index.faiss", "index.json", "frontier.json"
_REQUIRED = ("kind", "items", "width", "parameters", "recall", "recall_k", "note")


class IndexFileError(CascadeError, ValueError):
    """An index on disk that cannot be served: damaged, or made for another schema."""


def save(index: Index, folder: Path, schema_hash: str) -> None:
    """Write index.faiss and index.json. A process that has the old file mapped keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    faiss.write_index(index.raw, str(partial))
    file = {"bytes": partial.stat().st_size, "sha256": sha256(partial)}
    made = {"schema_hash": schema_hash, "faiss": faiss.__version__}
    os.replace(partial, folder / FILE)
    text = json.dumps({**asdict(index.facts), **made, **file}, indent=1)
    (folder / FACTS).write_text(text + "\n")


def load(folder: Path, schema_hash: str, *, mapped: bool = True, verify: bool = True) -> Index:
    """Open what `save` wrote.

    Args:
        mapped: map the file read-only: nothing is copied, and all processes share the pages. It
            holds for the codes of all kinds but one (IO_FLAG_MMAP_IFC, FAISS 1.11 or later; the
            older IO_FLAG_MMAP maps inverted lists only and reads flat and HNSW whole). `ivffs`
            reads its 4-bit codes; the vectors of its second look are mapped. HNSW reads the 12
            bytes per item that say where its links begin.
        verify: compare the file's sha256. FAISS itself notices a short file but not a changed
            byte, which in a graph may crash the process.

    Raises:
        IndexFileError: missing, damaged, or made for another schema.
    """
    facts, file = _read_facts(folder / FACTS)
    if file["schema_hash"] != schema_hash:
        raise IndexFileError(
            f"{folder} was made for schema {file['schema_hash']}, but the schema here is "
            f"{schema_hash}. Export all stages from one set of checkpoints."
        )
    path = folder / FILE
    size = path.stat().st_size if path.is_file() else -1
    if size != file["bytes"]:
        what = f"has {size} bytes" if size >= 0 else "is missing"
        raise IndexFileError(f"{path} {what}; {file['bytes']} bytes were saved: copy it again")
    if verify and sha256(path) != file["sha256"]:
        raise IndexFileError(
            f"{path} is not the file that was saved (sha256 differs): copy it again"
        )
    try:
        raw = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:  # FAISS's one error for all that a file can have wrong
        raise IndexFileError(f"FAISS {faiss.__version__} cannot read {path}: {error}") from error
    if (raw.ntotal, raw.d) != (facts.items, facts.width):
        raise IndexFileError(
            f"{path} holds {raw.ntotal} vectors of width {raw.d}; {FACTS} speaks of {facts.items} "
            f"of width {facts.width}: the two files are of different exports"
        )
    return Index(raw, facts, writable=not mapped)


def _read_facts(path: Path) -> tuple[IndexFacts, dict[str, Any]]:
    """index.json -> the facts, and what it says about the file beside it.

    Facts that earlier releases did not write may be missing; they keep their defaults.
    """
    try:
        saved = json.loads(path.read_text())
        known = {f.name: saved[f.name] for f in fields(IndexFacts) if f.name in saved}
        if missing := set(_REQUIRED) - set(known):
            raise KeyError(*sorted(missing))
        return IndexFacts(**known), {
            name: saved[name] for name in ("schema_hash", "bytes", "sha256")
        }
    except FileNotFoundError as error:
        raise IndexFileError(f"{path} is missing: export the index again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise IndexFileError(f"{path} does not describe an index: {error!r}") from error
