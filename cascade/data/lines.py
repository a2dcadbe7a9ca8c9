"""Large text files, plain or gzip, as blocks of whole lines with their line numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cascade.data.source import DataError

BLOCK_BYTES = 16 << 20  # about 70,000 rows of Criteo: enough to parse columns in parallel
GZIP_MAGIC = b"\x1f\x8b"


def line_count(path: Path) -> int:
    """Lines of a file; the last one counts with or without its line feed.

    Raises:
        DataError: the file is empty or cannot be unpacked.
    """
    lines, last = 0, b"\n"
    for block in _raw_blocks(path):
        lines += block.count(b"\n")
        last = block[-1:]
    return lines + (last != b"\n")


def blocks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines [start, stop), counted from 0, in blocks.

    Yields:
        the number of a block's first line, counted from 1, and its lines.

    Raises:
        DataError: the file is empty, cannot be unpacked or has no lines.
    """
    line = 0
    for block in _line_blocks(path):
        count = lines_in(block)
        first, last = max(0, start - line), count if stop is None else min(count, stop - line)
        if first < last:
            yield line + first + 1, _cut(block, first, last, count)
        line += count
        if stop is not None and line >= stop:
            return


def lines_in(block: bytes) -> int:
    """Lines of a block whose last line may lack its line feed."""
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _cut(block: bytes, first: int, last: int, count: int) -> bytes:
    if first == 0 and last == count:
        return block
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    return block[ends[first - 1] if first else 0 : ends[last - 1] if last < count else None]


def _line_blocks(path: Path) -> Iterator[bytes]:
    rest = b""
    for raw in _raw_blocks(path):
        end = raw.rfind(b"\n") + 1
        if end:
            yield rest + raw[:end]
            rest = raw[end:]
        else:
            rest += raw
        if len(rest) > 2 * BLOCK_BYTES:
            raise DataError(
                f"{path}: a line of more than {len(rest):,} bytes came; this is not a text file "
                "of rows"
            )
    if rest:
        yield rest


def _raw_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    done = 0
    with pa.input_stream(str(path), compression="gzip" if packed else None) as stream:
        while True:
            try:
                block: bytes = stream.read(BLOCK_BYTES)
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be unpacked beyond byte {done:,} of its content: {error}. "
                    "Fetch the file again"
                ) from error
            if not block:
                break
            done += len(block)
            yield block
    if not done:
        raise DataError(f"{path} is empty")
