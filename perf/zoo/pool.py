"""Jobs in processes of one thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from tqdm import tqdm

AT_ONCE = 2
Job = TypeVar("Job")
Found = TypeVar("Found")


def done(
    work: Callable[[Job], Found], jobs: Sequence[Job], what: str
) -> Iterator[tuple[Job, Found]]:
    """Run jobs, `AT_ONCE` at a time; -> each with what came of it, as they end."""
    context: Any = get_context(
        "spawn"
    )  # a fork would inherit the threads of libraries half-started
    with (
        ProcessPoolExecutor(AT_ONCE, context, _one_thread) as pool,
        tqdm(total=len(jobs), desc=what, unit=" models") as bar,
    ):
        asked: dict[Future[Found], Job] = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(asked):
            yield asked[future], future.result()
            bar.update()


def _one_thread() -> None:
    torch.set_num_threads(1)
