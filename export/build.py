"""One release: checkpoints in, a version of every model of the repository out."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from cascade import index, pbtxt
from cascade.artifact import Array
from cascade.config import Device, Product, Runtime, Serving
from cascade.data.parts import matrix
from cascade.encoding import Encoder
from cascade.files import write_json
from cascade.index import exact
from cascade.models.scorer import Scorer
from cascade.release import RELEASE_FILE
from cascade.spec import ENSEMBLE, PRERANK, RANK, RETRIEVE, TOPOLOGIES, Sizes, stage_path, stages
from cascade.stages import reranked
from cascade.training import checkpoint
from cascade.training.bundle import HELD_OUT_FILE
from export.artifacts import batching, filters, parity, retrieval, variants
from export.artifacts.guard import Verdict
from export.artifacts.stage_files import Catalogue, Variant, item_states, write_scoring, write_tower
from export.artifacts.variants import GUARD_USERS
from export.foreign import wrapper
from export.foreign.onnx_model import Foreign
from export.releases.manifest import seal

TUNING_USERS = 512


class Export:
    """Writes one release, stage by stage."""

    def __init__(
        self, args: argparse.Namespace, sizes: Sizes, serving: Serving, product: Product
    ) -> None:
        self.args, self.sizes, self.serving, self.product = args, sizes, serving, product
        self.encoder = Encoder.load(args.checkpoints)
        self.schema = self.encoder.schema
        self.items = read_catalogue(args.checkpoints)
        self.order = np.arange(len(self.items))  # which item of the checkpoints is in which row
        self.users = self.encoder.encode_table(
            "user", pq.read_table(args.checkpoints / "users.parquet")
        )
        self.parities: list[parity.Parity] = []
        self.verdicts: list[Verdict] = []
        self.foreign = {
            stage: (path, mapping)
            for stage, path, mapping in (
                (PRERANK, args.preranker_onnx, args.preranker_inputs),
                (RANK, args.ranker_onnx, args.inputs),
            )
            if path
        }
        for path, mapping in self.foreign.values():
            Foreign(path, mapping, self.schema)  # be told of a bad file at once

    def run(self) -> None:
        """Write everything; release.json comes last, when parity holds.

        Raises:
            ArtifactError, CheckpointError, ForeignError, GuardError, ParityError, SchemaError.
        """
        repository, version = self.args.repository, self.args.version
        manifest = repository / ENSEMBLE / str(version) / RELEASE_FILE
        manifest.unlink(missing_ok=True)
        pbtxt.write(
            repository, self.schema, self.sizes, self.serving, version, product=self.product
        )
        facts = {RETRIEVE: self._retrieve(self._folder(RETRIEVE))}
        chosen = self._judge()
        pooled = replace(self.sizes, results=max(self.sizes.results, self.product.pool))
        for stage in stages(self.schema, pooled)[1:]:
            facts[stage.name] = self._scoring(
                stage, self._folder(stage.name), chosen.get(stage.name, Variant())
            )
        self._reranking(self._folder(RANK))
        print(parity.report(self.parities))
        titles = self.args.checkpoints / "titles.csv"
        if titles.exists():
            shutil.copyfile(titles, repository / ENSEMBLE / str(version) / "titles.csv")
        release = {
            "version": version,
            "schema_hash": self.schema.hash,
            "topology": self.serving.topology,
            "serving": vars(self.serving),
            "product": vars(self.product),
            "sizes": vars(self.sizes),
            "items": len(self.items),
            "stages": facts,
            "variants": [v.to_dict() for v in self.verdicts],
            "parity": [vars(p) for p in self.parities],
            "parity_max_abs": max(p.max_abs for p in self.parities if not p.quantised),
        }
        write_json(manifest, release)
        if self.args.users_per_run is None:
            release["users_per_run"] = self._users_per_run()
            write_json(manifest, release)
        seal(repository, version, self._raw_users())
        print(f"exported release {version} of {len(self.items):,} items to {repository}")

    @property
    def _forms(self) -> tuple[set[Runtime], Device]:
        """The forms of the graphs besides ONNX, and the device that packages are compiled for."""
        return {self.serving.runtime, *self.args.also}, self.serving.device

    def _folder(self, stage: str) -> Path:
        folder: Path = self.args.repository / stage_path(
            self.serving.topology, stage, self.args.version
        )
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _retrieve(self, folder: Path) -> dict[str, Any]:
        retriever = checkpoint.load(self.args.checkpoints / RETRIEVE, self.schema)
        tower = write_tower(retriever, self.schema, folder, *self._forms)
        self.encoder.save(folder)
        self._compare(RETRIEVE, tower, folder, None)
        queries = self._vectors(retriever, TUNING_USERS)
        k = min(self.sizes.candidates, len(self.items))
        found = retrieval.write(
            retriever, self.items, queries, k, self.schema, folder, self.serving, self.args
        )
        self.order = found.order
        self.items = self.items.take(found.order)
        filtered = filters.write(
            self.args.checkpoints,
            self.encoder,
            self.items,
            self.order,
            folder,
            self.args.filter_features,
        )
        self.candidates = found.index.search(queries[:GUARD_USERS], self.sizes.candidates)
        print(f"index {found}")
        for feature, reason in filtered.left_out.items():
            print(f"no filter by {feature}: {reason}")
        file = exact.FILE if exact.present(folder) else index.FILE
        return {
            "checkpoint": RETRIEVE,
            "digest": checkpoint.digest(self.args.checkpoints / RETRIEVE),
            "index": found.facts,
            "filters": {"features": [*filtered.features], "left_out": filtered.left_out},
            "bytes_per_item": _size(folder / file, self.items),
            "metrics": _metrics(self.args.checkpoints / RETRIEVE),
        }

    def _judge(self) -> dict[str, Variant]:
        """How each scoring stage is stored."""
        if self.foreign:
            return {}
        scorers = {
            stage: checkpoint.load(self.args.checkpoints / self._source(stage), self.schema)
            for stage in (PRERANK, RANK)
        }
        places = np.empty_like(self.order)
        places[self.order] = np.arange(len(places))
        dense, ids = (values[:GUARD_USERS] for values in self.users)
        self.verdicts = variants.choose(
            Variant(self.args.state, self.args.weights),
            self.args.checkpoints / HELD_OUT_FILE,
            places,
            self.schema,
            self.sizes,
            self.items,
            scorers,
            (dense, ids),
            self.candidates,
            self.serving.device,
        )
        if self.verdicts:
            print(variants.report(self.verdicts))
        return {v.stage: v.variant for v in self.verdicts if v.chosen}

    def _reranking(self, folder: Path) -> None:
        """What chooses the list from the pool, where there is one."""
        reranked.remove(folder)
        if self.product.pool:
            retriever = checkpoint.load(self.args.checkpoints / RETRIEVE, self.schema)
            vectors = item_states(retriever, self.items, RETRIEVE)
            item_ids, results = self.items.item_ids, self.sizes.results
            reranked.save(folder, vectors, item_ids, results, self.product)

    def _source(self, stage: str) -> str:
        return str(self.args.preranker) if stage == PRERANK else RANK

    def _scoring(self, stage: Any, folder: Path, variant: Variant) -> dict[str, Any]:
        if stage.name in self.foreign:
            facts = wrapper.write(*self.foreign[stage.name], stage, self.schema, self.items, folder)
            self.parities += [parity.Parity(**p) for p in facts.pop("parity")]
            return facts
        source = self._source(stage.name)
        scorer = checkpoint.load(self.args.checkpoints / source, self.schema)
        module = write_scoring(
            scorer, stage, self.schema, self.items, folder, variant, *self._forms
        )
        quantised = variant.weights != "float32"
        self._compare(stage.name, module, folder, stage.inputs[-1].dims[0], quantised)
        return {
            "checkpoint": source,
            "digest": checkpoint.digest(self.args.checkpoints / source),
            "variant": vars(variant),
            "bytes_per_item": _size(folder / "item_state.bin", self.items),
            "metrics": _metrics(self.args.checkpoints / source),
        }

    def _compare(
        self, stage: str, module: Any, folder: Path, rows: int | None, quantised: bool = False
    ) -> None:
        """Parity at batch 1, 3 and the maximum, on real users and random rows with some pads."""
        random = np.random.default_rng(0)
        cases: parity.Cases = []
        for batch in (1, 3, self.serving.max_batch_size):
            chosen = random.integers(len(self.users[0]), size=batch)
            case = tuple(values[chosen] for values in self.users)
            if rows is not None:
                candidates = np.stack(
                    [_some_rows(random, rows, len(self.items)) for _ in range(batch)]
                )
                case = (*case, candidates)
            cases.append(case)
        self.parities += parity.compare(
            stage, module, folder, self.schema, cases, quantised, self.serving.device
        )

    def _users_per_run(self) -> dict[str, Any]:
        """Measure how many users each process should compute at once, and tell the server."""
        users, version = self._raw_users(), self.args.version
        times_us = batching.measure(self.args.repository, version, users, self.serving)
        chosen = {model: batching.best(found) for model, found in times_us.items()}
        pbtxt.write(
            self.args.repository,
            self.schema,
            self.sizes,
            self.serving,
            version,
            chosen,
            product=self.product,
        )
        for model in TOPOLOGIES[self.serving.topology]:
            found = times_us[model]
            text = ", ".join(f"{size}: {us:.0f}" for size, us in found.items())
            print(f"{model}: {chosen[model]} users per run (us per user of {text})")
        return {model: {"chosen": chosen[model], "us": found} for model, found in times_us.items()}

    def _vectors(self, retriever: Scorer, count: int) -> np.ndarray:
        dense, ids = (torch.from_numpy(values[:count]) for values in self.users)
        with torch.inference_mode():
            vectors: np.ndarray = retriever.user(dense, ids).numpy()
        return vectors

    def _raw_users(self) -> tuple[Array, Array]:
        """Users as they come over the wire: dense [B, F_dense], categorical [B, F_cat]."""
        table = pq.read_table(self.args.checkpoints / "users.parquet").slice(0, batching.USERS)
        dense = np.zeros((len(table), self.schema.dense_width("user")), np.float32)
        for column, feature in enumerate(self.schema.dense("user")):
            dense[:, column] = table[feature.name].to_numpy()
        categorical = np.full((len(table), self.schema.wire_width("user")), b"", object)
        for column, feature in enumerate(self.schema.ids("user")):
            categorical[:, column] = [(v or "").encode() for v in table[feature.name].to_pylist()]
        return dense, categorical


def read_catalogue(checkpoints: Path) -> Catalogue:
    """The encoded items of a folder of checkpoints."""
    table = pq.read_table(checkpoints / "catalogue.parquet", columns=["item_id", "dense", "ids"])
    return Catalogue(
        matrix(table["dense"]).copy(),  # Arrow's memory is read-only, and torch warns of that
        matrix(table["ids"]).astype(np.int64),
        table["item_id"].to_numpy(),
    )


def _some_rows(random: np.random.Generator, count: int, items: int) -> np.ndarray:
    """Distinct catalogue rows, the last ones replaced by pads."""
    real = min(items, int(count * 0.95))
    rows = np.full(count, -1, np.int64)
    rows[:real] = random.choice(items, real, replace=False)
    return rows


def _size(file: Path, items: Catalogue) -> float:
    return round(file.stat().st_size / max(1, len(items)), 1)


def _metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = checkpoint.describe(folder)["metrics"]
    return found
