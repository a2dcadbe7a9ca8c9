"""What a person reads of a plan: a table, the chosen point in words, and a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from export.planning.plan import Plan, Point, front
from export.planning.timing import BATCH


def table(plan: Plan) -> str:
    """The points of the Pareto front, the default and the chosen one, from the cheapest on."""
    effort = plan.effort or "effort"
    found = ("kept", "95 % interval", "NDCG@10", "us/request", f"us/user of {BATCH}", "")
    header = ("candidates", "survivors", effort, *found)
    shown = sorted({*front(plan.points), plan.default, plan.chosen}, key=_cost)
    rows = [
        (
            *(p.candidates, p.survivors, "–" if p.effort is None else p.effort),
            *(f"{p.kept:.3f}", f"{p.kept_low:.3f} to {p.kept_high:.3f}"),
            "–" if p.ndcg_at_10 is None else f"{p.ndcg_at_10:.4f}",
            *(f"{p.us_per_request:.0f}", f"{p.us_per_user_of_16:.0f}"),
            ", ".join(_names(plan, p)),
        )
        for p in shown
    ]
    return tabulate(rows, header, tablefmt="plain", disable_numparse=True)


def report(plan: Plan) -> str:
    """The table, and what was chosen."""
    chosen, measured = plan.chosen, f"{plan.users} users, {plan.positives} held-out positives"
    lines = [f"kept: of the ranker's {plan.results} best of {plan.items:,} items; {measured}"]
    lines += [table(plan), f"{len(plan.points)} settings measured; shown are those on the front"]
    if not plan.reached:
        lines.append(
            f"no setting keeps {plan.keep:g}: the one that keeps most is taken. Larger sizes "
            "(--try-candidates, --try-survivors) or better towers keep more"
        )
    elif chosen.kept_low < plan.keep:
        lines.append(
            f"the interval of the chosen setting begins at {chosen.kept_low:.3f}, below "
            f"{plan.keep:g}: more --users narrow it, a larger --keep stays clear of it"
        )
    lines.append(said(plan))
    return "\n".join(lines)


def said(plan: Plan) -> str:
    """The chosen setting beside the default, in one line."""
    chosen, default = plan.chosen, plan.default
    times = ", ".join(
        f"{users} at once {found['default_us']:.0f} -> {found['chosen_us']:.0f} us "
        f"({found['speedup']:.2f} times as fast)"
        for users, found in plan.speedup.items()
    )
    return (
        f"chosen: {_sizes(plan, chosen)} in place of {_sizes(plan, default)}; kept "
        f"{chosen.kept:.3f} ({default.kept:.3f}); whole requests in turn: {times}"
    )


def draw(plan: Plan, path: Path) -> None:
    """A picture of all points, what they keep over what they cost."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for survivors in sorted({p.survivors for p in plan.points}):
        points = [p for p in plan.points if p.survivors == survivors]
        axes.scatter(*_places(points), s=14, label=f"{survivors} survivors")
    axes.step(*_places(front(plan.points)), where="post", color="gray", label="Pareto front")
    for name, mark, point in (("default", "kD", plan.default), ("chosen", "k*", plan.chosen)):
        axes.plot(*_places([point]), mark, markersize=11, label=name, zorder=3)
    axes.axhline(plan.keep, color="gray", linestyle=":", label="target")
    axes.set(
        xscale="log",
        xlabel="one request in process, microseconds",
        ylabel=f"share of the ranker's {plan.results} best that is kept",
        title=f"{plan.items:,} items, {plan.users} users",
    )
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _places(points: list[Point]) -> tuple[list[float], list[float]]:
    return [p.us_per_request for p in points], [p.kept for p in points]


def _cost(point: Point) -> float:
    return point.us_per_request


def _names(plan: Plan, point: Point) -> list[str]:
    named = {"default": plan.default, "chosen": plan.chosen}
    return [name for name, other in named.items() if other == point]


def _sizes(plan: Plan, point: Point) -> str:
    effort = "" if point.effort is None else f" ({plan.effort} {point.effort})"
    return f"{point.candidates}{effort} -> {point.survivors} -> {plan.results}"
