"""What was built and measured on the way to a choice of index."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss

from cascade.index.files import FRONTIER
from cascade.index.kinds import RECIPES, Floats, Kind, base, list_count
from cascade.index.search import Index, build

Plan = tuple[Kind, float]  # a kind and its lists per sqrt(N); 0 where it has none


@dataclass(frozen=True)
class Candidate:
    """One measured point: a kind at one setting.

    Args:
        items: over how many it was measured; fewer than the catalogue's where a sample was enough
            to drop it. A candidate of the whole catalogue is a point of the frontier.
        recall: on other queries than those its effort was set on. For the recall that was wanted
            they are the judge: effort is added until they reach it too.
        latency_us: median of one query on one thread.
        bytes_per_item: of the file. build_s: seconds of training and adding.
        mapped: processes share all of its codes.
    """

    kind: Kind
    parameters: dict[str, int]
    items: int
    recall: float
    latency_us: float
    bytes_per_item: float
    build_s: float
    mapped: bool
    chosen: bool = False
    note: str = ""


@dataclass(frozen=True)
class Built:
    """An index, what it costs to store and what it cost to build."""

    index: Index
    bytes_per_item: float
    build_s: float

    def candidate(self, recall: float, latency_us: float, note: str = "") -> Candidate:
        """The point that it is at the setting it has now."""
        facts = self.index.facts
        return Candidate(
            facts.kind,
            facts.parameters,
            facts.items,
            round(recall, 5),
            round(latency_us, 1),
            self.bytes_per_item,
            self.build_s,
            RECIPES[facts.kind].mapped,
            note=note,
        )


def save_frontier(folder: Path, index: Index, target: float, found: Sequence[Candidate]) -> None:
    """Write frontier.json: what `auto` measured, and for what it was asked."""
    facts = index.facts
    text = {
        "items": facts.items,
        "k": facts.recall_k,
        "target": target,
        "exact_us": facts.exact_us,
        "candidates": [asdict(candidate) for candidate in found],
    }
    (folder / FRONTIER).write_text(json.dumps(text, indent=1) + "\n")


def build_all(plans: Sequence[Plan], vectors: Floats, seed: int, title: str) -> list[Built]:
    """Build the plans; those with the same lists share one k-means. Each plan's kind is affordable
    or flat in its place."""
    centroids: dict[int, Floats] = {}
    built: list[Built] = []
    for kind, density in progress(plans, title):
        began = time.monotonic()
        lists = list_count(len(vectors), density) if density else None
        shared = centroids.get(lists) if lists else None
        index = build(vectors, kind, seed=seed, lists=lists, centroids=shared)
        seconds = round(time.monotonic() - began, 1)
        inner = base(index.raw)
        if lists and "lists" in index.facts.parameters and inner.d == index.facts.width:
            centroids[lists] = inner.quantizer.reconstruct_n(0, lists)
        built.append(Built(index, round(_file_bytes(index) / len(vectors), 1), seconds))
    return built


def _file_bytes(index: Index) -> int:
    """What `save` would write, counted and not kept."""
    written = 0

    def count(block: bytes) -> None:
        nonlocal written
        written += len(block)

    library: Any = faiss  # FAISS's type stubs leave out its writers
    library.write_index(index.raw, library.PyCallbackIOWriter(count))
    return written


def progress(steps: Sequence[Any], title: str) -> Any:
    """The same steps behind a bar that goes away when they are done."""
    # Serving imports this package too, and has no need of a progress bar.
    from tqdm import tqdm

    return tqdm(steps, desc=f"index: {title}", leave=False)
