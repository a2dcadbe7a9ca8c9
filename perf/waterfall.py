"""`python -m perf.waterfall`: one request's time, split into what it is spent on.

One client asks one request after the other. Every piece is an interval between two moments that
were noted (`perf.waterfall_trace`), reported as its median over the requests. `waterfall_share` is
their sum over the median of the whole. Every other block of requests is asked without traces: the
difference is what the tracing costs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Patch

from cascade.errors import run
from cascade.server.threads import default_instances
from cascade.spec import TOPOLOGIES
from export.releases.rewire import rewire, serving_of
from perf.harness import payload, record
from perf.harness.commands import counts
from perf.harness.figures import picture
from perf.harness.payload import PayloadError
from perf.harness.table import table
from perf.waterfall_trace import Plan, ask, intervals_of

OWNERS = {
    "client": "#6c7a89",
    "gRPC and network": "#b0b7bd",
    "Triton": "#76b900",
    "hop to a stage's process": "#c0392b",
    "Python adapter": "#e08e0b",
    "retrieve": "#1a5276",
    "prerank": "#2e86c1",
    "rank": "#8e5ea2",
}
CLIENT, GRPC, TRITON, HOP, ADAPTER, RETRIEVE_, *_ = OWNERS
# Owner of an interval, and what happens in it; by its name, or the last part of that.
MEANING = {
    "client.request": (CLIENT, "message made and turned into bytes"),
    "grpc.request": (GRPC, "to the server"),
    "core.accept": (TRITON, "request read, handed to the first model"),
    "queue": (TRITON, "waits for the batcher's thread"),
    "input": (HOP, "tensors into shared memory"),
    "there": (HOP, "wakes the stub, tensors out of shared memory"),
    "read": (ADAPTER, "tensors as arrays, joined"),
    "encode": (RETRIEVE_, "values to numbers"),
    "tower": (RETRIEVE_, "user tower"),
    "search": (RETRIEVE_, "index search"),
    "prerank.sort": ("prerank", "rows in catalogue order"),
    "prerank": ("prerank", "the stage"),
    "rank.sort": ("rank", "rows in catalogue order"),
    "rank": ("rank", "the stage"),
    "answer": (ADAPTER, "tensors and responses made"),
    "back": (HOP, "answer into shared memory, wakes Triton"),
    "output": (HOP, "tensors out of shared memory, handed on"),
    "core.send": (TRITON, "message handed to gRPC"),
    "grpc.answer": (GRPC, "to the client"),
    "client.answer": (CLIENT, "bytes to message and arrays"),
}
BETWEEN_PROCESSES = ("grpc.request", "grpc.answer", "there", "back")


def last(name: str) -> str:
    """The part of an interval's name that says what happens: the first may be the model's."""
    return name if name in MEANING else name.rsplit(".", 1)[-1]


def meaning(name: str) -> tuple[str, str]:
    """Owner of an interval, one of `OWNERS`, and what happens in it."""
    return MEANING.get(last(name), (TRITON, "a further step"))


def between_processes(name: str) -> bool:
    """Whether an interval begins in one process and ends in another: transport."""
    return last(name) in BETWEEN_PROCESSES


@dataclass(frozen=True)
class Waterfall:
    """What one size of request was found to take.

    Args:
        batch: users in a request.
        requests: how many were traced.
        parts_us: medians by interval, in the order of time.
        measured_us: median of the whole, from the client's call to its arrays.
        untraced_us: the same of the requests without traces.
    """

    batch: int
    requests: int
    parts_us: Mapping[str, float]
    measured_us: float
    untraced_us: float

    @property
    def share(self) -> float:
        """Sum of the parts over the whole. It may pass 1: medians do not add up exactly."""
        return sum(self.parts_us.values()) / self.measured_us

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        transport = sum(us for name, us in self.parts_us.items() if between_processes(name))
        return {
            "batch": self.batch,
            "requests": self.requests,
            "measured_us": round(self.measured_us, 1),
            "untraced_us": round(self.untraced_us, 1),
            "waterfall_share": round(self.share, 4),
            "between_processes_share": round(transport / self.measured_us, 4),
            "unexplained_us": round(self.measured_us - sum(self.parts_us.values()), 1),
            "parts_us": {name: round(us, 2) for name, us in self.parts_us.items()},
        }


def measure(repository: Path, plan: Plan, scratch: Path) -> list[Waterfall]:
    """Serve a repository, ask it, and split the answers' times. Raises TraceError."""
    calls, plain = ask(repository, plan, scratch)
    split = intervals_of(calls, scratch)
    found = []
    for batch in plan.batches:
        names = [name for name in calls if name.startswith(f"{batch}-")]
        parts = {
            part: float(np.median([split[name][part] for name in names]))
            for part in split[names[0]]
        }
        measured_us = float(np.median([calls[name].us for name in names]))
        untraced_us = float(np.median(plain[batch]))
        found.append(Waterfall(batch, len(names), parts, measured_us, untraced_us))
    return found


def report(found: Sequence[Waterfall]) -> str:
    """The pieces in the order of time, a column for each batch."""
    header = ["piece", *(f"{w.batch} user(s), µs" for w in found), "what happens"]
    names = list(dict.fromkeys(name for w in found for name in w.parts_us))
    rows = [
        [name, *(f"{w.parts_us.get(name, 0):.1f}" for w in found), ": ".join(meaning(name))]
        for name in names
    ]
    for title, values in (
        ("sum", [sum(w.parts_us.values()) for w in found]),
        ("measured", [w.measured_us for w in found]),
        ("measured without traces", [w.untraced_us for w in found]),
    ):
        rows.append([title, *(f"{value:.1f}" for value in values), ""])
    rows.append(["share", *(f"{w.share:.3f}" for w in found), "sum / measured"])
    return table(header, rows)


def draw(bars: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """One bar for each entry, its pieces in the order of time as shares of the whole."""
    with picture(path, title, (11, 1.6 + 0.8 * len(bars))) as axes:
        for row, (name, parts) in enumerate(bars.items()):
            start, whole = 0.0, sum(parts.values())
            for piece, us in parts.items():
                width = 100 * us / whole
                axes.barh(
                    row, width, left=start, color=OWNERS[meaning(piece)[0]], edgecolor="white"
                )
                if width > 6:
                    text = "\n".join([*piece.split("."), f"{us:.0f} µs"])
                    axes.text(
                        start + width / 2, row, text, size=7, color="w", ha="center", va="center"
                    )
                start += width
            axes.text(101, row, f"{name}\n{whole / 1000:.2f} ms", size=8, va="center")
        handles = [Patch(color=colour, label=name) for name, colour in OWNERS.items()]
        axes.figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
        axes.set(yticks=[], xlim=(0, 100), xlabel="% of the request's time")


def _shares(found: Sequence[Waterfall]) -> dict[str, float]:
    """`waterfall_share` of the first batch, and of others with their size in the name."""
    names = ["waterfall_share", *(f"waterfall_share_{w.batch}" for w in found[1:])]
    return {name: round(w.share, 4) for name, w in zip(names, found, strict=True)}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write waterfall.json and waterfall.png, and record the lines."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    # Beside the results: on the same disk as the repository, most likely, so it can be linked.
    with tempfile.TemporaryDirectory(prefix=".waterfall-", dir=options.out) as folder:
        _run(options, Path(folder).resolve())


def _run(options: argparse.Namespace, scratch: Path) -> None:
    repository = options.repository
    if options.topology:
        repository = scratch / "repository"
        instances = default_instances(options.topology)
        wiring = {"topology": options.topology, "instances": instances}
        rewire(options.repository, repository, replace(serving_of(options.repository), **wiring))
    serving = serving_of(repository)
    ensemble = payload.ensemble_of(repository)
    users = payload.users(options.users, payload.layout(ensemble))
    if max(options.batch) > ensemble.max_batch_size:
        most = ensemble.max_batch_size
        raise PayloadError(f"a request may have {most} users at most; --batch has more")
    found = measure(repository, Plan(users, options.batch, options.requests), scratch)
    print(report(found))
    name = payload.configuration_name(f"waterfall-{serving.topology}", [serving])
    environment = record.environment(
        configuration=name, repository=repository, payload=users.describe()
    )
    content = {"topology": serving.topology, **_shares(found), **environment}
    content["batches"] = [waterfall.to_dict() for waterfall in found]
    (options.out / "waterfall.json").write_text(json.dumps(content, indent=1) + "\n")
    bars = {f"{w.batch} user{'s' if w.batch > 1 else ''}": w.parts_us for w in found}
    title = f"Where the time of one request goes ({serving.topology}, one request at a time)"
    draw(bars, title, options.out / "waterfall.png")
    results = options.results or record.RESULTS / f"waterfall-{serving.device}.jsonl"
    record.append(results, environment, *content["batches"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.waterfall", description=__doc__)
    add = parser.add_argument
    add("--repository", type=Path, required=True, help="exported model repository")
    add("--topology", choices=TOPOLOGIES, help="wire it so [as it is]")
    add("--users", type=Path, help="users.jsonl [generated users]")
    add("--out", type=Path, default=Path("build/perf/waterfall"))
    add("--requests", type=int, default=300, help="traced, per batch [%(default)s]")
    add("--batch", type=counts, default=(1, 16), help="users a request [1,16]")
    add("--results", type=Path, help="file of lines [by device]")
    return parser


if __name__ == "__main__":
    run(main)
