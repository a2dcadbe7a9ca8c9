"""`python -m clients.batch in.parquet out.parquet`: recommendations for every row of a file, in its
order. A few requests are under way at any time, and only the rows around them are in memory."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cascade.client import AsyncRecommender, InvalidInput, Recommendation
from cascade.errors import need, run
from cascade.layout import RequestLayout, User
from cascade.values import unknown_name
from clients.options import UsageError, add_connection, connection, positive

GROUP_ROWS = 16_384  # of the output, in memory before they are written as one row group
RESULT_COLUMNS = ("item_ids", "scores", "error")

Outcome = Recommendation | str
"""What the server recommends for a row, or why it was rejected."""

Write = Callable[[Any, Sequence[Outcome]], None]
"""Appends rows: the kept columns, and an answer or the text of an error for each."""

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
    kept = "hand this column of the input through; may be repeated"
    add("--keep", action="append", default=[], metavar="COLUMN", help=kept)
    add("--concurrency", type=positive, default=8, help="requests under way (%(default)s)")
    add("--batch-size", type=positive, default=32, help="rows of a request (%(default)s)")
    add("--allow-errors", action="store_true", help="exit 0 even if rows were refused")
    add("--no-progress", action="store_true", help="show no progress bar")
    add_connection(parser, deadline_ms=30_000)
    return parser


async def _answer_file(options: argparse.Namespace) -> tuple[int, int]:
    """Returns the rows written and how many of them were refused."""
    arrow()  # before anything is asked of the server
    tqdm = need("tqdm", "clients.batch", "batch").tqdm
    _check_paths(options.input, options.output)
    refused = 0
    async with AsyncRecommender(**connection(options)) as recommender:
        users = UserFile(options.input, await recommender.layout(), options.keep)
        if users.absent:
            print(f"no such column, sent as missing: {', '.join(users.absent)}", file=sys.stderr)
        found = in_order(
            recommender.recommend_many, users.batches(options.batch_size), options.concurrency
        )
        with (
            tqdm(total=users.rows, unit=" rows", disable=options.no_progress) as bar,
            answer_file(options.output, users.kept) as write,
        ):
            async with contextlib.aclosing(found):
                async for kept, answers in found:
                    write(kept, answers)
                    refused += sum(isinstance(answer, str) for answer in answers)
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


def arrow() -> tuple[Any, ...]:
    """pyarrow and pyarrow.parquet. Raises MissingPackage: they are not installed."""
    return tuple(need(name, "clients.batch", "batch") for name in ("pyarrow", "pyarrow.parquet"))


class UserFile:
    """A Parquet file with one user per row, columns named by feature, of which `keep` are handed
    through. Raises InvalidInput, UsageError: not Parquet, no feature, or no such column."""

    def __init__(self, path: Path, layout: RequestLayout, keep: Sequence[str]) -> None:
        pyarrow, parquet = arrow()
        try:
            self._file = parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise UsageError(f"{path} is not a Parquet file: {error}") from error
        schema = self._file.schema_arrow
        self.features, self.absent = layout.of_columns(schema.names, str(path))
        for name in keep:
            if name not in schema.names:
                raise UsageError(f"{path}: --keep: {unknown_name('column', name, schema.names)}")
            if name in RESULT_COLUMNS:
                raise UsageError(f"--keep {name}: the output has a column of this name; rename it")
        self.kept = [schema.field(name) for name in dict.fromkeys(keep)]
        self.rows: int = self._file.metadata.num_rows

    def batches(self, size: int) -> Iterator[tuple[list[dict[str, Any]], Any]]:
        """Up to `size` users at a time, and their kept columns as a table."""
        kept = [field.name for field in self.kept]
        columns = list(dict.fromkeys([*self.features, *kept]))
        for batch in self._file.iter_batches(batch_size=size, columns=columns):
            yield batch.select(self.features).to_pylist(), batch.select(kept)


@contextlib.contextmanager
def answer_file(path: Path, kept: Sequence[Any]) -> Iterator[Write]:
    """The output: kept columns, `item_ids` list<int64>, `scores` list<float32> and `error`, which
    is null where there is an answer. When the `with` block ends without an exception, the file
    replaces its target, so that a reader never sees half a file."""
    pyarrow, parquet = arrow()
    numbers = pyarrow.list_(pyarrow.int64()), pyarrow.list_(pyarrow.float32())
    types = dict(zip(RESULT_COLUMNS, (*numbers, pyarrow.string()), strict=True))
    schema = pyarrow.schema([*kept, *types.items()])
    waiting: list[Any] = []

    def write(kept: Any, answers: Sequence[Outcome]) -> None:
        found = [answer if isinstance(answer, Recommendation) else None for answer in answers]
        values = {
            "item_ids": [answer and answer.item_ids for answer in found],
            "scores": [answer and answer.scores for answer in found],
            "error": [answer if isinstance(answer, str) else None for answer in answers],
        }
        columns = [pyarrow.array(values[name], kind) for name, kind in types.items()]
        waiting.append(pyarrow.RecordBatch.from_arrays([*kept.columns, *columns], schema=schema))
        if sum(map(len, waiting)) >= GROUP_ROWS:
            flush()

    def flush() -> None:
        file.write_table(pyarrow.Table.from_batches(waiting, schema).combine_chunks())
        waiting.clear()

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with parquet.ParquetWriter(partial, schema) as file:
            yield write
            if waiting:
                flush()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)
