"""`python -m perf.own`: whether a team's models, as they are, answer as the team's own code does.

For every form in which a team hands models over: writes its files, exports them by one command and
the one file that describes them, and compares the answers for raw users with those of the team's
code, item by item. One form is asked over gRPC. Wrong files must be refused. Prints a table and
writes OUT/summary.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tabulate import tabulate

from cascade.client import Recommender
from cascade.errors import run
from cascade.files import write_json
from cascade.layout import RequestLayout
from cascade.server.launcher import Server
from cascade.stages.pipeline import Pipeline
from perf.harness import commands
from perf.harness.commands import heading
from perf.own import files
from perf.own.team import CANDIDATES, SURVIVORS, Team

USERS = 200
WRONG = "wrong vocabulary"
OPTIONS = (
    "--untuned", "--index", "flat", "--topology", "fused", "--instances", "1",
    "--candidates", str(CANDIDATES), "--survivors", str(SURVIVORS),
)  # fmt: skip


def main() -> int:
    """Run it; the exit code is 1 where an answer differs or a wrong file is taken."""
    parser = argparse.ArgumentParser(prog="python -m perf.own", description=main.__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("build/own"), help="[%(default)s]")
    add("--forms", nargs="+", choices=files.FORMS, default=files.FORMS, help="[all]")
    add("--users", type=int, default=USERS, help="raw users to compare [%(default)s]")
    args = parser.parse_args()
    team = Team.made()
    expected = _expected(team, args.users)
    rows: list[dict[str, Any]] = []
    for form in args.forms:
        heading(form)
        folder = args.out / form
        shutil.rmtree(folder, ignore_errors=True)
        repository = folder / "model_repository"
        _export(files.write(team, form, folder), repository)
        rows.append(
            {"form": form, **_compared(_in_process(repository, team, args.users), expected)}
        )
        if form == args.forms[0]:
            heading(f"{form}, over gRPC")
            answers = _over_grpc(repository, team, args.users)
            rows.append({"form": f"{form}, over gRPC", **_compared(answers, expected)})
    refused = _refused(args.out, args.forms[0], team)
    print(tabulate(rows, headers="keys", floatfmt="g"))
    print(f"{WRONG}: {refused['message']} (exit code {refused['code']})")
    holds = all(row["same_ten"] == 1.0 and row["score_max_abs"] <= 1e-5 for row in rows)
    summary = {
        "users": args.users,
        "forms": rows,
        "same_ten": min(row["same_ten"] for row in rows),
        "score_max_abs": max(row["score_max_abs"] for row in rows),
        "wrong_vocabulary": refused,
        "holds": holds and refused["code"] == 1,
    }
    write_json(args.out / "summary.json", summary)
    return 0 if summary["holds"] else 1


def _expected(team: Team, users: int) -> list[tuple[list[int], list[float]]]:
    """The team's own answers: item ids and scores."""
    vectors = team.vectors()[1]
    found = []
    for user in team.users[:users]:
        rows, scores = team.answer(user, vectors)
        found.append(([team.items[row]["id"] for row in rows], scores))
    return found


def _export(path: Path, repository: Path) -> None:
    words = ["--cascade", path, "--repository", repository]
    commands.run("export", "build", *words, *OPTIONS)


def _in_process(repository: Path, team: Team, users: int) -> Any:
    pipeline = Pipeline.load(repository)
    dense, categorical = RequestLayout.of(pipeline.schema).arrays(team.users[:users])
    ids, scores = pipeline(dense, categorical)
    return [*zip(ids.tolist(), scores.tolist(), strict=True)]


def _over_grpc(repository: Path, team: Team, users: int) -> Any:
    with (
        Server(repository, startup_timeout_s=60) as server,
        Recommender(server.url, deadline_s=30) as client,
    ):
        answers = client.recommend_many(team.users[:users])
        return [(answer.item_ids.tolist(), answer.scores.tolist()) for answer in answers]


def _compared(found: Any, expected: Any) -> dict[str, float]:
    """`same_ten`: the share of users with the same ten items in the same order, where neighbours
    whose scores differ by less than 1e-6 may change places; `score_max_abs`, place by place."""
    same = []
    for (ids, _), (wanted, own) in zip(found, expected, strict=True):
        known = dict(zip(wanted, own, strict=True))
        near = all(abs(known.get(i, 9) - s) <= 1e-6 for i, s in zip(ids, own, strict=True))
        same.append({*ids} == {*wanted} and near)
    mine, theirs = (np.array([scores for _, scores in side]) for side in (found, expected))
    return {"same_ten": float(np.mean(same)), "score_max_abs": float(np.abs(mine - theirs).max())}


def _refused(out: Path, form: files.Form, team: Team) -> dict[str, Any]:
    """Export with a dictionary whose rows are in another order."""
    heading(WRONG)
    folder = out / "wrong"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(out / form, folder, ignore=shutil.ignore_patterns("model_repository*"))
    values = json.loads((folder / "category.json").read_text())
    names = sorted(values)
    (folder / "category.json").write_text(json.dumps({n: i + 2 for i, n in enumerate(names)}))
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()), sort_keys=False))
    words = ["-m", "export", "build", "--cascade", path, "--repository", folder / "repository"]
    ended = subprocess.run(
        [sys.executable, *map(str, words), *OPTIONS], capture_output=True, text=True, check=False
    )
    print(ended.stderr.splitlines()[-1] if ended.stderr else "")
    return {"code": ended.returncode, "message": (ended.stderr.splitlines() or [""])[-1]}


if __name__ == "__main__":
    run(main, to_end=True)
