"""Judges cheaper ways of storing a scoring stage: is one good enough, and is it faster? Each is
exported as it would be served, over only the catalogue rows that the comparison needs, and judged
against float32 on users and clicks that no model was trained on: by the AUC that it loses, and by
how many of the cascade's ten best items it still finds."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from cascade.artifact import Array, ArtifactError, Description, Mapped
from cascade.config import Serving
from cascade.data.parts import matrix
from cascade.formula import Formula
from cascade.index.topk import reaches
from cascade.models.scorer import Scorer
from cascade.runtime.load import Graph, load_graph
from cascade.schema import Schema
from cascade.spec import ITEM_STATE, PRERANK, RANK, TASKS, Sizes
from cascade.stages.tasks import LOWEST
from export import whole
from export.artifacts import onnx_file
from export.artifacts.graphs import CandidateLogits, CandidateTasks, outputs, several
from export.artifacts.stage_files import PLAIN, Variant, example_users, write_item_state
from export.context import Catalogue

LARGEST_AUC_LOSS = 1e-4
LEAST_OVERLAP = 0.99
HELD_OUT_ROWS = 20_000
ROWS_AT_ONCE = 2_000
TIMED_ROUNDS, TIMED_USERS = 40, 4


@dataclass(frozen=True)
class Verdict:
    """One variant of one stage."""

    stage: str
    variant: Variant
    auc_loss: float  # AUC of float32 minus its own, on held-out rows
    overlap: float  # share of the float32 cascade's ten best that the cascade with it still finds
    latency_us: float  # of its graph per user, median, on requests of several users
    bytes_per_item: int  # of its item state
    chosen: bool = False

    @property
    def passed(self) -> bool:
        return self.auc_loss <= LARGEST_AUC_LOSS and self.overlap >= LEAST_OVERLAP

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True)
class HeldOut:
    """Labelled rows: encoded users, catalogue rows [n], labels [n]."""

    users: tuple[Array, Array]
    items: Array
    labels: Array

    @classmethod
    def load(cls, path: Path, places: Array, schema: Schema | None = None) -> HeldOut:
        """Read the first rows of held_out.parquet; `places` [N] says where its items are now.
        Raises ArtifactError: a row, read or not, cannot be judged by."""
        table = pq.read_table(path)
        users = matrix(table["user_dense"]).copy(), matrix(table["user_ids"]).astype(np.int64)
        item, label = (table[name].to_numpy() for name in ("item", "label"))
        if schema is not None:
            whole.check_held_out(users, schema, item, label, len(places), path)
        some = slice(0, HELD_OUT_ROWS)
        return cls((users[0][some], users[1][some]), places[item[some]], label[some])


class Apart(Protocol):
    """A model of which the graph is not traced, but derived."""

    def write(
        self, items: Catalogue, folder: Path, variant: Variant, logits: bool
    ) -> dict[str, Mapped]:
        """Write a version folder, whose graph gives the logits [B, K] of all candidates -> the item
        states in it."""


class Guard:
    """Judges variants of the preranker and of the ranker of one release, for encoded users [U, ...]
    and the rows [U, K] of the catalogue `items` that retrieval found for them; `apart` has the
    stages whose models were taken apart. A model of several tasks is judged by the score that its
    stage's formula makes of them, or by the first."""

    def __init__(
        self,
        schema: Schema,
        sizes: Sizes,
        items: Catalogue,
        scorers: dict[str, Scorer],
        held_out: HeldOut,
        users: tuple[Array, Array],
        candidates: Array,
        apart: Mapping[str, Apart],
        formulas: Mapping[str, Formula | None] | None = None,
    ) -> None:
        self.apart, self.formulas = apart, formulas or {}
        self.schema, self.sizes, self.scorers, self.users = schema, sizes, scorers, users
        used = np.concatenate((candidates.ravel(), held_out.items))
        rows, places = np.unique(used, return_inverse=True)
        pads = int(rows[0] < 0)
        self.items = items.take(rows[pads:])
        places = places.reshape(-1) - pads  # so that a pad is -1 again
        self.candidates = places[: candidates.size].reshape(candidates.shape)
        self.held_out = HeldOut(held_out.users, places[candidates.size :], held_out.labels)
        self.logits = {name: self._eager(name) for name in (PRERANK, RANK)}
        self.survivors = _best(self.logits[PRERANK], sizes.survivors)  # [U, S], places in a row
        self.worst = self._ranked(self.survivors)[:, -1]
        self._preranked: dict[Variant, Array] = {}
        self._made: dict[tuple[str, Variant], tuple[Graph, int, float]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="guard-")

    def judge(self, stage: str, variants: list[Variant]) -> list[Verdict]:
        """Export, ask and time each of the variants; float32 goes first, as the yardstick."""
        made, verdicts = {}, []
        unique = dict.fromkeys([PLAIN, *variants])
        for variant in tqdm(unique, desc=f"variants of {stage}", leave=False):
            if (stage, variant) not in self._made:
                try:
                    graph, size = self._export(stage, variant)
                except whole.NotHeld:
                    verdicts.append(Verdict(stage, variant, np.inf, 0.0, np.inf, 0))
                    continue
                self._made[stage, variant] = graph, size, self._auc_of(graph)
            made[variant] = self._made[stage, variant]
        latency_us = self._time(stage, {v: graph for v, (graph, *_) in made.items()})
        expected, found = made[PLAIN][-1], verdicts
        for variant, (graph, bytes_per_item, found_auc) in made.items():
            loss, overlap = expected - found_auc, self._overlap(stage, variant, graph)
            took_us = latency_us[variant]
            found.append(Verdict(stage, variant, loss, overlap, took_us, bytes_per_item))
        return found

    def adopt(self, variant: Variant) -> None:
        """From now on judge the ranker behind this preranker, because losses add up."""
        self.survivors = self._preranked[variant]

    def _export(self, stage: str, variant: Variant) -> tuple[Graph, int]:
        """-> the graph and the bytes of an item's state. int8 begins with the trace of float32."""
        folder = Path(self._folder.name) / f"{stage}, {variant}"
        if stage in self.apart:
            folder.mkdir()
            states = self.apart[stage].write(self.items, folder, variant, logits=True)
            size = sum(mapped.nbytes for mapped in states.values())
        else:
            size = self._trace(stage, variant, folder)
        graph = load_graph(folder, self.schema, Serving(threads=1))[1]
        if several(self.scorers[stage]):
            graph = self._scored(stage, graph)
        return graph, size // max(1, len(self.items))

    def _trace(self, stage: str, variant: Variant, folder: Path) -> int:
        """Write a variant of a model that gives its own states -> the bytes of all of these."""
        traced = replace(variant, weights="float32") if variant.weights == "int8" else variant
        trace = Path(self._folder.name) / f"{stage}, {traced}, traced"
        width = self._rows(stage).shape[1]
        scorer = variant.applied(self.scorers[stage])
        tasks = several(scorer)
        module = (CandidateTasks if tasks else CandidateLogits)(scorer, variant.state)
        example = example_users(self.schema, width)
        tensors, alone = (tuple(example), (TASKS if tasks else "logits",)), variant.one_by_one
        description = Description(stage, self.schema.hash, *tensors, {}, one_by_one=alone)
        if not trace.exists():
            trace.mkdir()
            onnx_file.trace_stage(module, example, description, trace)
        shutil.copytree(trace, folder)
        mapped = write_item_state(scorer, self.items, folder, stage, variant.state)
        description = replace(description, mapped={ITEM_STATE: mapped})
        onnx_file.finish(module, description, folder, variant.weights)
        description.save(folder)
        return mapped.nbytes

    def _rows(self, stage: str) -> Array:
        """The candidates of the stage, [U, K] or [U, S] rows of the small catalogue."""
        if stage == PRERANK:
            return self.candidates
        return np.take_along_axis(self.candidates, self.survivors, 1)

    def _eager(self, stage: str) -> Array:
        """The trained model's logits of all candidates, [U, K]."""
        found, scorer = [], self.scorers[stage]
        with torch.inference_mode():
            for user, rows in enumerate(self.candidates):
                dense, ids = (torch.from_numpy(x[user : user + 1]) for x in self.users)
                real = np.maximum(rows, 0)
                items = (torch.from_numpy(x[real]) for x in (self.items.dense, self.items.ids))
                given = outputs(scorer, scorer.user(dense, ids), scorer.item(*items)[None])
                if not given.isfinite().all():
                    raise ArtifactError(f"{stage}: the model gives scores that are not finite")
                logits = self._score(stage, given.numpy())[0]
                found.append(np.where(rows < 0, -np.inf, logits))
        return np.stack(found)

    def _score(self, stage: str, given: Array) -> Array:
        """Logits [B, K], or tasks [B, K, T] -> what items are ordered by, [B, K]."""
        if given.ndim == 2:
            return given
        formula = self.formulas.get(stage)
        if formula is None:
            return given[:, :, 0]
        names = several(self.scorers[stage])
        scores = formula(dict(zip(names, np.moveaxis(given, 2, 0), strict=True)))
        return np.where(np.isfinite(scores), scores, np.float32(LOWEST))

    def _scored(self, stage: str, graph: Graph) -> Graph:
        """A graph of tasks -> one of what items are ordered by, [B, K]; -inf for a pad."""

        def run(*inputs: Array) -> list[Array]:
            scores = self._score(stage, graph(*inputs)[0])
            return [np.where(inputs[-1] < 0, np.float32(-np.inf), scores)]

        return run

    def _ranked(self, places: Array) -> Array:
        """The ranker's own logits of the results that come of these survivors, best first."""
        logits = np.take_along_axis(self.logits[RANK], places, 1)
        return -np.sort(-logits, axis=1)[:, : self.sizes.results]

    def _overlap(self, stage: str, variant: Variant, graph: Graph) -> float:
        """A result counts where the ranker scores it as high as the tenth best, so ties count."""
        answers = (
            graph(*(x[u : u + 1] for x in self.users), rows[None])[0]
            for u, rows in enumerate(self._rows(stage))
        )
        logits = np.concatenate([*answers])
        if stage == PRERANK:
            self._preranked[variant] = _best(logits, self.sizes.survivors)
            found = self._ranked(self._preranked[variant])
        else:
            places = np.take_along_axis(self.survivors, _best(logits, self.sizes.results), 1)
            found = np.take_along_axis(self.logits[RANK], places, 1)
        real = np.isfinite(found)
        return float(reaches(found, self.worst[:, None])[real].mean()) if real.any() else 1.0

    def _auc_of(self, graph: Graph) -> float:
        """Each held-out row is a candidate twice, because a graph takes two or more."""
        from cascade.evaluation.metrics import auc  # scikit-learn takes a second to import

        logits = []
        for start in range(0, len(self.held_out.items), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            items = self.held_out.items[part]
            users = (x[part] for x in self.held_out.users)
            logits.append(graph(*users, np.stack((items, items), axis=1))[0][:, 0])
        scores = np.concatenate(logits)
        return auc(self.held_out.labels, scores) if np.isfinite(scores).all() else -np.inf

    def _time(self, stage: str, graphs: dict[Variant, Graph]) -> dict[Variant, float]:
        rows = np.sort(self._rows(stage), axis=1)
        times: dict[Variant, list[int]] = {variant: [] for variant in graphs}
        for turn in range(TIMED_ROUNDS):
            some = np.arange(turn * TIMED_USERS, (turn + 1) * TIMED_USERS) % len(rows)
            case = (*(x[some] for x in self.users), rows[some])
            for variant, graph in graphs.items():
                start = time.perf_counter_ns()
                graph(*case)
                times[variant].append(time.perf_counter_ns() - start)
        return {v: float(np.median(t)) / 1e3 / TIMED_USERS for v, t in times.items()}


def _best(logits: Array, keep: int) -> Array:
    """[U, K] -> the places of the largest, [U, keep]."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :keep]
