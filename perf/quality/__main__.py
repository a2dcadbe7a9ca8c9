"""`python -m perf.quality`: whether every stage makes the list better, on planted and real data.

Trains, exports and evaluates every data set by the product's own commands: clicks drawn from a
known model, and rows of MovieLens and Criteo where they are there, for several seeds. Sets the
stages beside popularity, item neighbours, EASE, logistic regression, LightGBM and DeepFM, and each
claim beside its figure. Writes OUT/summary.json and OUT/quality.md; the exit code is 1 where a
claim or a step fails, after all have run.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cascade.errors import CascadeError
from cascade.errors import run as run_main
from cascade.files import write_json
from clients.options import positive
from perf.harness.commands import rows_there, say
from perf.quality import claims, tables
from perf.quality.figures import Found, beside
from perf.quality.sets import SETS, Run
from perf.quality.steps import Steps

Outcome = Found | CascadeError
AT_ONCE = 2  # runs, of one thread each
LACKING = {
    "lightgbm_auc": "LightGBM, which pip install 'cascade[dev]' brings",
    "deepfm_auc": "DeepCTR-Torch, which pip install 'cascade[dev]' brings",
    **dict.fromkeys(
        ("plan_speedup", "plan_speedup_alone"), "a size that keeps enough, and none does"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.quality", description=__doc__)
    add, named = parser.add_argument, f"{' '.join(SETS)} [all]"
    add("--data-sets", nargs="+", choices=SETS, default=[*SETS], metavar="NAME", help=named)
    add("--seeds", type=positive, default=5, help="of each set of real rows [%(default)s]")
    add("--shared", type=Path, default=Path("../shared/data"), help="real rows [%(default)s]")
    add("--out", type=Path, default=Path("build/quality"), help="[%(default)s]")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="[%(default)s]")
    add("--quick", action="store_true", help="tiny models: whether it runs, not what it finds")
    args = parser.parse_args(arguments)
    started = time.monotonic()
    names = [
        name
        for name in SETS
        if name in args.data_sets and rows_there(name, SETS[name].folder, args.shared)
    ]
    outcomes = _all([(name, run) for name in names for run in _runs(name, args)])
    sets = {name: _summary(name, outcomes[name]) for name in names}
    text = tables.text(sets)
    holds = bool(sets) and all(found["holds"] for found in sets.values())
    seconds = round(time.monotonic() - started, 1)
    write_json(args.out / "summary.json", {**sets, "holds": holds, "seconds": seconds})
    (args.out / "quality.md").write_text(text)
    print(f"\n{text}\n{seconds:.0f} s; figures: {args.out}/summary.json, {args.out}/quality.md")
    return 0 if holds else 1


def _runs(name: str, args: argparse.Namespace) -> Iterator[Run]:
    """The runs of a data set, in folders without the checkpoints of an earlier call."""
    place, kind = args.out / name, SETS[name]
    shutil.rmtree(place, ignore_errors=True)
    for seed in range(args.seeds if kind.seeds else 1):
        folder = place / f"seed-{seed}" if kind.seeds else place
        folder.mkdir(parents=True)
        title = f"{name}, seed {seed}" if kind.seeds else name
        steps = Steps(title, folder / "quality.log", AT_ONCE if kind.alone else 1)
        source = args.shared / kind.folder if kind.folder else None
        yield Run(steps, folder, source, seed, args.device, args.quick, baselines=seed == 0)


def _all(jobs: list[tuple[str, Run]]) -> dict[str, list[Outcome]]:
    """What came of every run, by data set."""
    found: dict[str, list[Outcome]] = {}
    for alone, at_once in ((True, 1), (False, AT_ONCE)):
        some = [job for job in jobs if SETS[job[0]].alone == alone]
        with ThreadPoolExecutor(at_once) as pool:
            for (name, _), outcome in zip(some, pool.map(_outcome, some), strict=True):
                found.setdefault(name, []).append(outcome)
    return found


def _outcome(job: tuple[str, Run]) -> Outcome:
    name, run = job
    try:
        return SETS[name].run(run)
    except (CascadeError, OSError) as error:
        return CascadeError(str(error))


def _summary(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a data set, and its claims beside them."""
    ended = [outcome for outcome in outcomes if not isinstance(outcome, CascadeError)]
    seeds = [SETS[name].figures(beside(one, ended[0])) for one in ended]
    failed = [str(outcome) for outcome in outcomes if isinstance(outcome, CascadeError)]
    found, lacking = claims.summed(seeds, SETS[name].seeds) if seeds else ({}, [])
    why = {key: LACKING.get(key, "what the evaluation does not tell") for key in lacking}
    notes = [f"{key} is left out: it needs {needed}" for key, needed in why.items()]
    for line in (*failed, *notes):
        say(f"{name}: {line}")
    checked = claims.check(name, found)
    return {
        **found,
        "seeds": len(seeds),
        "claims": [asdict(claim) for claim in checked],
        "comparisons": [asdict(one) for one in claims.compare(found)],
        "failed": failed,
        "notes": notes,
        "holds": not failed and all(claim.holds for claim in checked),
    }


if __name__ == "__main__":
    run_main(main, to_end=True)
