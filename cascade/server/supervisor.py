"""Keeps a server answering, or ends it.

Server 2.51 calls itself live and ready while a Python process of it is dead, and while nothing that
is asked gets an answer. So the supervisor asks, as a client does: a canary a second, through the
whole cascade. It looks at the processes, too, because a dead one among several that live fails
some requests only, which a canary may miss.

What it does:

- a process has died: its model is loaded again; beside the old one, which goes on with its other
  processes, where it has others, and in its place where not. An ensemble leaves and comes back with
  its members by itself;
- several canaries in a row fail: all models are unloaded and loaded again;
- the server itself has crashed, as it does when a process dies that holds one of its locks: it is
  started again, on the same ports;
- that does not help: it gives up, and whoever runs the server starts another.

One failed canary is nothing: a publisher may be switching releases. A canary that is refused for
want of room is sent again, and does not count if it is refused to the end, nor does one that waits
too long while others are answered: such a cascade is busy, not broken, and to reload a model that
is overloaded loses what it could have answered.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Set
from concurrent.futures import Future, ThreadPoolExecutor

from google.protobuf import json_format, text_format
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException

from cascade.server import probe, workers
from cascade.server.launcher import Server, ServerError
from cascade.server.workers import Stub
from cascade.spec import ENSEMBLE
from cascade.triton.admission import AGAIN

GLANCE_S = 0.2  # between looks at the processes
CANARY_S = 1.0  # between canaries
CANARY_TIMEOUT_S = 2.0
PATIENCE = 3  # canaries in a row that may fail
CRASH_S = 5.0  # it may take, and to write about it
RETIREMENT_S = 5.0  # for what is under way in a process that others have replaced
RELOADS = 2  # without an answer in between, then it gives up
RESTARTS = 3  # in its life


def say(event: str, **facts: object) -> None:
    """One JSON line on stderr."""
    line = {"time": round(time.time(), 3), "source": "supervisor", "event": event, **facts}
    print(json.dumps(line), file=sys.stderr, flush=True)


class Supervisor:
    """Watches one server.

    Args:
        server: has been started.
        tell: is told of what happens.
    """

    def __init__(self, server: Server, tell: Callable[..., None] = say) -> None:
        self._server = server
        self._tell = tell
        self._restarts = 0
        self._forget()

    def _forget(self) -> None:
        """What is known is of a server that is gone."""
        self._known: set[Stub] = set()
        self._suspected: set[Stub] = set()
        self._replaced: dict[Stub, float] = {}
        self._failures = self._reloads = 0

    def watch(self) -> int | None:
        """Until the server ends by itself: its exit code; None when it was cancelled.

        Raises:
            ServerError: it does not answer, and neither reloading nor another start helped.
        """
        while (code := self._watch()) is not None and code < 0 and self._restarts < RESTARTS:
            self._restarts += 1
            self._restart(code)
        return code

    def _restart(self, code: int) -> None:
        self._tell("server died", signal=-code, log=self._server.log_excerpt())
        start = time.monotonic()
        self._forget()
        self._server.stop()
        self._server.start()
        self._tell("restarted", pid=self._server.pid, seconds=round(time.monotonic() - start, 3))

    def _watch(self) -> int | None:
        next_canary, canary = 0.0, None
        with self._server.connect() as client, ThreadPoolExecutor(1) as pool:
            while (code := self._server.poll()) is None and not self._server.cancelled:
                self._retire()
                if self._bury(client):
                    canary = None  # it was sent before
                if canary is not None and canary.done():
                    self._judge(client, canary)
                    canary = None
                if canary is None and time.monotonic() >= next_canary:
                    canary = self._send(client, pool)
                    next_canary = time.monotonic() + CANARY_S
                # It must not block for long: the kernel may hand a signal to one of gRPC's threads,
                # and then nothing wakes this one up to run Python's handler.
                time.sleep(GLANCE_S)
        return code

    def _send(
        self, client: grpc.InferenceServerClient, pool: ThreadPoolExecutor
    ) -> Future[bool] | None:
        self._known |= workers.alive(self._server.name)
        if self._server.probe is None:
            return None
        return pool.submit(_answers, client, self._server.probe)

    def _bury(self, client: grpc.InferenceServerClient) -> bool:
        """Reload the models of processes that were dead at the last look and still are: one whose
        model is being unloaded may fail in the end. Returns whether there were any."""
        dead = {stub for stub in self._known if stub.dead}
        certain, self._suspected = dead & self._suspected, dead - self._suspected
        self._known = {s for s in self._known if not s.gone} - certain
        if certain:
            models = {stub.model for stub in certain}
            pids = sorted(stub.pid for stub in certain)
            self._tell("process died", models=sorted(models), pids=pids)
            self._reload(client, models, beside={stub.model for stub in self._known - dead})
        return bool(certain)

    def _retire(self) -> None:
        """End processes that others have replaced. Server 2.51 does it by itself, unless one of
        the model's processes hangs or has lost a request: then it waits for ever."""
        for stub, at in list(self._replaced.items()):
            if stub.gone or time.monotonic() > at:
                del self._replaced[stub]
                self._known.discard(stub)
                if not stub.gone:
                    os.kill(stub.pid, signal.SIGKILL)  # at worst a zombie, whom it does nothing

    def _judge(self, client: grpc.InferenceServerClient, canary: Future[bool]) -> None:
        error = canary.exception()
        if error is None:
            if canary.result():
                self._failures = self._reloads = 0
            return
        self._failures += 1
        self._tell("canary failed", error=str(error), in_a_row=self._failures)
        if self._failures < PATIENCE:
            return
        if self._reloads == RELOADS:
            raise ServerError(
                f"model {self._server.probe!r} does not answer ({error}), and reloading all models "
                f"{RELOADS} times did not help:\n{self._server.log_excerpt()}"
            )
        self._reloads += 1
        self._reload(client, None, beside=set())

    def _reload(
        self, client: grpc.InferenceServerClient, models: Set[str] | None, beside: Set[str]
    ) -> None:
        """Load models with what is on disk now; None = all that are loaded, and the one that does
        not answer.

        Server 2.51 takes a model whose process died for loaded: it is unloaded first, or, where
        others of its processes live (`beside`), given a configuration that differs.

        Raises:
            ServerError: one cannot be loaded.
        """
        limits = {
            "headers": self._server.control_headers,
            "client_timeout": self._server.startup_timeout_s,
        }
        start = time.monotonic()
        try:
            if models is None:
                index = client.get_model_repository_index(**limits).models
                models = {m.name for m in index if m.state == "READY"} | {str(self._server.probe)}
            old = {stub for stub in self._known if stub.model in models}
            for model in models - beside:
                client.unload_model(model, **limits)
            # What is made of others comes after them.
            for model in sorted(models, key=lambda model: (model == ENSEMBLE, model)):
                config = self._differing(model) if model in beside else None
                client.load_model(model, config=config, **limits)
        except InferenceServerException as error:
            if error.status() == "StatusCode.UNAVAILABLE" and self._crashes():
                return
            raise ServerError(
                f"a model cannot be loaded again: {error.message()}\n{self._server.log_excerpt()}"
            ) from error
        self._failures = 0
        self._replaced |= dict.fromkeys(old, time.monotonic() + RETIREMENT_S)
        self._tell("reloaded", models=sorted(models), seconds=round(time.monotonic() - start, 3))

    def _crashes(self) -> bool:
        """Whether the server is about to end: it closes its connections first."""
        deadline = time.monotonic() + CRASH_S
        while time.monotonic() < deadline and self._server.poll() is None:
            time.sleep(GLANCE_S)
        return self._server.poll() is not None

    def _differing(self, model: str) -> str:
        """The configuration on disk, as JSON, with a parameter that nobody reads."""
        path = self._server.repository / model / "config.pbtxt"
        config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        config.parameters["reloaded"].string_value = str(time.time_ns())
        return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def _answers(client: grpc.InferenceServerClient, model: str) -> bool:
    """Send a canary -> whether it was answered. It was not, but the model is well, where it is too
    busy for it.

    Raises:
        InferenceServerException, ProbeError: the model does not answer, or wrongly.
    """
    before = _answered(client, model)
    try:
        probe.insist(client, model, CANARY_TIMEOUT_S)
    except InferenceServerException as error:
        late = error.status() == "StatusCode.DEADLINE_EXCEEDED"
        if AGAIN in str(error) or (late and _answered(client, model) > before):
            return False
        raise
    return True


def _answered(client: grpc.InferenceServerClient, model: str) -> int:
    """How many requests the model has answered since it was loaded; 0 where nobody can tell."""
    try:
        found = client.get_inference_statistics(model, client_timeout=CANARY_TIMEOUT_S)
    except InferenceServerException:
        return 0
    return sum(version.inference_stats.success.count for version in found.model_stats)
