"""The summary as Markdown: claims, comparisons and figures of each data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perf.harness.table import table

ERROR = "_se"
TRIED = Path(__file__).with_name("tried.md")


def text(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The data sets of a summary, one after the other, with lines that also line up as text; then
    the trials by which settings were chosen."""
    sets = [_of(name, found) for name, found in summary.items()]
    return "\n\n".join([*sets, TRIED.read_text()])


def _of(name: str, found: Mapping[str, Any]) -> str:
    seeds = f", {found['seeds']} seeds" if found["seeds"] > 1 else ""
    parts = [f"## {name}{seeds}", _claims(found)]
    if found["comparisons"]:
        parts.append(_comparisons(found))
    parts.append(_figures(found))
    parts.append("\n".join(f"- {line}" for line in (*found["failed"], *found["notes"])))
    return "\n\n".join(filter(None, parts))


def _claims(found: Mapping[str, Any]) -> str:
    rows = []
    for claim in found["claims"]:
        target = f"{claim['relation']} {_number(claim['target'])}"
        holds = ("yes" if claim["holds"] else "**no**") + (", a tie" if claim["tie"] else "")
        figures = (claim["key"], target, _number(claim["figure"]), _number(claim["se"]))
        rows.append([claim["meaning"], *figures, holds])
    return table(["claim", "key", "target", "found", "s.e.", "holds"], rows)


def _comparisons(found: Mapping[str, Any]) -> str:
    rows = []
    for one in found["comparisons"]:
        figures = _signed(one["difference"]), _number(one["se"])
        rows.append([f"{one['key']} over {one['other']}", *figures, one["result"]])
    return table(["on the same rows", "difference", "s.e.", "the ranker is"], rows)


def _figures(found: Mapping[str, Any]) -> str:
    rows = [
        [key, _number(value), _number(found.get(f"{key}{ERROR}"))]
        for key, value in found.items()
        if isinstance(value, float | bool)
        and not key.endswith(ERROR)
        and key not in ("holds", "seconds")
    ]
    return table(["figure", "mean", "s.e."], rows) if rows else ""


def _number(value: float | bool | None) -> str:
    """Four decimals; a dash where there is none."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"
