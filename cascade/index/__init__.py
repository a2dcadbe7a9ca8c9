"""The index over item vectors: which items have the largest inner product with a user vector.

Wraps FAISS (Douze et al., "The Faiss library", 2024, arXiv:2401.08281): sizes follow from the
catalogue, the search effort is tuned to a recall target against exact search, the fastest kind is
found by measurement, and files are mapped, so that all processes of a machine share one copy.
`cascade.index.exact` searches without FAISS.
"""

from cascade.index.choice import Candidate, auto, save_frontier
from cascade.index.files import FACTS, FILE, FRONTIER, load, save
from cascade.index.kinds import KINDS, IndexKindError, build
from cascade.index.rows import RefreshError, order, refresh, renumber
from cascade.index.search import Floats, Ids, Index, Kind, Mask, adopt
from cascade.index.tuning import recall_at, timing, tune

__all__ = [
    "FACTS",
    "FILE",
    "FRONTIER",
    "KINDS",
    "Candidate",
    "Floats",
    "Ids",
    "Index",
    "IndexKindError",
    "Kind",
    "Mask",
    "RefreshError",
    "adopt",
    "auto",
    "build",
    "load",
    "order",
    "recall_at",
    "refresh",
    "renumber",
    "save",
    "save_frontier",
    "timing",
    "tune",
]
