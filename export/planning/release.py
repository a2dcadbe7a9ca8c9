"""A plan needs a release to measure, and a planned release needs a plan: both exports of an
`--sizes auto` are here, and the plan that writes none."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from cascade.files import write_json
from cascade.release import RELEASE_FILE, read_release
from cascade.spec import ENSEMBLE, Sizes
from export.build import write_release
from export.context import Build, Source
from export.planning import report
from export.planning.opened import Opened
from export.planning.plan import Asked, Plan, compared, drawn_users, least_of, measure

VERSION = 1
PLAN_FILE, PICTURE = "plan.json", "plan.png"


def write_plan(build: Build, asked: Asked, out: Path) -> Plan:
    """Export checkpoints into a temporary folder, measure, and write plan.json and plan.png into a
    folder. Raises PlanError, and what an export raises."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        plan = _planned(build, asked, Path(folder))[1]
    write_json(out / PLAN_FILE, plan.to_dict())
    report.draw(plan, out / PICTURE)
    return plan


def write_planned(build: Build, asked: Asked) -> None:
    """Write a release in the sizes that a plan chooses; its release.json has the plan. Raises
    PlanError, and what an export raises."""
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        base, plan = _planned(build, asked, Path(folder))
        print(report.report(plan))
        sized = _sized(build, base, plan)
        write_release(sized)
        # Once more with the release itself, whose graphs may be stored in another way.
        here, there = (
            Opened(each, Path(folder) / name)
            for each, name in ((base, "default"), (sized, "chosen"))
        )
        users = drawn_users(Source.load(build.checkpoints), asked.count)
        pair = (here, plan.default.setting), (there, plan.chosen.setting)
        plan = replace(plan, speedup=compared(*pair, users))
    print(report.said(plan))
    release = read_release(build.repository, build.version)
    path = build.repository / ENSEMBLE / str(build.version) / RELEASE_FILE
    sentence = f"sizes as planned: {plan.chosen.kept:.3f} of the ranker's best are kept"
    said = {"by": "plan", "name": "kept", "value": plan.chosen.kept, "sentence": sentence}
    said_too = {"plan": plan.to_dict(), "verdict": [*release["verdict"], said]}
    if not plan.reached:
        missed = f"no planned sizes keep {plan.keep:g} of the ranker's best: {plan.chosen.kept:.3f}"
        said_too["warnings"] = [*release["warnings"], missed]
        print(f"WARNING: {missed}")
    write_json(path, {**release, **said_too})


def _planned(build: Build, asked: Asked, folder: Path) -> tuple[Build, Plan]:
    """The export in the sizes that `build` has, and the plan that was measured on it."""
    asked.tried.check(least_of(build))
    serving = replace(build.serving, runtime="onnx")
    base = replace(
        build,
        repository=folder / "repository",
        version=VERSION,
        serving=serving,
        state="float32",
        weights="float32",
        also=(),
        measure_batching=False,
    )
    write_release(base, judged=False)
    return base, measure(build, base, folder / "sizes", asked)


def _sized(build: Build, base: Build, plan: Plan) -> Build:
    """The export in the planned sizes, over the index that was measured."""
    chosen = plan.chosen
    sizes = Sizes(chosen.candidates, chosen.survivors, build.sizes.results)
    if build.index == "exact":
        return replace(build, sizes=sizes)
    return replace(build, sizes=sizes, retrieve_from=base.repository, effort=chosen.effort)
