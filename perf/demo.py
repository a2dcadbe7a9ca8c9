"""`python -m perf.demo`: train, export, evaluate, plan, serve, ask and measure (make demo).

Every step is a command of its own, printed before it runs; its output goes to a log. The last
screen shows the ten items of a user, what each stage keeps, the latency, what planned sizes would
save, and where the rest is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cascade.client import Recommender
from cascade.errors import CascadeError
from cascade.errors import run as run_main
from cascade.files import write_json
from cascade.item_keys import as_keys
from cascade.release import newest_version, read_release
from cascade.server.launcher import Server
from cascade.spec import STAGES
from cascade.stages.pipeline import Pipeline
from clients.options import positive
from perf.__main__ import QUICK, sweep
from perf.contenders.servers import difference
from perf.harness.commands import heading, run
from perf.harness.measurement import Measurement
from perf.harness.table import latency_table, number, stage_table, table

USERS_COMPARED, USERS_PER_REQUEST = 1000, 8
KEEP = 0.95  # of the ranker's ten best, by the sizes that are planned
# A part of what a plan tries, in half of the time.
TRIED = ("--try-candidates", 100, 200, 500, 1000, "--try-survivors", 20, 50, 200)
SCORE_TOLERANCE = 1e-5


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.demo", description=__doc__)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--schema", type=Path, help="what the columns of --data table are")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--evaluation-users", type=positive, default=50)
    args = parser.parse_args(arguments)
    out, started = args.out / args.data.partition(":")[0], time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    checkpoints, repository, log = out / "checkpoints", out / "model_repository", out / "demo.log"
    log.unlink(missing_ok=True)
    print(f"The steps write their output to {log}.")
    device = ("--device", args.device)
    schema = ("--schema", args.schema) if args.schema else ()
    asked = ("--data", args.data, *schema, "--out", checkpoints, "--no-baseline", *device)
    run("cascade.training", *asked, log=log)
    made = ("--checkpoints", checkpoints, "--repository", repository, *device)
    run("export", *made, "--also", "torchscript", log=log)
    judged = ("--data", checkpoints / "data", "--out", out, "--users", args.evaluation_users)
    run("cascade.evaluation", *judged, *made, log=log)
    planned = ("--checkpoints", checkpoints, "--out", out, "--keep", KEEP, *TRIED, *device)
    run("export", "plan", *planned, log=log)
    plan = json.loads((out / "plan.json").read_text())
    release = read_release(repository, newest_version(repository))
    with Server(repository, log=out / "server.log") as server:
        heading(f"tritonserver answers on {server.url}")
        answers, measured, compared = _ask(server.url, out)
    summary = {
        **json.loads((out / "evaluation.json").read_text()),
        **{key: release[key] for key in ("items", "parity_max_abs")},
        **{**compared, **latency(measured), **saved(plan)},
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(args.out / "summary.json", summary)
    heading(f"the demo took {summary['seconds']:.0f} s")
    print(screen(out, args.out / "summary.json", answers, measured, summary))
    if not summary["server_equals_pipeline"] or summary["failed"]:
        raise CascadeError("the server did not answer as the pipeline does: see above")


def _ask(url: str, out: Path) -> tuple[str, list[Measurement], dict[str, Any]]:
    """The ten items of a user as text, the short runs, and the comparison with the pipeline."""
    checkpoints, repository = out / "checkpoints", out / "model_repository"
    users, titles = checkpoints / "users.jsonl", checkpoints / "titles.csv"
    answers = out / "answers.txt"
    named = ("--titles", titles) if titles.exists() else ()
    answers.unlink(missing_ok=True)
    asked = ("--url", url, "--random", 1, "--seed", 0, "--users", users, *named)
    run("clients.recommend", *asked, log=answers)
    heading("the same users in process")
    compared = compare(url, repository, users)
    heading("perf_analyzer")
    results = out / "results" / "demo.jsonl"
    measured = sweep(url, plan=QUICK, users=users, results=results, repository=repository)
    lines = [m.to_dict() for m in measured]
    (out / "latency.md").write_text(f"{latency_table(lines)}\n\n{stage_table(lines)}\n")
    text = answers.read_text().partition("\n")[2]  # without the command
    return text.strip(), measured, compared


def screen(
    out: Path, file: Path, answers: str, measured: Sequence[Measurement], summary: dict[str, Any]
) -> str:
    """What the demo ends with: one screen, which names the file of the summary."""
    rows = []
    for m in measured:
        latencies = [number(m.latency_ms.get(key)) for key in ("p50_ms", "p95_ms", "p99_ms")]
        rows.append([str(m.load), number(m.throughput), *latencies, str(m.failed)])
    parts = (out / "evaluation.md").read_text().split("\n\n")
    place = next(i for i, part in enumerate(parts) if part.startswith("The cascade over"))
    same = "all" if summary["server_equals_pipeline"] else "NOT all"
    warnings = "\n".join(f"WARNING: {text}" for text in summary["warnings"])
    return "\n\n".join(
        [
            answers,
            *parts[place : place + 2],  # the table of the stages, with its title
            *([warnings] if warnings else []),
            table(["requests in flight", "users/s", "p50 ms", "p95 ms", "p99 ms", "failed"], rows),
            summary["plan"],
            f"{same} of {summary['server_users_compared']} users get from the server what the "
            f"pipeline gives in process; largest difference {summary['server_max_abs']:.1e}\n"
            f"figures: {file}; tables: {out}/evaluation.md, {out}/latency.md; "
            f"pictures: {out}/evaluation.png, {out}/plan.png; log: {out}/demo.log",
        ]
    )


def compare(url: str, repository: Path, users_file: Path) -> dict[str, Any]:
    """Compare the server's answers, alone and several at a time, with those of this process."""
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
                real = as_keys(ids) >= 0
                expected = ids[real], score[real]
                wrong = difference((answer.item_ids, answer.scores), expected, SCORE_TOLERANCE)
                differing += wrong is not None
                if len(answer.scores) == len(expected[1]):
                    largest = max(largest, np.abs(answer.scores - expected[1]).max(initial=0.0))
    return {
        "server_users_compared": len(users),
        "server_equals_pipeline": differing == 0,
        "server_max_abs": float(largest),
    }


def saved(plan: dict[str, Any]) -> dict[str, Any]:
    """What the summary says of a plan.json: the planned sizes beside those that are served."""
    sizes = [
        f"{point['candidates']} → {point['survivors']} → {plan['results']}"
        for point in (plan["chosen"], plan["default"])
    ]
    kept = [plan[name]["kept"] for name in ("chosen", "default")]
    alone, many = (plan["speedup"][users]["speedup"] for users in ("1", "16"))
    words = (
        f"sizes: {sizes[0]} in place of {sizes[1]} keep {kept[0]:.3f} of the ranker's ten best "
        f"({kept[1]:.3f}) and answer {alone:.2f} times as many requests/s, of 16 users at once "
        f"{many:.2f} times (python -m export build --sizes auto)"
    )
    if not plan["reached"]:
        words = f"sizes: none that was tried keeps {plan['keep']:g} of the ranker's ten best"
    return {"plan": words, "plan_kept": kept[0], "plan_speedup": many, "plan_speedup_alone": alone}


def latency(measured: Sequence[Measurement]) -> dict[str, Any]:
    """What the summary says of the short runs: latency alone, and with many in flight."""
    alone, busiest, keys = measured[0], measured[-1], ("p50_ms", "p99_ms")
    return {
        **{key: alone.latency_ms[key] for key in keys},
        **{f"{key}_busiest": busiest.latency_ms[key] for key in keys},
        "throughput": max(m.throughput for m in measured),
        "busiest": str(busiest.load),
        "mean_batch_busiest": {name: round(busiest.stages[name].mean_batch, 2) for name in STAGES},
        "failed": sum(m.failed for m in measured),
        "stable": all(m.stable for m in measured),
    }


if __name__ == "__main__":
    run_main(main, to_end=True)
