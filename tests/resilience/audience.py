"""`python -m tests.resilience.audience`: clients that ask all the time and check every answer.

They run in a process of their own, so that what the other side does takes nothing from them but
the processor. Each waits for its answer before it asks again. An answer is right where it is what
the release that it names would have said in process; which of the exports a release came from is
its number modulo their count.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cascade.client import Recommender, RecommendError, Retry
from cascade.client.layout import User

SLACK = 1e-4
DEADLINE_S = 10.0
READY = "asking"


@dataclass(frozen=True, eq=False)
class Trace:
    """What came of every request: when it was sent and answered (ns, monotonic), the release that
    the answer names (0: there was none), and whether it is what that release says."""

    sent_ns: npt.NDArray[np.int64]
    answered_ns: npt.NDArray[np.int64]
    release: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]

    @property
    def failed(self) -> int:
        return int((self.release == 0).sum())

    @property
    def mixed(self) -> int:
        """Answers that came, and are of no release."""
        return int(((self.release > 0) & ~self.right).sum())

    def p99_ms(self, start_ns: int, stop_ns: int) -> float:
        """Of the requests that were sent in this time."""
        some = (self.sent_ns >= start_ns) & (self.sent_ns < stop_ns)
        return float(np.percentile((self.answered_ns - self.sent_ns)[some], 99)) / 1e6


class Audience:
    """The clients as a process of their own, in a `with` block; afterwards there is a `trace`.

    Args:
        url: of the server.
        users: JSON lines.
        expected: .npz of item_ids and scores, [exports, users, R] each.
        out: file for the trace.
    """

    def __init__(
        self, url: str, users: Path, expected: Path, out: Path, concurrency: int = 8
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "tests.resilience.audience", "--url", url),
            *("--users", str(users), "--expected", str(expected), "--out", str(out)),
            *("--concurrency", str(concurrency)),
        ]
        self._out = out

    def __enter__(self) -> Audience:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != READY:
            raise SystemExit("the clients did not start: see above")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    @property
    def trace(self) -> Trace:
        with np.load(self._out) as found:
            return Trace(*(found[name] for name in ("sent_ns", "answered_ns", "release", "right")))


class Asker(threading.Thread):
    """One client."""

    def __init__(
        self,
        url: str,
        users: list[User],
        scores: npt.NDArray[np.float32],
        first: int,
        over: threading.Event,
    ) -> None:
        super().__init__()
        self.rows: list[tuple[int, int, int, bool]] = []
        self._url, self._users, self._scores = url, users, scores
        self._turn, self._over = first, over

    def run(self) -> None:
        """Ask until it is over."""
        with Recommender(self._url, deadline_s=DEADLINE_S, retry=Retry(tries=1)) as client:
            while not self._over.is_set():
                user = self._turn % len(self._users)
                self._turn += 1
                sent = time.monotonic_ns()
                release, right = 0, False
                try:
                    answer = client.recommend(self._users[user])
                except RecommendError as error:
                    print(f"failed: {error}", file=sys.stderr, flush=True)
                else:
                    release = answer.release or 0
                    expected = self._scores[release % len(self._scores), user]
                    right = len(answer.scores) == len(expected) and bool(
                        np.abs(answer.scores - expected).max(initial=0) <= SLACK
                    )
                self.rows.append((sent, time.monotonic_ns(), release, right))


def main() -> None:
    """The command line; SIGTERM ends it in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--expected", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, default=8)
    options = parser.parse_args()
    with np.load(options.expected) as found:
        scores = found["scores"]
    users = [json.loads(line) for line in options.users.open()][: scores.shape[1]]
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    step = max(1, len(users) // options.concurrency)
    askers = [Asker(options.url, users, scores, i * step, over) for i in range(options.concurrency)]
    for asker in askers:
        asker.start()
    print(READY, flush=True)
    over.wait()
    for asker in askers:
        asker.join()
    rows = np.array(sorted(row for asker in askers for row in asker.rows), np.int64).reshape(-1, 4)
    np.savez(
        options.out,
        sent_ns=rows[:, 0],
        answered_ns=rows[:, 1],
        release=rows[:, 2],
        right=rows[:, 3].astype(bool),
    )


if __name__ == "__main__":
    main()
