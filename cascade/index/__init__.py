"""The index over item vectors: which items have the largest inner product with a user vector.

Wraps FAISS (Douze et al., "The Faiss library", 2024, arXiv:2401.08281): sizes chosen from the
catalogue, search effort tuned to a recall target against exact search, the fastest kind found by
measurement, files that are mapped rather than read, so that all processes of a machine share one
copy.

`kinds` is the table of what can be built, `search` builds and asks, `among` asks for some of the
items only, `tuning` sets the effort, `clock` times it, `screen` and `choice` find the fastest,
`ordering` brings near items together, `files` saves and maps.
"""

from cascade.index.among import Mask, fetched
from cascade.index.candidates import Candidate, save_frontier
from cascade.index.choice import auto
from cascade.index.clock import exact_us, timing
from cascade.index.files import FACTS, FILE, FRONTIER, IndexFileError, load, save
from cascade.index.kinds import EFFORT, KINDS, Floats, Ids, Kind
from cascade.index.ordering import order, renumber
from cascade.index.search import Index, IndexFacts, build, set_threads
from cascade.index.tuning import recall_at, tune

__all__ = [
    "EFFORT",
    "FACTS",
    "FILE",
    "FRONTIER",
    "KINDS",
    "Candidate",
    "Floats",
    "Ids",
    "Index",
    "IndexFacts",
    "IndexFileError",
    "Kind",
    "Mask",
    "auto",
    "build",
    "exact_us",
    "fetched",
    "load",
    "order",
    "recall_at",
    "renumber",
    "save",
    "save_frontier",
    "set_threads",
    "timing",
    "tune",
]
