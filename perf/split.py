"""`python -m perf.split`: what taking a flat graph apart saves.

The models of Criteo's features, `dlrm:small` before `dlrm:criteo`, with drawn weights, are exported
three times as prerank and rank: `flat`, `derived` from that flat graph, and by `hand`, from the
model's own `user`, `item` and `cross`. The stages are opened as a server opens them and asked in
turn, in this process, on one thread. A ratio is the median over the rounds; times are those of the
processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cascade.artifact import Array
from cascade.config import Serving
from cascade.data.criteo import SCHEMA
from cascade.errors import run
from cascade.files import write_json
from cascade.models import build, preset
from cascade.models.embeddings import Embeddings
from cascade.models.scorer import Scorer
from cascade.schema import Schema
from cascade.spec import PRERANK, RANK, Sizes, Stage, stages
from cascade.stages.load import LoadedStage, load_stage
from clients.options import positive
from export.artifacts.stage_files import write_scoring
from export.context import Catalogue
from export.foreign import wrapper
from export.foreign.flat import flat_onnx
from export.foreign.onnx_model import Foreign, draw_users
from perf.harness.record import RESULTS, append, environment
from perf.harness.table import figures

MODELS = {PRERANK: "small", RANK: "criteo"}  # presets of the DLRM
IDS = 1000  # values of every categorical feature
CONTENDERS = ("flat", "derived", "methods")
WINDOW_S, WARM_UP = 0.25, 3
Request = tuple[Array, Array, Array]  # users' dense and ids, and their candidates


def drawn(schema: Schema, items: int) -> tuple[dict[str, Scorer], Catalogue]:
    """Models with weights wide enough that scores differ, and a catalogue."""
    torch.manual_seed(0)
    scorers = {
        stage: build("dlrm", preset("dlrm", p), schema).eval() for stage, p in MODELS.items()
    }
    for scorer in scorers.values():
        for module in scorer.modules():
            if isinstance(module, Embeddings):
                torch.nn.init.normal_(module.table.weight, std=0.3)
    random = np.random.default_rng(0)
    ids = random.integers(IDS, size=(items, schema.ids_width("item")))
    dense = np.zeros((items, schema.dense_width("item")), np.float32)
    return scorers, Catalogue(dense, ids, random.permutation(items))


def export(
    contender: str, scorer: Scorer, stage: Stage, items: Catalogue, folder: Path
) -> dict[str, Any]:
    """Write a version folder -> what the export says of it."""
    folder.mkdir(parents=True)
    if contender == "methods":
        write_scoring(scorer, stage, scorer.schema, items, folder)
        return {}
    path, mapping = folder / "foreign.onnx", folder / "foreign.json"
    write_json(mapping, flat_onnx(scorer, scorer.schema, path))
    foreign = Foreign(path, mapping, scorer.schema)
    facts, _ = wrapper.write(foreign, stage, items, folder, flat=contender == "flat")
    return facts


def requests(schema: Schema, items: int, users: int, sizes: Sizes) -> list[Request]:
    """Different ones, each of so many users."""
    random, found = np.random.default_rng(1), []
    for _ in range(64):
        rows = np.stack([random.permutation(items)[: sizes.candidates] for _ in range(users)])
        found.append((*draw_users(schema, users, random), rows))
    return found


def answer(served: Mapping[str, LoadedStage], request: Request) -> Array:
    """The request's item ids, from prerank and rank."""
    dense, ids, rows = request
    found: Array = served[RANK](dense, ids, served[PRERANK](dense, ids, rows)[0])[0]
    return found


def per_second(call: Callable[[Request], Any], asked: list[Request], start: int) -> float:
    """Requests a second of processor time, in one window."""
    call(asked[start % len(asked)])  # the first finds the data of others in the cache
    began, spent = time.thread_time(), 0.0
    for number in count(1):
        call(asked[(start + number) % len(asked)])
        spent = time.thread_time() - began
        if spent >= WINDOW_S:
            break
    return number / spent


def compare(
    served: Mapping[str, Mapping[str, LoadedStage]], asked: list[Request], rounds: int
) -> dict[str, Any]:
    """Ask all in turn -> the medians of requests a second, and of their ratios."""
    rates: dict[str, list[float]] = {name: [] for name in served}
    for number in range(WARM_UP + rounds):
        names = [*served] if number % 2 else [*served][::-1]  # none is always behind the same
        for name in names:
            rate = per_second(partial(answer, served[name]), asked, 7 * number)
            if number >= WARM_UP:
                rates[name].append(rate)
    table = {name: np.array(values) for name, values in rates.items()}
    ratios = {f"split_vs_{other}": table["derived"] / table[other] for other in ("flat", "methods")}
    return {
        **{f"{name}_per_s": float(np.median(values)) for name, values in table.items()},
        **{name: float(np.median(ratio)) for name, ratio in ratios.items()},
        "quartiles": {name: np.quantile(r, (0.25, 0.75)).tolist() for name, r in ratios.items()},
    }


def measure(folder: Path, items: int, users: list[int], rounds: int) -> list[dict[str, Any]]:
    """Export into `folder`, open and compare -> the figures for each number of users in a request,
    which are the lines of perf/results."""
    fitted = {f.name: (IDS, f.name) for f in SCHEMA.features if f.kind != "dense"}
    schema, sizes = SCHEMA.fitted(fitted), Sizes()
    scorers, catalogue = drawn(schema, items)
    work: dict[str, dict[str, int]] = {}  # multiply-adds of a stage, by what they are done for
    served: dict[str, dict[str, LoadedStage]] = {name: {} for name in CONTENDERS}
    for contender in CONTENDERS:
        for stage in stages(schema, sizes)[1:]:
            place = folder / contender / stage.name
            found = export(contender, scorers[stage.name], stage, catalogue, place)
            if contender == "derived":
                work[stage.name] = found["split"]["multiply_adds"]
            opened = load_stage(stage.name, place, Serving(threads=1), sizes.candidates)
            served[contender][stage.name] = opened
    counts = {PRERANK: sizes.candidates, RANK: sizes.survivors}
    split = sum(work[name]["candidate"] * n + work[name]["user"] for name, n in counts.items())
    flat = sum(work[name]["flat"] * n for name, n in counts.items())
    lines = []
    for number in users:
        asked = requests(schema, items, number, sizes)
        answers = {name: answer(stages_, asked[0]) for name, stages_ in served.items()}
        same = min(float(np.mean(answers["flat"] == found)) for found in answers.values())
        line = {"against": "users", "size": number, **compare(served, asked, rounds)}
        per_user = {"flat_multiply_adds": flat, "split_multiply_adds": split}
        lines.append({**line, "same_answers": same, **per_user, "items": items, "work": work})
    return lines


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.split", description=__doc__)
    add = parser.add_argument
    add("--items", type=positive, default=100_000)
    add("--users", type=positive, nargs="+", default=[1, 4], help="in a request [1 4]")
    add("--rounds", type=positive, default=31)
    add("--results", type=Path, default=RESULTS / "split-cpu.jsonl", help="lines [%(default)s]")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args.items, args.users, args.rounds)
    append(args.results, environment(configuration="split-cpu"), *found)
    frame = pd.DataFrame(found).set_index("size").select_dtypes("number")
    print(figures(frame, "users"))


if __name__ == "__main__":
    run(main, to_end=True)
