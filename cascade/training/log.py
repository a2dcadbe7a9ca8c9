"""How the items of a log came to be in it, which decides how models learn from it."""

from __future__ import annotations

from cascade.data.dataset import Dataset
from cascade.data.source import DataError, Log

KNOWN_LOGS: dict[str, Log] = {"movielens": "choices"}  # of sources that do not say it themselves


def log_of(dataset: Dataset, log: Log | None = None) -> tuple[Log, str]:
    """How the items of the rows were chosen, and why that is thought: as `log` says, as the source
    says, as it is known for, or by whether there are rows of label 0. Raises a DataError where a
    training row is no positive, and where a log of impressions has no negative."""
    if not dataset.positives:
        raise DataError(
            f"{dataset.root}: none of the {dataset.rows('train'):,} training rows has the label 1, "
            "so there is nothing to learn; give rows that users clicked or liked"
        )
    source = source_of(dataset)
    if log is not None:
        found, why = log, "as --log says"
    elif dataset.source.get("log"):
        found, why = dataset.source["log"], "as the source says"
    elif source in KNOWN_LOGS:
        found, why = KNOWN_LOGS[source], f"as {source} is known for"
    elif dataset.has_negatives:
        found = "impressions"
        why = "because there are rows of label 0; pass --log choices where users found the items"
    else:
        found, why = "choices", "because every row is a positive"
    if found == "impressions" and not dataset.has_negatives:
        raise DataError(
            f"{dataset.root}: a log of impressions ({why}) has rows of label 0, and every training "
            "row here is a positive; pass --log choices"
        )
    return found, why


def source_of(dataset: Dataset) -> str:
    """The kind of source that a data set was made from; empty where it does not say."""
    fingerprint = dataset.source.get("fingerprint") or {}
    return str(fingerprint.get("source", ""))
