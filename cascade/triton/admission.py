"""Refuses requests where too many wait.

Triton's queue policies are for that; but where a model has one, server 2.51 does not wake its
batcher for a request that comes while all processes are busy, and leaves it for up to half a second
when nobody else comes. So it is the process that computes which asks the server how many requests
wait, a few times a second and only while there is more to do than it can do at once. It refuses
what is too much from the head of the queue: who has waited longest is the likeliest to have gone.

What a pause of the machine leaves behind is worked off, not refused: too much is what was so at two
looks, with full batches in between.
"""

from __future__ import annotations

import http.client
import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

AGAIN = "ask again later"  # what somebody who is refused is told
VARIABLE = "CASCADE_METRICS_URL"
LOOK_S = 0.05
TIMEOUT_S = 0.5
BLIND_S = 10.0  # until the next try where the server did not answer


class Waiting:
    """The requests that wait for one version of a model.

    Args:
        most: users that may wait; 0 = any number.
        processes: of the model, which share what there is to refuse.
        full: users of a batch beside which more may be waiting.
        url: of the server's metrics; empty: nobody can tell, and nothing is refused.
    """

    def __init__(
        self, model: str, version: int, most: int, processes: int, full: int, url: str | None = None
    ) -> None:
        url = os.environ.get(VARIABLE, "") if url is None else url
        where = urlsplit(url)
        self.most = most
        gauge = f'nv_inference_pending_request_count{{model="{model}",version="{version}"}} '
        self._gauge = re.compile(re.escape(gauge).encode() + rb"(\d+)")
        self._processes, self._full, self._path = processes, full, where.path
        self._server = None
        if most and where.hostname:
            self._server = http.client.HTTPConnection(where.hostname, where.port, timeout=TIMEOUT_S)
        self._next_s, self._seen, self._surplus = 0.0, 0, 0

    @classmethod
    def of(cls, config: Mapping[str, Any], release: int, most: int) -> Waiting:
        """For the model of this configuration, as Triton hands it to a process."""
        preferred = config.get("dynamic_batching", {}).get("preferred_batch_size")
        processes = sum(int(group["count"]) for group in config.get("instance_group", ()))
        full = min(map(int, preferred or [config["max_batch_size"]]))
        return cls(config["name"], release, most, max(1, processes), full)

    def refuses(self, requests: int) -> bool:
        """Whether so many that the server hands over are too many."""
        if self._surplus <= 0:
            return False
        self._surplus -= requests
        return True

    def look(self, users: int, requests: int) -> None:
        """After a batch of so many users in so many requests: find out how many wait. The server
        counts requests; they are taken to have as many users each as those of the batch."""
        if users < self._full:
            self._seen = 0
            return
        now = time.monotonic()
        if self._server is not None and now >= self._next_s:
            self._next_s = now + LOOK_S
            most = max(1, self.most * requests // users)
            before, self._seen = self._seen, self._count(self._server) - most
            self._surplus = min(before, self._seen) // self._processes

    def _count(self, server: http.client.HTTPConnection) -> int:
        for _ in range(2):  # the server may have closed the connection since the last look
            try:
                server.request("GET", self._path)
                page = server.getresponse().read()
            except (OSError, http.client.HTTPException):
                server.close()
                continue
            found = self._gauge.search(page)
            return int(found[1]) if found else 0
        self._next_s += BLIND_S
        return 0
