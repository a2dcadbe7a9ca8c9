"""Keeps a server answering, or ends it.

Server 2.51 reports itself live and ready while a Python process of it is dead, and while no request
gets an answer. So the supervisor sends a canary a second through the whole cascade, and looks at
the processes: a dead one among several fails some requests only, which a canary may miss.

- When a process has died, the supervisor loads its model again: beside the old one where that has
  other processes, else in its place. An ensemble leaves and comes back with its members.
- When several canaries in a row fail, it unloads all models and loads them again.
- When the server crashed, as it does when a process dies that holds one of its locks, or answers
  nothing at all, not even that it lives, the supervisor starts it again, on the same ports.
- When that does not help, it gives up; what runs the launcher starts another.

One failed canary changes nothing: a publisher may be switching releases. A canary does not count
when it is rejected to the end because queues are full, or times out while other requests are
answered: such a cascade is overloaded, and a reload would lose what it could have answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
from google.protobuf import json_format
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade import pbtxt
from cascade.client.errors import DEADLINE_EXCEEDED, UNAVAILABLE
from cascade.server import cleanup, probe, starved, workers
from cascade.server.cleanup import RunFolderError
from cascade.server.launcher import Server
from cascade.server.surroundings import Surroundings
from cascade.server.workers import Worker
from cascade.spec import ENSEMBLE
from cascade.telling import tell
from cascade.triton.admission import AGAIN

LOOK_S = 0.2  # between looks at the processes
UPDATE_S = 0.5  # between looks at a repository that the server has a copy of
CANARY_S = 1.0  # between canaries
CANARY_TIMEOUT_S = 2.0
FAILED_CANARIES = 3  # in a row, before a reload
CRASH_S = 5.0  # for a crash, and for writing about it
DRAIN_S = 5.0  # for requests in a process that others have replaced
RELOADS = 2  # without an answer in between, before the supervisor gives up
RESTARTS, RESTARTS_S = 3, 3600.0  # of the server, in so many seconds


def log_event(log: Path, event: str, /, **facts: object) -> None:
    """Write one JSON line to stderr, or where that takes none now, to the end of the server's log;
    the work does not wait for either."""
    line = {"time": round(time.time(), 3), "source": "supervisor", "event": event, **facts}
    text = json.dumps(line) + "\n"
    if not tell(text) and log.is_file():
        with suppress(OSError), log.open("a") as file:
            tell(text, file)


class Supervisor:
    """Watches one server, which has been started; `report` is called with every event, by default
    one that writes it as `log_event` does."""

    def __init__(self, server: Server, report: Callable[..., None] | None = None) -> None:
        self._server = server
        self._report = report or self._log_event
        self._surroundings = Surroundings()
        self._restarts: list[float] = []  # when, in seconds of the monotonic clock
        self._problem = ""  # with the files of the run folder
        self._refused: dict[str, str] = {}  # see `TrustedCopy.update`
        self._reset()

    def _reset(self) -> None:
        self._known: set[Worker] = set()
        self._suspected: set[Worker] = set()  # dead at the last look
        self._replaced: dict[Worker, float] = {}  # and when to kill them
        self._failures = self._reloads = 0

    def watch(self) -> int | None:
        """Returns when the server ends by itself: its exit code; None when it was cancelled. Raises
        ServerError if it does not answer, and neither reloading nor another start helped."""
        while (code := self._watch()) is not None and code < 0 and self._may_restart():
            self._report("server died", signal=-code, log=self._server.log_excerpt())
            start = time.monotonic()
            self._reset()
            self._server.stop()
            self._server.start()
            self._report("restarted", pid=self._server.pid, seconds=_since(start))
        return code

    def _may_restart(self) -> bool:
        """Count a restart, unless there were too many lately."""
        now_s = time.monotonic()
        self._restarts = [at_s for at_s in self._restarts if at_s > now_s - RESTARTS_S] + [now_s]
        return len(self._restarts) <= RESTARTS

    def _watch(self) -> int | None:
        next_canary, canary, next_update, update = 0.0, None, 0.0, None
        with self._server.connect() as client, ThreadPoolExecutor(2) as pool:
            while (code := self._server.poll()) is None and not self._server.cancelled:
                self._restore_files()
                self._look_around()
                cleanup.hide_segments(self._server.name)  # of what was loaded since
                if self._server.trusted is not None and time.monotonic() >= next_update:
                    if update is None or update.done():
                        self._on_update(client, update)
                        update = pool.submit(self._server.trusted.update)
                    next_update = time.monotonic() + UPDATE_S
                self._kill_replaced()
                if self._reload_dead(client):
                    canary = None  # sent before the reload
                if canary is not None and canary.done():
                    self._on_canary(client, canary)
                    canary = None
                if canary is None and time.monotonic() >= next_canary:
                    self._known |= workers.alive(self._server.name)
                    if self._server.probe is not None:
                        canary = pool.submit(_answers, client, self._server.probe)
                    next_canary = time.monotonic() + CANARY_S
                time.sleep(LOOK_S)  # short: a signal to a thread of gRPC does not wake this one
        return code

    def _restore_files(self) -> None:
        """Before they are needed. Raises RunFolderError: others could write what runs next."""
        problem = ""
        try:
            if self._server.restore_files():
                self._report("files restored", folder=str(cleanup.run_folder()))
        except RunFolderError:
            raise
        except OSError as error:
            problem = str(error)
        if problem not in ("", self._problem):
            self._report("files not restored", error=problem)
        self._problem = problem

    def _look_around(self) -> None:
        log = self._server.log_path
        places = (*([log] if log.is_file() else ()), cleanup.SHARED_MEMORY)
        for event, facts in self._surroundings.changes(places):
            self._report(event, **facts)

    def _log_event(self, event: str, /, **facts: object) -> None:
        log_event(self._server.log_path, event, **facts)

    def _on_update(
        self, client: grpc.InferenceServerClient, update: Future[dict[str, str]] | None
    ) -> None:
        """Load what changed in the copy of the repository, and report what stays out of it."""
        if update is None or self._server.trusted is None:
            return
        try:
            refused = update.result()
        except Exception as error:  # whatever others write into the repository
            refused = {"": f"the repository cannot be followed: {error!r}"}
        for why in {*refused.values()} - {*self._refused.values()}:
            self._report("not trusted", error=why)
        self._refused = refused
        changed, removed = self._server.trusted.changes()
        limits = {"headers": self._server.control_headers}
        try:
            # `recommend`, which says what is live, comes last.
            for model in sorted(changed, key=lambda m: (m.startswith(ENSEMBLE), m == ENSEMBLE, m)):
                starved.load(client, model, client_timeout=self._server.startup_timeout_s, **limits)
            for model in removed:
                client.unload_model(model, **limits)
        except InferenceServerException as error:
            self._report("not loaded", error=error.message())
        else:
            if changed | removed:
                self._report("followed", loaded=sorted(changed), unloaded=sorted(removed))

    def _reload_dead(self, client: grpc.InferenceServerClient) -> bool:
        """Reload the models of processes that were dead at the last look and still are: a process
        whose model is being unloaded may end with an error. Returns whether there were any."""
        dead = {worker for worker in self._known if worker.dead}
        certain, self._suspected = dead & self._suspected, dead - self._suspected
        self._known = {worker for worker in self._known if not worker.gone} - certain
        if certain:
            models = {worker.model for worker in certain}
            pids = sorted(worker.pid for worker in certain)
            self._report("process died", models=sorted(models), pids=pids)
            self._reload(client, models, beside={w.model for w in self._known - dead})
        return bool(certain)

    def _kill_replaced(self) -> None:
        """Server 2.51 ends replaced processes by itself, unless one of the model's processes hangs
        or has lost a request: then it waits for ever."""
        for worker, deadline in list(self._replaced.items()):
            if worker.gone or time.monotonic() > deadline:
                del self._replaced[worker]
                self._known.discard(worker)
                with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                    worker.process.kill()  # no effect on a zombie

    def _on_canary(self, client: grpc.InferenceServerClient, canary: Future[bool]) -> None:
        error = canary.exception()
        if error is None:
            if canary.result():
                self._failures = self._reloads = 0
            return
        self._failures += 1
        self._report("canary failed", error=str(error), in_a_row=self._failures)
        if self._failures < FAILED_CANARIES:
            return
        if self._reloads == RELOADS:
            raise self._server.failed(
                f"model {self._server.probe!r} does not answer ({error}), and reloading all models "
                f"{RELOADS} times did not help"
            )
        self._reloads += 1
        self._reload(client, None, beside=set())

    def _reload(
        self, client: grpc.InferenceServerClient, models: Set[str] | None, beside: Set[str]
    ) -> None:
        """Load models from disk again; None = all that are loaded, and the canary's model.

        Server 2.51 takes a model whose process died for loaded: it is unloaded first, or, where
        others of its processes live (`beside`), given a configuration that differs.
        """
        timeout_s = self._server.startup_timeout_s
        limits = {"headers": self._server.control_headers, "client_timeout": timeout_s}
        start = time.monotonic()
        try:
            if models is None:
                index = client.get_model_repository_index(**limits).models
                models = {m.name for m in index if m.state == "READY"} | {str(self._server.probe)}
            old = {worker for worker in self._known if worker.model in models}
            for model in models - beside:
                client.unload_model(model, **limits)
            # The ensembles, which clients ask, come after their members.
            for model in sorted(models, key=lambda model: (model.startswith(ENSEMBLE), model)):
                config = self._differing_config(model) if model in beside else None
                starved.load(client, model, config=config, **limits)
        except InferenceServerException as error:
            if error.status() in (UNAVAILABLE, DEADLINE_EXCEEDED) and self._ends(client):
                return
            reason = f"a model cannot be loaded again: {error.message()}"
            if not (repository := self._server.repository).is_dir():
                reason += f", because {repository} is gone: restore it, and start again"
            raise self._server.failed(reason) from error
        self._failures = 0
        self._replaced |= dict.fromkeys(old, time.monotonic() + DRAIN_S)
        self._report("reloaded", models=sorted(models), seconds=_since(start))

    def _ends(self, client: grpc.InferenceServerClient) -> bool:
        """Whether the server is about to end, or hangs and is killed."""
        deadline = time.monotonic() + CRASH_S
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                return True
            time.sleep(LOOK_S)
        try:
            client.is_server_live(client_timeout=CANARY_TIMEOUT_S)
            return False
        except InferenceServerException as error:
            self._report("server hangs", error=error.message())
            psutil.Process(self._server.pid).kill()  # no effect on a zombie
            return True

    def _differing_config(self, model: str) -> str:
        """The configuration on disk, as JSON, with an additional parameter without effect."""
        config = pbtxt.read(self._server.served_from / model / "config.pbtxt")
        config.parameters["reloaded"].string_value = str(time.time_ns())
        return str(json_format.MessageToJson(config, preserving_proto_field_name=True))


def _answers(client: grpc.InferenceServerClient, model: str) -> bool:
    """Send a canary -> whether it was answered; False = the model is overloaded. Raises
    InferenceServerException or ProbeError where the model does not answer, or wrongly."""
    before = _answered(client, model)
    try:
        probe.ask_until_available(client, model, CANARY_TIMEOUT_S)
    except InferenceServerException as error:
        late = error.status() == DEADLINE_EXCEEDED
        if AGAIN in str(error) or (late and _answered(client, model) > before):
            return False
        raise
    return True


def _answered(client: grpc.InferenceServerClient, model: str) -> int:
    """How many requests the model, and all others that clients ask, have answered since they were
    loaded; 0 where that is unknown."""
    try:
        found = client.get_inference_statistics(client_timeout=CANARY_TIMEOUT_S).model_stats
    except InferenceServerException:
        return 0
    asked = [one for one in found if one.name == model or one.name.startswith(ENSEMBLE)]
    return sum(one.inference_stats.success.count for one in asked)


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)
