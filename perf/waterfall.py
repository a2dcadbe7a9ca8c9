"""`python -m perf.waterfall`: one request's time, split into what it is spent on.

One client asks one request after the other. Every piece is an interval between two moments that
were noted (`perf.waterfall_trace`), reported as its median over the requests. `waterfall_share` is
their sum over the median of the whole; medians do not add up exactly, so it may pass 1. Every other
block of requests is asked without traces: the difference is what the tracing costs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from matplotlib.patches import Patch

from cascade.errors import run
from cascade.files import write_json
from clients.options import positive
from export.releases.rewire import serving_of
from perf.harness import payload, record
from perf.harness.commands import counts
from perf.harness.payload import Payload, PayloadError
from perf.harness.table import figures, picture
from perf.waterfall_trace import ask, intervals_of

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
BETWEEN_PROCESSES = ("grpc.request", "grpc.answer", ".there", ".back")


def meaning(name: str) -> tuple[str, str]:
    """Owner of an interval, one of `OWNERS`, and what happens in it."""
    return MEANING.get(name) or MEANING.get(name.rsplit(".")[-1]) or (TRITON, "a further step")


def between_processes(name: str) -> bool:
    """Whether an interval begins in one process and ends in another: transport."""
    return name.endswith(BETWEEN_PROCESSES)


def measure(
    repository: Path, users: Payload, batches: Sequence[int], requests: int, scratch: Path
) -> list[dict[str, Any]]:
    """Serve a repository, ask it, and split the answers' times -> a line for each batch, with the
    medians of its intervals in the order of time. Raises TraceError."""
    calls, plain = ask(repository, users, batches, requests, scratch)
    split, found = intervals_of(calls, scratch), []
    for batch in batches:
        names = [name for name in calls if name.startswith(f"{batch}-")]
        parts = pd.DataFrame([split[name] for name in names]).median()
        whole_us, explained_us = median(calls[name].us for name in names), float(parts.sum())
        transport_us = float(parts[list(map(between_processes, parts.index))].sum())
        line = {
            "batch": batch,
            "requests": len(names),
            "measured_us": round(whole_us, 1),
            "untraced_us": round(median(plain[batch]), 1),
            "waterfall_share": round(explained_us / whole_us, 4),
            "between_processes_share": round(transport_us / whole_us, 4),
            "unexplained_us": round(whole_us - explained_us, 1),
            "parts_us": parts.round(2).to_dict(),
        }
        found.append(line)
    return found


def report(found: Sequence[Mapping[str, Any]]) -> str:
    """The pieces in the order of time, a column for each batch."""
    names = list(dict.fromkeys(name for line in found for name in line["parts_us"]))
    columns = {f"{line['batch']} user(s), µs": pd.Series(line["parts_us"]) for line in found}
    pieces = pd.DataFrame(columns).reindex(names).fillna(0.0).astype(object)
    pieces["what happens"] = [": ".join(meaning(name)) for name in names]
    pieces.loc["sum"] = [sum(line["parts_us"].values()) for line in found] + [""]
    pieces.loc["measured"] = [line["measured_us"] for line in found] + [""]
    pieces.loc["measured without traces"] = [line["untraced_us"] for line in found] + [""]
    pieces.loc["share"] = [line["waterfall_share"] for line in found] + ["sum / measured"]
    return figures(pieces, "piece")


def draw(bars: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """One bar for each entry, its pieces in the order of time as shares of the whole."""
    with picture(path, title, (11, 1.6 + 0.8 * len(bars))) as axes:
        for row, (name, parts) in enumerate(bars.items()):
            start, whole = 0.0, sum(parts.values())
            for piece, us in parts.items():
                width, colour = 100 * us / whole, OWNERS[meaning(piece)[0]]
                bar = axes.barh(row, width, left=start, color=colour, edgecolor="white")
                text = "\n".join([*piece.split("."), f"{us:.0f} µs"]) if width > 6 else ""
                axes.bar_label(bar, [text], label_type="center", size=7, color="w")
                start += width
            axes.text(101, row, f"{name}\n{whole / 1000:.2f} ms", size=8, va="center")
        handles = [Patch(color=colour, label=name) for name, colour in OWNERS.items()]
        axes.figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
        axes.set(yticks=[], xlim=(0, 100), xlabel="% of the request's time")


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write waterfall.json and waterfall.png, and record the lines."""
    parser = argparse.ArgumentParser(prog="python -m perf.waterfall", description=__doc__)
    add = parser.add_argument
    add("--repository", type=Path, required=True, help="exported model repository")
    add("--users", type=Path, help="users.jsonl [generated users]")
    add("--out", type=Path, default=Path("build/perf/waterfall"))
    add("--requests", type=positive, default=300, help="traced, per batch [%(default)s]")
    add("--batch", type=counts, default=(1, 16), help="users a request [1,16]")
    add("--results", type=Path, help="file of lines [by device]")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    repository, serving = options.repository, serving_of(options.repository)
    layout = payload.layout_of(repository)
    users = payload.users(options.users, layout)
    if max(options.batch) > layout.max_batch_size:
        most = layout.max_batch_size
        raise PayloadError(f"a request may have {most} users at most; --batch has more")
    with tempfile.TemporaryDirectory(prefix="waterfall-") as scratch:
        found = measure(repository, users, options.batch, options.requests, Path(scratch))
    print(report(found))
    environment = record.environment(
        configuration=record.configuration_name(f"waterfall-{serving.topology}", [serving]),
        repository=repository,
        payload=users.describe(),
    )
    names = ["waterfall_share", *(f"waterfall_share_{line['batch']}" for line in found[1:])]
    shares = {name: line["waterfall_share"] for name, line in zip(names, found, strict=True)}
    content = {"topology": serving.topology, **shares, **environment, "batches": found}
    write_json(options.out / "waterfall.json", content)
    bars = {f"{one['batch']} user(s)": one["parts_us"] for one in found}
    title = f"Where the time of one request goes ({serving.topology}, one request at a time)"
    draw(bars, title, options.out / "waterfall.png")
    results = options.results or record.RESULTS / f"waterfall-{serving.device}.jsonl"
    record.append(results, environment, *found)


if __name__ == "__main__":
    run(main, to_end=True)
