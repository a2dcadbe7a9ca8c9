"""A publisher in a process of its own, which a test kills. It imports no PyTorch: that would take
longer than the release."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

from cascade.server import security
from export.releases.control import Control
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export

LATE_S = 30.0


def publish(said: Connection, root: Path, url: str, key: str, source: Path) -> None:
    """Publish the export in `source`, and wait to be killed: each step goes into `said`, such as
    "[3/9] check", and on a busy machine the kill of a short one comes after it."""
    control = Control(url, security.headers(key))
    Publisher(Repository(root), control, say=said.send).publish(from_export(source))
    time.sleep(LATE_S)
