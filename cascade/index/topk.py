"""Tie-aware comparison of a result with the exact top K.

An item counts when its score reaches the K-th best, whichever of several equal items it is:
catalogues hold items that no model tells apart, and sums that run in different orders differ in the
last bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

TIE = 1e-5  # scores nearer than this, relative to 1 or to a larger score, are equal


def reaches(scores: npt.ArrayLike, kth_best: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether scores are as good as the K-th best, up to rounding; the two broadcast."""
    threshold = np.asarray(kth_best)
    found: npt.NDArray[np.bool_] = np.asarray(scores) >= threshold - TIE * np.maximum(
        1, np.abs(threshold)
    )
    return found


def share_kept(scores: npt.NDArray[Any], reference: npt.NDArray[Any], k: int) -> float:
    """Share of the reference's top k that a result holds, mean over users with a reference; NaN if
    there are none.

    Args:
        scores: [B, S], of the items that the result holds; -inf at pads and repeats.
        reference: [B, R], of the items that it was chosen from, or of the best of them.
    """
    best = -np.sort(-reference, axis=1)[:, :k]
    wanted = (best > -np.inf).sum(1)  # [B], k unless there were fewer
    kth_best = np.take_along_axis(best, np.maximum(wanted - 1, 0)[:, None], 1)
    kth_best = np.where(wanted[:, None] > 0, kth_best, 0)
    reached = np.minimum(reaches(scores, kth_best).sum(1), wanted)
    some = wanted > 0
    return float((reached[some] / wanted[some]).mean()) if some.any() else float("nan")
