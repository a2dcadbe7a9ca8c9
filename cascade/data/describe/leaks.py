"""Features that give the label away, which a model would rely on and never see when it serves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cascade.schema import Feature

SEEN = 5  # a value in fewer rows may have one label by chance
SORTED = 0.9999  # AUC of a number that orders the rows by their label


def leak(feature: Feature, column: pa.ChunkedArray, label: npt.NDArray[np.float32]) -> str | None:
    """How a feature [B] gives the label [B] away, None where it does not."""
    column = column.combine_chunks()
    if not 0 < label.mean() < 1:
        return None
    missing = np.asarray(pc.is_null(column).to_numpy(zero_copy_only=False))
    if feature.kind == "dense":
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        missing = missing | np.isnan(numbers)
        if np.array_equal(np.nan_to_num(numbers), label) and not missing.any():
            return "equals the label"
        if _sorted(numbers[~missing], label[~missing]):
            return "orders the rows by their label"
    else:
        text = pc.fill_null(column.cast(pa.string()), "")
        missing = missing | np.asarray(pc.equal(text, "").to_numpy(zero_copy_only=False))
        if text.to_pylist() == [str(int(value)) for value in label]:
            return "equals the label"
        codes = text.dictionary_encode().indices.to_numpy()
        if _pure(codes, label):
            return "determines the label"
    if _pure(missing.astype(np.int64), label):
        return "is missing in the rows of one label only"
    return None


def _pure(codes: npt.NDArray[Any], label: npt.NDArray[np.float32]) -> bool:
    """Whether every value that is seen often has one label, and both labels occur."""
    rows = np.bincount(codes)
    positives = np.bincount(codes, weights=label)
    often = rows >= SEEN
    if rows[often].sum() < len(label) / 2:
        return False
    all_positive = positives[often] == rows[often]
    no_positive = positives[often] == 0
    return bool((all_positive | no_positive).all() and all_positive.any() and no_positive.any())


def _sorted(numbers: npt.NDArray[np.float64], label: npt.NDArray[np.float32]) -> bool:
    """Whether the numbers of one label lie above those of the other, by AUC."""
    positives = int(label.sum())
    negatives = len(label) - positives
    if min(positives, negatives) < SEEN:
        return False
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    rank = (ends - (counts - 1) / 2)[place]  # the mean rank of equal numbers
    auc = (rank[label > 0].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return bool(max(auc, 1 - auc) > SORTED)
