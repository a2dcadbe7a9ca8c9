"""Admission: refuses requests when too many wait.

Triton's queue policies are made for that; but with one, server 2.51 does not wake its batcher for a
request that comes while all processes are busy, and leaves it for up to half a second if no other
request comes. So the process that computes asks the server how many requests wait, a few times a
second and only while there is more work than it can do at once. It refuses the excess from the head
of the queue: the client of the oldest request is the likeliest to have given up.

A queue that a pause of the machine left behind is worked off, not refused: the excess must show at
two looks with full batches in between.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

AGAIN = "ask again later"  # part of the message of a refusal
VARIABLE = "CASCADE_METRICS_URL"
LOOK_S = 0.05
TIMEOUT_S = 0.5
BLIND_S = 10.0  # until the next try if the server did not answer
LOG = logging.getLogger(__name__)


class Admission:
    """Decides which requests of one version of a model are refused.

    Args:
        most: users that may wait; 0 = any number.
        processes: of the model, which share the excess among them.
        full: users of a full batch; while batches are smaller, no requests wait.
        url: of the server's metrics; empty: nothing is refused.
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
        self._url, self._blind = url, False
        self._next_s, self._seen, self._surplus = 0.0, 0, 0

    @classmethod
    def of(cls, config: Mapping[str, Any], release: int, most: int) -> Admission:
        """For the model of this configuration, as Triton passes it to a process."""
        preferred = config.get("dynamic_batching", {}).get("preferred_batch_size")
        processes = sum(int(group["count"]) for group in config.get("instance_group", ()))
        full = min(map(int, preferred or [config["max_batch_size"]]))
        return cls(config["name"], release, most, max(1, processes), full)

    def refuses(self, requests: int) -> bool:
        """Whether a batch of so many requests is to be refused."""
        if self._surplus <= 0:
            return False
        self._surplus -= requests
        return True

    def look(self, users: int, requests: int) -> None:
        """After a batch of so many users in so many requests: find out how many wait. The server
        counts requests; each is taken to have as many users as those of the batch."""
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
            self._tell(False)
            found = self._gauge.search(page)
            return int(found[1]) if found else 0
        self._next_s += BLIND_S
        self._tell(True)
        return 0

    def _tell(self, blind: bool) -> None:
        """Log that the limit is not in force, and when it is again: refusing every request, because
        their number is unknown, would stop a server that may have room."""
        if blind and not self._blind:
            LOG.warning("no metrics at %s: the limit of %d users is off", self._url, self.most)
        elif self._blind and not blind:
            LOG.warning("metrics at %s again: the limit of %d users is on", self._url, self.most)
        self._blind = blind
