"""`python -m perf.demo`: train, export, evaluate, serve, ask and measure in one go (make demo).

Every step is a command of its own, printed before it runs, so that each can be tried alone; its
output goes to a log. The last screen shows the ten items of a user, what each stage keeps, the
latency, and where the rest is. OUT/summary.json has all figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade.client import Recommender
from cascade.errors import CascadeError
from cascade.errors import run as run_main
from cascade.release import newest_version, read_release
from cascade.server.launcher import Server
from cascade.spec import STAGES
from cascade.stages.pipeline import Pipeline
from perf.__main__ import QUICK_PLAN, sweep
from perf.contenders.wire import difference
from perf.harness.commands import count, heading, run
from perf.harness.measurement import Measurement
from perf.harness.table import latency_table, number, stage_table, table

USERS_COMPARED, USERS_PER_REQUEST = 1000, 8
SCORE_TOLERANCE = 1e-5


class DemoError(CascadeError):
    """The server does not answer as the pipeline does."""


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
    def log(self) -> Path:
        return self.out / "demo.log"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.demo", description=__doc__)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--evaluation-users", type=count, default=100)
    args = parser.parse_args(arguments)
    places, started = Places(args.out / args.data.partition(":")[0]), time.monotonic()
    places.out.mkdir(parents=True, exist_ok=True)
    places.log.unlink(missing_ok=True)
    print(f"The steps write their output to {places.log}.")
    _build(places, args.data, args.device, args.evaluation_users)
    summary = json.loads((places.out / "evaluation.json").read_text())
    release = read_release(places.repository, newest_version(places.repository))
    summary |= {key: release[key] for key in ("items", "parity_max_abs")}
    with Server(places.repository, log=places.out / "server.log") as server:
        answers, measured, compared = _ask(server, places)
    summary |= {**compared, **latency(measured)}
    summary["seconds"] = round(time.monotonic() - started, 1)
    path = args.out / "summary.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    heading(f"the demo took {summary['seconds']:.0f} s")
    print(screen(places.out, path, answers, measured, summary))
    if not summary["server_equals_pipeline"] or summary["failed"]:
        raise DemoError("the server did not answer as the pipeline does: see above")


def _build(places: Places, data: str, device: str, users: int) -> None:
    device_, log = ("--device", device), places.log
    made = ("--checkpoints", places.checkpoints, "--repository", places.repository)
    run("cascade.training", "--data", data, "--out", places.checkpoints, *device_, log=log)
    run("export", *made, *device_, "--also", "torchscript", log=log)
    judged = ("--data", places.checkpoints / "data", *made, "--out", places.out, "--users", users)
    run("cascade.evaluation", *judged, *device_, log=log)


def _ask(server: Server, places: Places) -> tuple[str, list[Measurement], dict[str, Any]]:
    """The ten items of a user as text, the short runs, and the comparison with the pipeline."""
    heading(f"tritonserver answers on {server.url}")
    titles = places.checkpoints / "titles.csv"
    named = ("--titles", titles) if titles.exists() else ()
    answers = places.out / "answers.txt"
    answers.unlink(missing_ok=True)
    asked = ("--url", server.url, "--random", 1, "--seed", 0, "--users", places.users, *named)
    run("clients.recommend", *asked, log=answers)
    heading("the same users in process")
    compared = compare(server.url, places.repository, places.users)
    heading("perf_analyzer")
    results = places.out / "results" / "demo.jsonl"
    measured = sweep(
        server.url,
        plan=QUICK_PLAN,
        users=places.users,
        results=results,
        repository=places.repository,
    )
    lines = [m.to_dict() for m in measured]
    (places.out / "latency.md").write_text(f"{latency_table(lines)}\n\n{stage_table(lines)}\n")
    text = "\n".join(answers.read_text().splitlines()[1:])  # without the command
    return text.strip(), measured, compared


def screen(
    out: Path,
    summary_file: Path,
    answers: str,
    measured: Sequence[Measurement],
    summary: dict[str, Any],
) -> str:
    """What the demo ends with: one screen."""
    rows = [
        [
            *(str(m.load), number(m.throughput)),
            *(number(m.latency_ms.get(key)) for key in ("p50_ms", "p95_ms", "p99_ms")),
            str(m.failed),
        ]
        for m in measured
    ]
    same = "all" if summary["server_equals_pipeline"] else "NOT all"
    return "\n\n".join(
        [
            answers,
            _stages(out / "evaluation.md"),
            table(["requests in flight", "users/s", "p50 ms", "p95 ms", "p99 ms", "failed"], rows),
            f"{same} of {summary['server_users_compared']} users get from the server what the "
            f"pipeline gives in process; largest difference {summary['server_max_abs']:.1e}\n"
            f"figures: {summary_file}; tables: {out}/evaluation.md, {out}/latency.md; "
            f"picture: {out}/evaluation.png; log: {out}/demo.log",
        ]
    )


def _stages(report: Path) -> str:
    """The table of the cascade's stages in the evaluation's report, with its title."""
    parts = report.read_text().split("\n\n")
    place = next(i for i, part in enumerate(parts) if part.startswith("The cascade over"))
    return "\n\n".join(parts[place : place + 2])


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
                expected = ids[ids >= 0], score[ids >= 0]
                wrong = difference((answer.item_ids, answer.scores), expected, SCORE_TOLERANCE)
                differing += wrong is not None
                if len(answer.scores) == len(expected[1]):
                    largest = max(largest, np.abs(answer.scores - expected[1]).max(initial=0.0))
    return {
        "server_users_compared": len(users),
        "server_equals_pipeline": differing == 0,
        "server_max_abs": float(largest),
    }


def latency(measured: Sequence[Measurement]) -> dict[str, Any]:
    """What the summary says of the short runs: latency alone, and with many in flight."""
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
    run_main(main)
