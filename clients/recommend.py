"""`python -m clients.recommend`: the ten best items for one or several users, as a table.

python -m clients.recommend --user '{"I1": 3, "C1": "68fd1e64"}'
python -m clients.recommend --user-id 17
python -m clients.recommend --random 3 --users users.jsonl --titles titles.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cascade.client import Recommendation, Recommender, RecommendError
from cascade.encoding import InvalidInput
from cascade.errors import CascadeError, run
from cascade.layout import RequestLayout
from cascade.values import of_json
from clients.options import UsageError, add_connection, connection, positive

MISSING_SHARE = 0.1  # of the values of a user that is made up
BAG_MEMBERS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    titles = None
    with Recommender(**connection(options)) as recommender:
        try:
            strings = recommender.layout().string_ids
            titles = read_titles(options.titles, strings) if options.titles else None
            exclude = item_ids(options.exclude, strings)
            users, answers = _ask(options, recommender, exclude)
        except RecommendError as error:
            request = f" (request {error.request_id})" if error.request_id else ""
            raise CascadeError(f"{error}{request}") from error
    for user, answer in zip(users, answers, strict=True):
        if options.json:
            print(as_json(user, answer, titles))
        else:
            print("\n".join(table(user, answer, titles, shutil.get_terminal_size().columns)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients.recommend", description="Ask the cascade for the ten best items."
    )
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    add("--user", action="append", metavar="JSON", help="raw values by name; may be repeated")
    add("--user-id", action="append", metavar="ID", help="of a stored user; may be repeated")
    random_users = "random users [1], made up unless --users is given"
    add("--random", type=positive, nargs="?", const=1, metavar="N", help=random_users)
    add = parser.add_argument
    add("--context", metavar="JSON", help="values that override the stored ones (with --user-id)")
    add("--users", type=Path, metavar="JSONL", help="draw them from this file of JSON lines")
    add("--seed", type=int, help="draw the same users again")
    add("--exclude", default="", metavar="ID,…", help="items that are not wanted")
    allowed = 'want only items with these values, as {"genre": ["Comedy", "Drama"]}'
    add("--allow", metavar="JSON", help=allowed)
    add("--titles", type=Path, metavar="CSV", help="file with the columns item_id and title")
    add("--json", action="store_true", help="one JSON object per user")
    add_connection(parser, deadline_ms=5000)
    return parser


def item_ids(text: str, string_ids: bool) -> list[Any]:
    """The ids of a line of CSV, ints or strings. Raises UsageError: one is no int."""
    words = [word for row in csv.reader([text], skipinitialspace=True) for word in row if word]
    if string_ids:
        return words
    try:
        return [int(word) for word in words if word.strip()]
    except ValueError as error:
        raise UsageError(f"--exclude: expected ids as 12,345; got {text!r}") from error


def _ask(
    options: argparse.Namespace, recommender: Recommender, exclude: list[Any]
) -> tuple[list[dict[str, Any]], list[Recommendation]]:
    """The users as asked for, and the answers."""
    count = options.random or len(options.user_id or options.user)
    allow = parse(options.allow, "--allow") if options.allow else None
    filters: dict[str, Any] = {"exclude": [exclude] * count, "allow": [allow] * count}
    if options.user_id:
        context = parse(options.context, "--context") if options.context else {}
        answers = recommender.recommend_users(options.user_id, [context] * count, **filters)
        return [{"user_id": user_id, **context} for user_id in options.user_id], answers
    generator = random.Random(options.seed)
    if options.user:
        users = [parse(text, f"--user {n}") for n, text in enumerate(options.user, 1)]
    elif options.users:
        users = from_file(options.users, count, generator)
    else:
        layout = recommender.layout()
        users = [made_up(layout, generator) for _ in range(count)]
    return users, recommender.recommend_many(users, **filters)


def made_up(layout: RequestLayout, generator: random.Random) -> dict[str, Any]:
    """A user of skewed small counts and small numeric categories, some values missing. The values
    have the right kind, not the right meaning: many will be out of vocabulary."""
    user: dict[str, Any] = {name: _count(generator) for name in layout.dense}
    for feature in layout.categorical:
        if feature.multivalued:
            members = generator.randint(1, min(feature.length, BAG_MEMBERS))
            user[feature.name] = [str(_count(generator)) for _ in range(members)]
        else:
            user[feature.name] = str(_count(generator))
    return {name: value for name, value in user.items() if generator.random() >= MISSING_SHARE}


def _count(generator: random.Random) -> int:
    return int(generator.paretovariate(1.0))


def from_file(path: Path, count: int, generator: random.Random) -> list[dict[str, Any]]:
    """Draw `count` users, with repetition where there are fewer, from a file of JSON lines. Raises
    UsageError: the file has no line, or one that is drawn is not a JSON object."""
    with path.open(encoding="utf-8") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty; expected one user as a JSON object per line")
    draw = generator.sample if count <= len(lines) else generator.choices
    return [parse(line, f"{path}, line {number}") for number, line in draw(lines, k=count)]


def parse(text: str, where: str) -> dict[str, Any]:
    """Values by feature as a JSON object. Raises UsageError: says where, and what is wrong."""
    try:
        values = of_json(text)
    except InvalidInput as error:
        raise UsageError(f"{where}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(
            f"{where}: expected a JSON object of values by feature, not {text.strip()[:40]!r}"
        )
    return values


def read_titles(path: Path, string_ids: bool = False) -> dict[Any, str]:
    """Item id, an int or a string, to title, from a CSV file. Raises UsageError: no such column,
    or no such id."""
    titles: dict[Any, str] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"item_id", "title"} <= set(reader.fieldnames or ()):
            raise UsageError(
                f"{path}: expected a header with item_id and title, found {reader.fieldnames}"
            )
        for row in reader:
            try:
                item: int | str = row["item_id"] if string_ids else int(row["item_id"])
                titles[item] = row["title"] or ""
            except (TypeError, ValueError) as error:
                raise UsageError(
                    f"{path}, line {reader.line_num}: item_id {row['item_id']!r} is not an integer"
                ) from error
    return titles


def table(
    user: Mapping[str, Any], answer: Recommendation, titles: Mapping[Any, str] | None, width: int
) -> list[str]:
    """Lines of at most `width` characters: the user, a header, one line per item."""
    ids = [str(item) for item in answer.item_ids]
    id_width = max(len(text) for text in ("item id", *ids))
    names = [(titles or {}).get(item, "") for item in answer.item_ids.tolist()]
    tasks = answer.task_scores or {}
    beside = "".join(f"  {name:>{max(8, len(name))}}" for name in tasks)
    room = max(8, width - len("rank  ") - id_width - 2 - len("  score ") - len(beside))
    title_width = min(room, max(len(text) for text in ("title", *names)))

    def said(place: int) -> str:
        return "".join(f"  {v[place]:>{max(8, len(name))}.4f}" for name, v in tasks.items())

    def line(rank: str, item: str, title: str, score: str) -> str:
        middle = f"  {_cut(title, title_width):<{title_width}}" if titles is not None else ""
        return f"{rank:>4}  {item:>{id_width}}{middle}  {score:>6}"

    rows = [
        line(str(rank), item, title, f"{score:.4f}") + said(rank - 1)
        for rank, (item, title, score) in enumerate(zip(ids, names, answer.scores, strict=True), 1)
    ]
    kind = "unknown user" if answer.cold_start else "user"
    heading = _cut(f"{kind} {json.dumps(user, ensure_ascii=False)}", width)
    note = [f"      no more than {len(rows)} are left"] if answer.short else []
    if answer.unknown_values:
        note.append(f"      {answer.unknown_values} of the user's values are in no vocabulary")
    return [heading, line("rank", "item id", "title", "score") + beside, *rows, *note, ""]


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def as_json(
    user: Mapping[str, Any], answer: Recommendation, titles: Mapping[Any, str] | None
) -> str:
    """The user and the answer as one line of JSON; an item without a title has null."""
    value: dict[str, Any] = {
        "user": user,
        "item_ids": answer.item_ids.tolist(),
        "scores": [round(score, 6) for score in answer.scores.tolist()],
        "release": answer.release,
        "short": answer.short,
    }
    if answer.task_scores is not None:
        value["task_scores"] = {
            name: [round(score, 6) for score in scores.tolist()]
            for name, scores in answer.task_scores.items()
        }
    if answer.unknown_values is not None:
        value["unknown_values"] = answer.unknown_values
    if "user_id" in user:
        value["cold_start"] = answer.cold_start
    if titles is not None:
        value["titles"] = [titles.get(item) for item in value["item_ids"]]
    return json.dumps(value)


if __name__ == "__main__":
    run(main)
