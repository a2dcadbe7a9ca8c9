"""Describe a data set: python -m cascade.data describe --data table --schema schema.yaml."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tabulate import tabulate

from cascade.data.describe.survey import Collected, Survey
from cascade.data.opening import add_source_arguments, open_source
from cascade.data.source import SPLITS, UNITS, unit
from cascade.files import write_json


def main(arguments: list[str] | None = None) -> None:
    """Read the source once, print tables and warnings, write JSON where it is asked for."""
    parser = argparse.ArgumentParser(prog="python -m cascade.data describe", description=__doc__)
    add_source_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    options = parser.parse_args(arguments)
    bad = Collected()
    found = Survey(open_source(options.data, bad, options.schema), bad).run()
    print(text(found))
    if options.json is not None:
        write_json(options.json, found)


def text(found: Mapping[str, Any]) -> str:
    """Tables for a terminal, and a line for every warning."""
    warnings = [f"warning: {warning}" for warning in found["warnings"]]
    return "\n\n".join([_overview(found), _features(found), "\n".join(warnings or ["no warnings"])])


def _overview(found: Mapping[str, Any]) -> str:
    rows, positives = found["rows"], found["positives"]
    total, liked = sum(rows.values()), sum(positives.values())
    by_split = ", ".join(f"{rows[split]:,} {split}" for split in SPLITS)
    lines = [
        ("rows", f"{total:,}: {by_split}"),
        ("split", found["split"]),
        ("positives", f"{liked:,}{f' ({liked / total:.1%})' if total else ''}"),
        *((f"label {name}", _label(label)) for name, label in found.get("labels", {}).items()),
        ("users", "–" if found["users"] is None else f"{found['users']:,}"),
        ("items", "by their features" if found["items"] is None else _items(found)),
    ]
    if found["events_per_user"]:
        lines.append(("rows per user", _spread(found["events_per_user"])))
    if found["time"]:
        lines.append(("time", " to ".join(map(moment, found["time"]))))
    lines.append(("log", found["log"] or "by whether there are negatives"))
    return str(tabulate(lines, tablefmt="plain", disable_numparse=True))


def _label(label: Mapping[str, Any]) -> str:
    known, above = label["known"], label["above_0"]
    return f"known of {known:,} rows, above 0 in {above:,}, mean {label['mean']:.4g}"


def _items(found: Mapping[str, Any]) -> str:
    return f"{found['items']:,}, of which {found['items_met']:,} are in the rows"


def _features(found: Mapping[str, Any]) -> str:
    lines = []
    for feature in found["features"]:
        missing = feature["missing"] / feature["rows"] if feature["rows"] else 0
        values = ""
        if "least" in feature:
            values = f"{feature['least']:g} to {feature['most']:g}"
        if "members" in feature:
            cut = f", {feature['cut']:,} cut to {feature['length']}" if feature["cut"] else ""
            values = f"members {_spread(feature['members'])}{cut}"
        kind = f"{feature['kind']} ({feature['encoding']})"
        about = (feature["name"], feature["side"], kind, f"{missing:.1%}")
        lines.append((*about, f"{feature['distinct']:,}", values))
    headers = ("feature", "side", "kind", "missing", "distinct", "values")
    aligned = ("left", "left", "left", "right", "right", "left")
    return str(tabulate(lines, headers, colalign=aligned, disable_numparse=True))


def _spread(sizes: Mapping[str, int]) -> str:
    return f"{sizes['least']} to {sizes['most']:,}, median {sizes['median']:,}"


def moment(value: float) -> str:
    """A time, with its date where it counts from 1970 in a usual unit."""
    counted = unit(value)
    if counted is None:
        return str(value)
    date = datetime.fromtimestamp(value / UNITS[counted], timezone.utc)
    return f"{date:%Y-%m-%d %H:%M:%S}{'' if counted == 'us' else f' ({value} {counted})'}"
