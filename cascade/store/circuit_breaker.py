"""A circuit breaker: after a few failures in a row, the store is not asked for a while.

After M. Nygard, "Release It!" (2007): closed while calls succeed; open after `failures` in a row;
when the pause is over, one call tries whether the store is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Decides whether to try. For one thread, as the stages are.

    Args:
        failures: so many in a row open it.
        pause_s: how long it then stays open.
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
        """Whether calls are being spared."""
        return self._failed >= self._most

    def allows(self) -> bool:
        """Whether to try now. After a try the caller reports `succeeded` or `failed`."""
        return not self.open or self._clock() >= self._until

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self) -> None:
        self._failed += 1
        self._until = self._clock() + self._pause_s
