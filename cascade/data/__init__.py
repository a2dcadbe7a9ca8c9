"""Readers of raw data, and the one prepared form that all else reads."""

from cascade.data.dataset import Batch, Dataset
from cascade.data.prepare import prepare
from cascade.data.sample import distinct_users
from cascade.data.source import DataError, Split

__all__ = ["Batch", "DataError", "Dataset", "Split", "distinct_users", "prepare"]
