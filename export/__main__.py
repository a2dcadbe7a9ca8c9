"""`python -m export --checkpoints DIR --repository DIR`: checkpoints to a Triton repository."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from cascade import index
from cascade.data.parts import matrix
from cascade.encoding import Encoder
from cascade.schema import SchemaError
from cascade.serving.pipeline import RELEASE_FILE
from cascade.serving.runtime import ArtifactError
from cascade.spec import ENSEMBLE, PRERANK, RANK, RETRIEVE, Serving, Sizes, stages
from cascade.training import checkpoint
from cascade.training.checkpoint import CheckpointError
from export import config, parity, surgery
from export.foreign import Foreign
from export.foreign_inputs import ForeignError
from export.parity import ParityError
from export.stage_files import Catalogue, item_states, write_scoring, write_tower

TUNING_USERS = 512


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--version", type=int, default=1, help="release number [%(default)s]")
    parser.add_argument("--preranker", default=PRERANK, help="checkpoint to prerank with")
    parser.add_argument("--index", choices=index.KINDS, default="ivf")
    parser.add_argument("--recall", type=float, default=0.95, help="target at the candidates")
    parser.add_argument("--runtime", choices=("onnx", "torchscript"), default="onnx")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--instances", type=int, default=1, help="processes per stage")
    parser.add_argument("--max-batch-size", type=int, default=Serving.max_batch_size)
    parser.add_argument("--queue-delay-us", type=int, default=Serving.queue_delay_us)
    parser.add_argument("--max-queue-size", type=int, default=Serving.max_queue_size)
    for name, size in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--ranker-onnx", type=Path, help="rank with this flat ONNX file instead")
    parser.add_argument("--inputs", type=Path, help="its inputs, as JSON (see export/surgery.py)")
    args = parser.parse_args()
    if (args.ranker_onnx is None) != (args.inputs is None):
        parser.error("--ranker-onnx and --inputs go together")
    if args.ranker_onnx and args.runtime != "onnx":
        parser.error("--ranker-onnx is served by --runtime onnx alone")
    serving = Serving(
        instances=args.instances,
        runtime=args.runtime,
        device=args.device,
        max_batch_size=args.max_batch_size,
        queue_delay_us=args.queue_delay_us,
        max_queue_size=args.max_queue_size,
    )
    sizes = Sizes(args.candidates, args.survivors, args.results)
    Export(args, sizes, serving).run()


class Export:
    """One release, stage by stage."""

    def __init__(self, args: argparse.Namespace, sizes: Sizes, serving: Serving) -> None:
        self.args, self.sizes, self.serving = args, sizes, serving
        self.encoder = Encoder.load(args.checkpoints)
        self.schema = self.encoder.schema
        self.items = read_catalogue(args.checkpoints)
        self.users = self.encoder.encode_table(
            "user", pq.read_table(args.checkpoints / "users.parquet")
        )
        self.parities: list[parity.Parity] = []
        if args.ranker_onnx:
            Foreign(args.ranker_onnx, args.inputs, self.schema)  # be told of a bad file at once

    def run(self) -> None:
        repository, version = self.args.repository, self.args.version
        manifest = repository / ENSEMBLE / str(version) / RELEASE_FILE
        manifest.unlink(missing_ok=True)  # there is no release before parity holds
        config.write(repository, self.schema, self.sizes, self.serving, version)
        facts = {RETRIEVE: self._retrieve(self._folder(RETRIEVE))}
        for stage in stages(self.schema, self.sizes)[1:]:
            facts[stage.name] = self._scoring(stage, self._folder(stage.name))
        print(parity.report(self.parities))
        titles = self.args.checkpoints / "titles.csv"
        if titles.exists():
            shutil.copyfile(titles, repository / ENSEMBLE / str(version) / "titles.csv")
        release = {
            "version": version,
            "schema_hash": self.schema.hash,
            "sizes": vars(self.sizes),
            "items": len(self.items),
            "stages": facts,
            "parity": [vars(p) for p in self.parities],
            "parity_max_abs": max(p.max_abs for p in self.parities),
        }
        checkpoint.write_json(manifest, release)
        print(f"exported release {version} of {len(self.items):,} items to {repository}")

    def _folder(self, stage: str) -> Path:
        folder: Path = self.args.repository / stage / str(self.args.version)
        return folder

    def _retrieve(self, folder: Path) -> dict[str, Any]:
        retriever = checkpoint.load(self.args.checkpoints / RETRIEVE, self.schema)
        tower = write_tower(retriever, self.schema, folder)
        self.encoder.save(folder)
        self._compare(RETRIEVE, tower, folder, None)
        vectors = np.concatenate(list(item_states(retriever, self.items, RETRIEVE)))
        queries = self._vectors(retriever, TUNING_USERS)
        k = min(self.sizes.candidates, len(self.items))
        # Where every item is a candidate, an approximate index could only lose some.
        built = index.build(vectors, self.args.index if k < len(self.items) else "flat")
        reached = index.tune(built, vectors, queries, k, self.args.recall)
        index.save(built, folder, self.schema.hash)
        print(f"index {built.facts.kind} {built.facts.parameters}: recall@{k} {reached:.4f}")
        facts = {
            "index": vars(built.facts),
            "bytes_per_item": _size(folder / index.FILE, self.items),
        }
        return {**facts, "metrics": _metrics(self.args.checkpoints / RETRIEVE)}

    def _scoring(self, stage: Any, folder: Path) -> dict[str, Any]:
        source = self.args.preranker if stage.name == PRERANK else RANK
        if stage.name == RANK and self.args.ranker_onnx:
            facts = surgery.write(
                self.args.ranker_onnx, self.args.inputs, stage, self.schema, self.items, folder
            )
            self.parities += [parity.Parity(**p) for p in facts.pop("parity")]
            return facts
        scorer = checkpoint.load(self.args.checkpoints / source, self.schema)
        module = write_scoring(scorer, stage, self.schema, self.items, folder)
        self._compare(stage.name, module, folder, stage.inputs[-1].dims[0])
        return {
            "checkpoint": source,
            "bytes_per_item": _size(folder / "item_state.bin", self.items),
            "metrics": _metrics(self.args.checkpoints / source),
        }

    def _compare(self, stage: str, module: Any, folder: Path, rows: int | None) -> None:
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
        self.parities += parity.compare(stage, module, folder, self.schema, cases)

    def _vectors(self, retriever: Any, count: int) -> np.ndarray:
        dense, ids = (torch.from_numpy(values[:count]) for values in self.users)
        with torch.inference_mode():
            vectors: np.ndarray = retriever.user(dense, ids).numpy()
        return vectors


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


if __name__ == "__main__":
    try:
        main()
    except (ArtifactError, CheckpointError, ForeignError, ParityError, SchemaError) as error:
        sys.exit(f"error: {error}")
