"""Spares callers a server that is gone: after a few failures nobody asks it for a while.

The circuit breaker of M. Nygard, "Release It!" (2007): closed while all is well; open after
`failures` in a row; when a pause is over, one caller tries whether it is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Says who may try. For one thread, as the stages are.

    Args:
        failures: so many in a row open it.
        pause_s: how long nobody tries then.
        clock: seconds on a monotonic clock.
    """

    def __init__(
        self,
        failures: int = 3,
        pause_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1 or pause_s < 0:
            raise ValueError(f"{failures} failures and a pause of {pause_s} s make no breaker")
        self._most, self._pause_s, self._clock = failures, pause_s, clock
        self._failed = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether callers are being spared."""
        return self._failed >= self._most

    def allows(self) -> bool:
        """Whether to try now. Who is allowed says how it went."""
        return not self.open or self._clock() >= self._until

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self) -> None:
        self._failed += 1
        self._until = self._clock() + self._pause_s
