"""`python -m clients.batch in.parquet out.csv`: recommendations for every row of a file, in its
order. Both files are Parquet, CSV or JSON lines, each by its suffix. A few requests are under way
at any time, and only the rows around them are in memory."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade.client import AsyncRecommender, InvalidInput, Recommendation
from cascade.errors import need, run
from cascade.layout import User
from clients.answers import Outcome, answer_file
from clients.options import UsageError, add_connection, connection, positive
from clients.tables import arrow, is_parquet, open_users

Ask = Callable[[Sequence[User]], Awaitable[list[Recommendation]]]


@dataclass
class Tally:
    """The rows so far; `first` is the first that was refused: its number, from 1 on, and why."""

    rows: int = 0
    refused: int = 0
    first: tuple[int, str] | None = None

    def add(self, answers: Sequence[Outcome]) -> None:
        for row, answer in enumerate(answers, self.rows + 1):
            if isinstance(answer, str):
                self.refused += 1
                self.first = self.first or (row, answer)
        self.rows += len(answers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all rows answered (or --allow-errors), 1 not, 2 wrong usage, 130 stopped."""
    options = _parser().parse_args(arguments)
    tally = asyncio.run(_answer_file(options))
    print(f"{options.output}: {tally.rows} rows, {tally.refused} refused", file=sys.stderr)
    if tally.first is None:
        return 0
    row, why = tally.first
    message = f"{options.input}, row {row}: {why} (the column `error` has the reason of every row"
    if options.allow_errors:
        print(f"{message})", file=sys.stderr)
        return 0
    print(f"error: {message}; --allow-errors accepts this)", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients.batch",
        description="Ask the cascade for the ten best items for every row of a file.",
        epilog="Files end in .parquet, .csv or .jsonl (.ndjson); the two may differ. In CSV an "
        "empty cell is a missing value, and lists are joined by |.",
    )
    add = parser.add_argument
    add("input", type=Path, help="columns named by feature")
    add("output", type=Path, help="file to write, or to replace")
    kept = "hand this column of the input through; may be repeated"
    add("--keep", action="append", default=[], metavar="COLUMN", help=kept)
    add("--concurrency", type=positive, default=8, help="requests under way (%(default)s)")
    add("--batch-size", type=positive, default=32, help="rows of a request (%(default)s)")
    add("--allow-errors", action="store_true", help="exit 0 even if rows were refused")
    add("--no-progress", action="store_true", help="show no progress bar")
    add_connection(parser, deadline_ms=30_000)
    return parser


async def _answer_file(options: argparse.Namespace) -> Tally:
    # What is missing is told before anything is asked of the server.
    if is_parquet(options.input) or is_parquet(options.output):
        arrow()
    tqdm = need("tqdm", "clients.batch", "batch").tqdm
    _check_paths(options.input, options.output)
    tally = Tally()
    async with AsyncRecommender(**connection(options)) as recommender:
        layout = await recommender.layout()
        users = open_users(options.input, layout, options.keep)
        if users.absent:
            print(f"no such column, sent as missing: {', '.join(users.absent)}", file=sys.stderr)
        found = in_order(
            recommender.recommend_many, users.batches(options.batch_size), options.concurrency
        )
        with (
            tqdm(total=users.rows, unit=" rows", disable=options.no_progress) as bar,
            answer_file(options.output, users.kept, layout.string_ids, layout.tasks) as write,
        ):
            async with contextlib.aclosing(found):
                async for kept, answers in found:
                    write(kept, answers)
                    tally.add(answers)
                    bar.update(len(answers))
    return tally


def _check_paths(source: Path, target: Path) -> None:
    if not source.is_file():
        raise UsageError(f"there is no file {source}")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent} to write {target.name} to")
    if target.exists() and target.samefile(source):
        raise UsageError(f"{source} is both input and output; write to another file")


async def in_order(
    ask: Ask, batches: Iterable[tuple[Sequence[User], Any]], concurrency: int
) -> AsyncGenerator[tuple[Any, list[Outcome]], None]:
    """Answer batches of users in their order, `concurrency` at a time; hand through what stands
    beside each. `ask` recommends as `AsyncRecommender.recommend_many` does."""
    gate = asyncio.Semaphore(concurrency)

    async def answer(users: Sequence[User]) -> list[Outcome]:
        async with gate:
            return await settle(ask, users)

    waiting: deque[tuple[Any, asyncio.Task[list[Outcome]]]] = deque()
    try:
        for users, passed in batches:
            waiting.append((passed, asyncio.create_task(answer(users))))
            # One slow batch at the head does not hold up the others, and few are in memory.
            if len(waiting) >= 4 * concurrency:
                passed, task = waiting.popleft()
                yield passed, await task
        while waiting:
            passed, task = waiting.popleft()
            yield passed, await task
    finally:
        for _, task in waiting:
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)


async def settle(ask: Ask, users: Sequence[User]) -> list[Outcome]:
    """One answer per user. A rejected request is asked again in halves, so that valid rows get
    their recommendations and each invalid one its reason."""
    try:
        return list(await ask(users))
    except InvalidInput as error:
        if len(users) == 1:
            return [str(error)]
    middle = len(users) // 2
    return [*await settle(ask, users[:middle]), *await settle(ask, users[middle:])]


if __name__ == "__main__":
    run(main)
