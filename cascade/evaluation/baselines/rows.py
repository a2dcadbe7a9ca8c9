"""Scores of (user, item) rows that no network is needed for: logistic regression and LightGBM, on
the encoded features that the models see, fitted on the training rows and tuned on validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from warnings import catch_warnings, simplefilter

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cascade.evaluation.metrics import log_loss
from cascade.schema import Feature, Schema

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]

BUCKETS = 65_536  # columns of one feature at most: ids beyond share them
MEMBERS = 256  # the same of a bag or sequence, for trees
STRENGTHS = (0.01, 0.1, 1.0)  # of logistic regression, the inverse of its L2
ROUNDS, PATIENCE = 500, 30


class Rows(NamedTuple):
    """B encoded rows: label [B], the user's dense [B, F] and ids [B, C], and those of the item."""

    label: Floats
    user_dense: Floats
    user_ids: Ids
    item_dense: Floats
    item_ids: Ids


@dataclass
class Fitted:
    """Probabilities [B] of the rows asked for, by the model's name, and why one is not there."""

    probabilities: dict[str, Floats] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fit(schema: Schema, train: Rows, validation: Rows, test: Rows) -> Fitted:
    """Fit both on `train`, choose their settings on `validation`, and score `test`. Both are left
    out, and a note says so, where the training rows have one label alone."""
    found = Fitted()
    if len(np.unique(train.label)) < 2 or len(np.unique(validation.label)) < 2:
        found.notes.append("no logistic regression and no LightGBM: the rows have one label alone")
        return found
    _logistic(found, schema, train, validation, test)
    _trees(found, schema, train, validation, test)
    return found


def _logistic(found: Fitted, schema: Schema, train: Rows, validation: Rows, test: Rows) -> None:
    x, held, asked = (one_hot(schema, rows) for rows in (train, validation, test))
    best, best_strength = np.inf, 0.0
    for strength in STRENGTHS:
        with catch_warnings():
            simplefilter("ignore", ConvergenceWarning)  # the last digits change no comparison
            model = LogisticRegression(C=strength, max_iter=200).fit(x, train.label > 0.5)
        loss = log_loss(validation.label, model.predict_proba(held)[:, 1])
        if loss < best:
            best, best_strength = loss, strength
            found.probabilities["logistic_regression"] = model.predict_proba(asked)[:, 1]
    found.notes.append(f"logistic regression: C {best_strength:g}, by validation")


def _trees(found: Fitted, schema: Schema, train: Rows, validation: Rows, test: Rows) -> None:
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: the machine has no libgomp
        found.notes.append(
            f"no LightGBM: {error}; pip install 'cascade[dev]' brings it, and apt-get install "
            "libgomp1 what it needs"
        )
        return
    x, categories = columns(schema, train)
    held, asked = (columns(schema, rows)[0] for rows in (validation, test))
    settings = {
        "objective": "binary",
        "learning_rate": 0.05,
        "min_data_in_leaf": 20,
        "seed": 0,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(x, train.label, categorical_feature=categories)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    watched = [data.create_valid(held, validation.label)]
    model = lightgbm.train(settings, data, ROUNDS, watched, callbacks=[stop])
    found.notes.append(f"LightGBM: {model.best_iteration} trees, by validation")
    found.probabilities["lightgbm"] = np.asarray(model.predict(asked))


def one_hot(schema: Schema, rows: Rows) -> sp.csr_matrix:
    """[B, M]: the numbers, and a column for every id of every feature; the distinct members of a
    bag or sequence share 1 among them, as the models see their mean."""
    parts = [*_numbers(rows)]
    for feature, ids in _features(schema, rows):
        members = _members(feature, ids, min(feature.cardinality, BUCKETS))
        parts.append(sp.diags(1 / np.maximum(1, members.getnnz(axis=1))) @ members)
    return sp.hstack(parts, format="csr")


def columns(schema: Schema, rows: Rows) -> tuple[sp.csr_matrix, list[int]]:
    """[B, M] and which columns are categories: the numbers, the id of a single value, and a column
    for each member of a bag or sequence."""
    parts, categories = [*_numbers(rows)], []
    width = sum(part.shape[1] for part in parts)
    for feature, ids in _features(schema, rows):
        if feature.multivalued:
            parts.append(_members(feature, ids, min(feature.cardinality, MEMBERS)))
        else:
            categories.append(width)
            parts.append(sp.csr_matrix(ids.astype(np.float64)))
        width += parts[-1].shape[1]
    return sp.hstack(parts, format="csr"), categories


def _numbers(rows: Rows) -> Iterator[sp.csr_matrix]:
    for dense in (rows.user_dense, rows.item_dense):
        yield sp.csr_matrix(dense.astype(np.float64))


def _features(schema: Schema, rows: Rows) -> Iterator[tuple[Feature, Ids]]:
    for side, ids in (("user", rows.user_ids), ("item", rows.item_ids)):
        for feature in schema.ids(side):  # type: ignore[arg-type]
            first = schema.first_column(feature)
            yield feature, ids[:, first : first + feature.length]


def _members(feature: Feature, ids: Ids, width: int) -> sp.csr_matrix:
    """[B, width], 1 at the ids of a row; the pads of a list have no place."""
    line = np.repeat(np.arange(len(ids)), ids.shape[1])
    flat = ids.ravel()
    there = flat != feature.missing_id if feature.multivalued else np.ones(len(flat), np.bool_)
    places = (line[there], flat[there] % width)
    found = sp.csr_matrix((np.ones(int(there.sum())), places), (len(ids), width))
    found.sum_duplicates()
    found.data[:] = 1
    return found
