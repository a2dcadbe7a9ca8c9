"""The whole of it in one command: train, export, evaluate, serve, ask, measure.

Every step is a command of its own, printed before it runs, so that each can be tried alone. What
was found goes to OUT/summary.json; models, tables and plots to OUT/synthetic, OUT/criteo or
OUT/movielens.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.client import Recommender
from cascade.server.launcher import Server
from cascade.spec import ENSEMBLE, STAGES
from cascade.stages.pipeline import Pipeline
from perf import report
from perf.commands import heading, run
from perf.measurement import Measurement
from perf.sweep import run_quick
from perf.table import latency_table, stage_table

USERS_COMPARED = 1000
USERS_PER_REQUEST = 8
SCORE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Places:
    """Where the demo keeps things."""

    out: Path

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    @property
    def repository(self) -> Path:
        return self.out / "model_repository"

    @property
    def users(self) -> Path:
        return self.checkpoints / "users.jsonl"

    @property
    def titles(self) -> Path:
        return self.checkpoints / "titles.csv"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.demo", description=__doc__)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--evaluation-users", type=int, default=100)
    args = parser.parse_args()
    places = Places(args.out / args.data.partition(":")[0])
    started = time.monotonic()
    _build(places, args.data, args.device, args.evaluation_users)
    summary = json.loads((places.out / "evaluation.json").read_text())
    release = json.loads((places.repository / ENSEMBLE / "1" / "release.json").read_text())
    summary |= {"items": release["items"], "parity_max_abs": release["parity_max_abs"]}
    with Server(places.repository, log=places.out / "server.log") as server:
        summary |= _serve(server, places)
    summary["seconds"] = round(time.monotonic() - started, 1)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    heading(f"summary ({args.out / 'summary.json'}); tables and plots are in {places.out}")
    for key, value in summary.items():
        print(f"{key:32} {value:.5g}" if isinstance(value, float) else f"{key:32} {value}")
    if not summary["server_equals_pipeline"] or summary["failed"]:
        raise SystemExit("the server did not answer as the pipeline does: see above")


def _build(places: Places, data: str, device: str, users: int) -> None:
    on = ("--device", device)
    run("cascade.training", "--data", data, "--out", places.checkpoints, *on)
    run("export", "--checkpoints", places.checkpoints, "--repository", places.repository, *on)
    run(
        "cascade.evaluation",
        *("--data", places.checkpoints / "data", "--checkpoints", places.checkpoints),
        *("--repository", places.repository, "--out", places.out, "--users", users, *on),
    )


def _serve(server: Server, places: Places) -> dict[str, Any]:
    heading(f"tritonserver answers on {server.url}")
    titles = ("--titles", places.titles) if places.titles.exists() else ()
    run("clients.recommend", "--url", server.url, "--random", 3, "--users", places.users, *titles)
    found = compare(server.url, places.repository, places.users)
    heading("perf_analyzer")
    results = places.out / "results" / "demo.jsonl"
    results.unlink(missing_ok=True)  # the demo shows its own run; perf/results keeps them all
    measured = run_quick(server.url, places.users, results, repository=places.repository)
    lines = [m.to_dict() for m in measured]
    print("\n" + latency_table(lines) + "\n\n" + stage_table(lines))
    report.write_report([results], places.out / "latency.md")
    return found | latency(measured)


def compare(url: str, repository: Path, users_file: Path) -> dict[str, Any]:
    """Ask the server for up to a thousand users, alone and several at a time, and compare with
    the same stages in this process. Equal scores may stand in any order."""
    users = [json.loads(line) for line in users_file.read_text().splitlines()[:USERS_COMPARED]]
    pipeline = Pipeline.load(repository)
    differing, largest = 0, 0.0
    with Recommender(url, deadline_s=30) as recommender:
        layout = recommender.layout()
        for start in range(0, len(users), USERS_PER_REQUEST):
            asked = users[start : start + USERS_PER_REQUEST]
            if start % (2 * USERS_PER_REQUEST):
                answers = [recommender.recommend(user) for user in asked]
            else:
                answers = recommender.recommend_many(asked)
            item_ids, scores = pipeline(*layout.arrays(asked))
            for answer, ids, score in zip(answers, item_ids, scores, strict=True):
                real = ids >= 0
                same, difference = same_list(answer.item_ids, answer.scores, ids[real], score[real])
                differing += not same
                largest = max(largest, difference)
    print(f"\nserver and pipeline: {len(users)} users, {differing} differ, scores by {largest:.1e}")
    return {
        "server_users_compared": len(users),
        "server_equals_pipeline": differing == 0,
        "server_max_abs": largest,
    }


def same_list(
    ids: np.ndarray, scores: np.ndarray, other_ids: np.ndarray, other_scores: np.ndarray
) -> tuple[bool, float]:
    """Are two top lists the same, ties aside? Also the largest difference of a score.

    The scores must agree place by place, and an item that only one list has must have the last
    score, where the other list may have cut a tie.
    """
    if len(ids) != len(other_ids):
        return False, float("inf")
    if not len(ids):
        return True, 0.0
    largest = float(np.abs(scores - other_scores).max())
    lonely = np.concatenate(
        (scores[~np.isin(ids, other_ids)], other_scores[~np.isin(other_ids, ids)])
    )
    cut = np.abs(lonely - scores[-1]).max(initial=0) <= SCORE_TOLERANCE
    return largest <= SCORE_TOLERANCE and bool(cut), largest


def latency(measured: list[Measurement]) -> dict[str, Any]:
    """What the summary says of the short runs: latency alone, and what many at once get."""
    alone, busiest = measured[0], measured[-1]
    return {
        "p50_ms": alone.latency_ms["p50_ms"],
        "p99_ms": alone.latency_ms["p99_ms"],
        "throughput": max(m.throughput for m in measured),
        "busiest": str(busiest.load),
        "p50_ms_busiest": busiest.latency_ms["p50_ms"],
        "p99_ms_busiest": busiest.latency_ms["p99_ms"],
        "mean_batch_busiest": {name: round(busiest.stages[name].mean_batch, 2) for name in STAGES},
        "failed": sum(m.failed for m in measured),
        "stable": all(m.stable for m in measured),
    }


if __name__ == "__main__":
    main()
