"""`python -m clients.batch in.parquet out.parquet`: recommendations for every row of a file.

The input has one user per row, columns named by feature; the output keeps the order. A few
requests are under way at any time, and only the rows around them are in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cascade.client import AsyncRecommender, InvalidInput, Recommendation
from cascade.errors import need, run
from cascade.layout import User
from clients.options import UsageError, add_connection, connection, positive
from clients.parquet import AnswerFile, UserFile, arrow

Outcome = Recommendation | str
"""What the server recommends for a row, or why it was rejected."""

Ask = Callable[[Sequence[User]], Awaitable[list[Recommendation]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all rows answered (or --allow-errors), 1 not, 2 wrong usage, 130 stopped."""
    options = _parser().parse_args(arguments)
    rows, refused = asyncio.run(_answer_file(options))
    print(f"{options.output}: {rows} rows, {refused} refused", file=sys.stderr)
    if refused and not options.allow_errors:
        print("the column `error` says why; --allow-errors accepts this", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clients.batch",
        description="Ask the cascade for the ten best items for every row of a Parquet file.",
    )
    add = parser.add_argument
    add("input", type=Path, help="Parquet file, columns named by feature")
    add("output", type=Path, help="Parquet file to write, or to replace")
    add(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN",
        help="hand this column of the input through; may be repeated",
    )
    add("--concurrency", type=positive, default=8, help="requests under way (%(default)s)")
    add("--batch-size", type=positive, default=32, help="rows of a request (%(default)s)")
    add("--allow-errors", action="store_true", help="exit 0 even if rows were refused")
    add("--no-progress", action="store_true", help="show no progress bar")
    add_connection(parser, deadline_ms=30_000)
    return parser


async def _answer_file(options: argparse.Namespace) -> tuple[int, int]:
    """Returns the rows written and how many of them were refused."""
    arrow()  # before anything is asked of the server
    tqdm = need("tqdm", "clients.batch", "batch").tqdm if not options.no_progress else None
    _check_paths(options.input, options.output)
    refused = 0
    async with AsyncRecommender(**connection(options)) as recommender:
        users = UserFile(options.input, await recommender.layout(), options.keep)
        if users.absent:
            print(f"no such column, sent as missing: {', '.join(users.absent)}", file=sys.stderr)
        found = in_order(
            recommender.recommend_many, users.batches(options.batch_size), options.concurrency
        )
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=users.rows, unit=" rows")) if tqdm else None
            output = stack.enter_context(AnswerFile(options.output, users.kept))
            async with contextlib.aclosing(found):
                async for kept, answers in found:
                    output.write(kept, answers)
                    refused += sum(isinstance(answer, str) for answer in answers)
                    if bar is not None:
                        bar.update(len(answers))
    return users.rows, refused


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
    """Answer the batches, `concurrency` at a time, in the order in which they come.

    Args:
        ask: recommends for several users, as `AsyncRecommender.recommend_many` does.
        batches: users, and something that is handed through with their answers.

    Yields:
        What was handed through, and one answer per user.
    """
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
