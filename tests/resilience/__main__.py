"""`python -m tests.resilience --out DIR`: releases, faults, filters on the real server.

Each case prints a table of what it did and saw; OUT/summary.json has the figures. Ends with an
error where something was lost or wrong; figures of time are reported and do not fail it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from perf import record
from perf.claims import RESILIENCE, verdicts
from perf.commands import heading
from tests.resilience import catalogue, faults, filters, releases, soak, users
from tests.resilience.stock import Stock

CASES = {
    "releases": releases.run,
    "catalogue": catalogue.run,
    "users": users.run,
    "filters": filters.run,
    "faults": faults.run,
    "soak": soak.run,
}
RESULTS_FILE = "resilience-cpu.jsonl"
MUST_HOLD = ("=",)  # what is lost or wrong; a time may have an excuse


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.resilience", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/resilience"))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--thorough", action="store_true", help="a large catalogue, long runs")
    parser.add_argument(
        "--seconds", type=float, default=20, help="of malformed requests, and of the soak [20]"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "summary.json"
    summary = json.loads(path.read_text()) if path.exists() else {}
    folder = args.out / "work"
    shutil.rmtree(folder, ignore_errors=True)
    stock = Stock(folder / "stock", args.thorough, args.seconds)
    for name in args.cases:
        began = time.monotonic()
        work = folder / name
        work.mkdir(parents=True)
        summary |= CASES[name](work, stock)
        shutil.rmtree(work)
        summary[f"{name}_s"] = round(time.monotonic() - began, 1)
        path.write_text(json.dumps(summary, indent=1) + "\n")
    shutil.rmtree(folder)
    if {*args.cases} == {*CASES}:
        keep(summary)
    heading(f"summary ({path})")
    print(verdicts(summary, RESILIENCE))
    wrong = [
        claim.key
        for claim in RESILIENCE
        if claim.relation in MUST_HOLD
        and claim.key in summary
        and not claim.holds(summary[claim.key])
    ]
    if wrong:
        raise SystemExit(f"something was lost or wrong: {', '.join(wrong)}")


def keep(summary: dict[str, Any], results: Path = record.RESULTS) -> None:
    """Add the line of a whole run to the results."""
    circumstances = record.environment(
        configuration="resilience", repository=None, payload={"source": "drawn"}, versions={}
    )
    line = {"time": record.now(), **circumstances, "resilience": summary}
    with (results / RESULTS_FILE).open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
