"""The launcher with the real server: it answers, reports errors, and leaves nothing behind."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from cascade.server import (
    binaries,
    cleanup,
    probe,
    process,
    security,
    stalled,
    supervisor,
    threads,
    workers,
)
from cascade.server.binaries import BinaryError
from cascade.server.cleanup import remove_orphans
from cascade.server.launcher import Ports, Server, ServerError
from cascade.server.supervisor import Supervisor
from cascade.triton.admission import AGAIN
from tests.served import FREE_PORTS, serve

ROOT = Path(__file__).parents[2]
PYTHON = f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}"
PATIENCE_S = 60.0
ODD_NAMES = ("my models", "R&D (2024)", "it's", 'a "b"; c', "$HOME", "`id`", "josé", "城市")

CONFIG = """
backend: "python"
max_batch_size: 4
input [{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] },
       { name: "text" data_type: TYPE_STRING dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] },
        { name: "environment" data_type: TYPE_STRING dims: [ 3 ] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""
ECHO = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils
from cascade.spec import ENSEMBLE  # the package must be found from inside the server

class TritonPythonModel:
    def execute(self, requests):
        names = ("CASCADE_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        found = np.array([os.environ.get(n, "").encode() for n in names], object)
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("y", x),
                pb_utils.Tensor("environment", np.tile(found, (len(x), 1))),
            ]))
        return answers
"""
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the item state is missing:\\nexport the model again")
"""
FULL = f"""
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    answered = False
    def execute(self, requests):
        if self.answered:
            full = pb_utils.TritonError("{AGAIN}", pb_utils.TritonError.UNAVAILABLE)
            return [pb_utils.InferenceResponse(error=full) for _ in requests]
        self.answered = True
        x = pb_utils.get_input_tensor_by_name(requests[0], "x")
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x.as_numpy())])]
"""
BUSY = """
import time
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.05 * len(requests))
        tensors = (pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in tensors]
"""
WHERE = (
    ECHO
    + """
    def initialize(self, args):
        print("serves", args["model_repository"], flush=True)
"""
)
PATHS = (
    ECHO
    + """
    def initialize(self, args):
        from cascade.triton.utf8 import use_utf8
        use_utf8()
        found = os.path.dirname(os.path.dirname(np.__file__))
        print("paths:", found, os.environ["HOME_OF_A_TEST"], flush=True)
"""
)
SLOW = """
import time
class TritonPythonModel:
    def initialize(self, args):
        time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Servers started elsewhere on this machine are not this test's business."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    for state in cleanup.run_folder().glob("cascade_*.lock"):
        cleanup.remove(state.stem)


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[str], Path]:
    def make(source: str) -> Path:
        model = tmp_path / "repository" / "echo"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(CONFIG)
        (model / "1" / "model.py").write_text(source)
        return model.parent

    return make


def registered() -> list[str]:
    return sorted(path.stem for path in cleanup.run_folder().glob("cascade_*.lock"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def assert_nothing_left(name: str) -> None:
    assert cleanup.processes(name) == []
    assert cleanup.segments(name) == []
    assert not [path for path in cleanup.run_folder().iterdir() if name in path.name]


def reachable(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(url: str, x: list[list[float]]) -> grpc.InferResult:
    inputs = [
        grpc.InferInput("x", [len(x), 2], "FP32"),
        grpc.InferInput("text", [len(x), 1], "BYTES"),
    ]
    inputs[0].set_data_from_numpy(np.array(x, np.float32))
    inputs[1].set_data_from_numpy(np.full((len(x), 1), b"", object))
    with grpc.InferenceServerClient(url) as client:
        return client.infer("echo", inputs)


def test_a_server_answers_and_leaves_nothing(
    repository: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(ECHO)
    monkeypatch.chdir(tmp_path)  # the models find the package from anywhere
    with Server(folder, probe="echo") as server:
        result = ask(server.url, [[1, 2], [3, 4]])
        assert result.as_numpy("y").tolist() == [[1, 2], [3, 4]]
        bound = str(len(os.sched_getaffinity(0))).encode()
        assert result.as_numpy("environment").tolist() == [[bound] * 3] * 2
        assert server.version.startswith("2.")
        for port in (server.ports.http, server.ports.grpc, server.ports.metrics):
            assert reachable("127.0.0.1", port)
            assert not reachable("127.0.0.2", port)  # as it would be were all addresses bound
        name = server.name
        alive = cleanup.processes(name)
        assert server.pid in alive
        assert len(alive) == 2  # and one stub
        assert cleanup.segments(name)
        with pytest.raises(ServerError, match="has been started already"):
            server.start()
        with pytest.raises(ServerError, match=f"cannot listen on 127.0.0.1:{server.ports.http}"):
            Server(folder, ports=server.ports).start()
        with (
            grpc.InferenceServerClient(server.url) as client,
            pytest.raises(InferenceServerException, match="This protocol is restricted"),
        ):
            client.unload_model("echo")
    assert_nothing_left(name)
    assert server.stop() == 0  # again: nothing to do
    with pytest.raises(ServerError, match="not been started"):
        _ = server.pid


def test_paths_may_hold_spaces_and_what_a_shell_or_ascii_would_misread(
    repository: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path.joinpath(*ODD_NAMES, "$(touch INJECTED)")
    folder.parent.mkdir(parents=True)
    repository(WHERE).rename(folder)
    other = tmp_path.joinpath("tmp", *ODD_NAMES)
    other.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as odd:
        odd.setenv("TMPDIR", str(other))
        odd.setattr(tempfile, "tempdir", None)
        odd.setenv("LC_ALL", "C")
        with Server(folder, probe="echo", startup_timeout_s=30) as server:
            assert ask(server.url, [[1, 2]]).as_numpy("y").tolist() == [[1, 2]]
            assert f"serves {folder}/echo" in server.log_excerpt()  # whatever the server was told
        assert_nothing_left(server.name)
    assert not [*tmp_path.rglob("INJECTED")]


def test_the_packages_and_python_may_lie_under_any_path(
    repository: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "josé's R&D (2024); city"
    venv.create(home / ".venv", symlinks=True)
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = home / "pâquets"
    packages.symlink_to(sysconfig.get_path("purelib"))
    listed = home / ".venv" / "lib" / python / "site-packages" / "listed.pth"
    listed.write_text(f"{packages}\n", "utf-8")
    monkeypatch.setenv("HOME_OF_A_TEST", str(home))
    monkeypatch.setattr(sys, "executable", str(home / ".venv" / "bin" / "python3"))
    said = tmp_path / "server.log"
    with serve(repository(PATHS), tmp_path / "log", "--probe=echo", "--log", str(said)) as server:
        assert ask(server.url, [[1, 2]]).as_numpy("y").tolist() == [[1, 2]]
    assert f"paths: {packages} {home}\n" in said.read_text("utf-8")
    assert not [*cleanup.run_folder().glob("cascade_*")]


@pytest.mark.parametrize("name", ["$(touch INJECTED)", "my model", "modèle"])
def test_a_model_whose_name_would_break_its_start_is_refused_at_once(
    repository: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = repository(ECHO)
    (folder / "echo").rename(folder / name)
    with pytest.raises(ServerError, match=r"called '.*'; .*: rename its folder") as raised:
        Server(folder).start()
    assert name in str(raised.value)


def test_no_place_for_what_a_server_keeps_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as odd:
        odd.setattr(tempfile, "tempdir", str(tmp_path / "my tmp"))
        odd.setattr(cleanup, "USUAL_TEMPORARY", (str(tmp_path / "absent"),))
        with pytest.raises(cleanup.RunFolderError, match="set TMPDIR to a folder without spaces"):
            cleanup.run_folder()


def test_a_folder_of_temporary_files_that_is_not_the_wanted_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cleanup.other_than_wanted() == ""
    monkeypatch.setattr(cleanup, "USUAL_TEMPORARY", (str(tmp_path),))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))

    def none() -> str:
        raise FileNotFoundError("no usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    told = cleanup.other_than_wanted()
    assert told.startswith(f"TMPDIR={tmp_path / 'absent'} cannot be written to")
    assert str(tmp_path / f"cascade-{os.getuid()}") in told


def test_chosen_models_are_loaded_and_a_wrong_probe_is_told(
    repository: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = repository(ECHO)
    (folder / "idle" / "1").mkdir(parents=True)
    (folder / "idle" / "config.pbtxt").write_text(CONFIG)
    (folder / "idle" / "1" / "model.py").write_text(BROKEN)  # would fail if it were loaded
    log = tmp_path / "logs" / "server.log"
    server = Server(folder, models=["echo"], log=log, probe="absent")
    with pytest.raises(ServerError, match=r"the model 'absent' does not answer: .*absent"):
        server.start()
    assert_nothing_left(server.name)
    assert "successfully loaded 'echo'" in log.read_text()
    assert "'idle'" not in log.read_text()


def test_a_log_that_nobody_reads_is_told_at_once(
    repository: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, fifo = repository(ECHO), tmp_path / "fifo"
    os.mkfifo(fifo)
    words = ["--repository", str(folder), "--probe", "echo", "--log", str(fifo)]
    done = subprocess.run(
        [sys.executable, "-m", "cascade.server", *words, *FREE_PORTS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {fifo}: nothing reads this pipe, and a log that fills up would stop the server; "
        "start its reader before the server, or name a file\n"
    )
    read = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with process.open_log(fifo) as log:
        assert os.get_blocking(log.fileno())
        log.write(b"said")
    assert os.read(read, 9) == b"said"
    os.close(read)


def test_the_words_of_a_failing_model_reach_the_caller(repository: Callable[[str], Path]) -> None:
    server = Server(repository(BROKEN), probe="echo")
    with pytest.raises(ServerError) as caught:
        server.start()
    message = str(caught.value)
    assert message.startswith("tritonserver ended with 1: failed to load 'echo' version 1: ")
    assert "failed to load 'echo' version 1" in message
    assert "ValueError: the item state is missing:\nexport the model again" in message
    assert "CUDA" not in message
    assert_nothing_left(server.name)


def test_a_server_that_does_not_come_up_is_ended(repository: Callable[[str], Path]) -> None:
    server = Server(repository(SLOW), probe="echo", startup_timeout_s=3)
    with pytest.raises(ServerError, match="did not answer within 3 s"):
        server.start()
    assert server.name
    assert_nothing_left(server.name)


def test_a_server_that_crashes_while_it_starts_is_started_again(
    repository: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    server, crashed = Server(repository(ECHO), probe="echo"), set[str]()

    def crash(times: int) -> None:
        while len(crashed) < times:
            with suppress(ServerError, ProcessLookupError):
                name, pid = server.name, server.pid
                if (
                    name not in crashed
                    and b"--grpc-port" in Path(f"/proc/{pid}/cmdline").read_bytes()
                ):
                    os.kill(pid, signal.SIGABRT)
                    crashed.add(name)
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        crashes = pool.submit(crash, 1)
        with server:
            assert ask(server.url, [[1.0, 2.0]])
        crashes.result()
        told = capfd.readouterr().err
        ended = "while it started, tritonserver ended with -6 (SIGABRT); starting it again"
        assert told.count(ended) == 1
        crashed.clear()
        crashes = pool.submit(crash, 3)
        with pytest.raises(ServerError, match="tritonserver ended with -6"):
            server.start()
        crashes.result()
    assert_nothing_left(server.name)


HANGS_ONCE = """
    def initialize(self, args):
        import pathlib, time
        marker = pathlib.Path(args["model_repository"]) / "started"
        if not marker.exists():
            marker.touch()
            time.sleep(600)
"""


def test_a_server_that_hangs_while_it_starts_is_started_again(
    repository: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stalled, "STALL_S", 5.0)
    with Server(repository(ECHO + HANGS_ONCE), probe="echo") as server:
        assert ask(server.url, [[1.0, 2.0]])
    assert "while it started, tritonserver hung; starting it again" in capfd.readouterr().err
    assert_nothing_left(server.name)


def test_a_started_server_answers_at_all_its_ports(repository: Callable[[str], Path]) -> None:
    folder = repository(ECHO)
    with Server(folder, probe="echo") as server:
        for port in server.ports.by_service().values():
            assert reachable("127.0.0.1", port)
    without = ["--allow-metrics=false", "--allow-http=false"]
    with Server(folder, probe="echo", extra_args=without) as server:
        assert not reachable("127.0.0.1", server.ports.http)


def test_an_unknown_folder_and_an_unknown_argument(
    repository: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match=r"no model repository at .*nowhere"):
        Server(tmp_path / "nowhere").start()
    with pytest.raises(ServerError, match="--no-such-flag"):
        Server(repository(ECHO), extra_args=["--no-such-flag=1"]).start()
    assert registered() == []


@contextmanager
def launched(
    folder: Path, stderr: int | IO[str] | None = None, stdout: int | IO[str] = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """`python -m cascade.server` as a process of its own."""
    ports = [f"--{service}-port=0" for service in ("http", "grpc", "metrics")]
    command = [sys.executable, "-m", "cascade.server", "--repository", str(folder)]
    child = subprocess.Popen(
        [*command, *ports, "--probe=echo", "--", "--metrics-interval-ms=5000"],
        cwd=ROOT,
        stdout=stdout,
        stderr=stderr,
        text=True,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()  # does nothing to one that has ended


def wait_until_ready(child: subprocess.Popen[str]) -> str:
    """Returns the address of gRPC."""
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line.startswith("ready: tritonserver 2.")
    return line.partition(" grpc ")[2].partition(",")[0]


def kill_the_echo() -> None:
    """Kill the process of the model, and wait until another answers in its place."""
    (name,) = registered()
    wait_until(lambda: workers.alive(name))
    time.sleep(2 * supervisor.CANARY_S)  # the supervisor lists the workers
    (victim,) = workers.alive(name)
    os.kill(victim.pid, signal.SIGKILL)
    wait_until(lambda: {*workers.alive(name)} - {victim})


def test_a_signal_during_the_start_ends_it(repository: Callable[[str], Path]) -> None:
    folder = repository(SLOW)
    with launched(folder) as child:
        wait_until(lambda: any(len(cleanup.processes(name)) == 2 for name in registered()))
        (name,) = registered()
        child.terminate()
        assert child.wait(PATIENCE_S) == 0
    assert_nothing_left(name)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_the_server_in_order(
    repository: Callable[[str], Path], number: signal.Signals
) -> None:
    with launched(repository(ECHO)) as child:
        wait_until_ready(child)
        (name,) = registered()
        child.send_signal(number)
        assert child.wait(PATIENCE_S) == 0
    assert_nothing_left(name)


def test_the_launcher_ends_when_the_server_does(repository: Callable[[str], Path]) -> None:
    with launched(repository(ECHO)) as child:
        wait_until_ready(child)
        (name,) = registered()
        (server,) = [p for p in cleanup.processes(name) if _parent(p) == child.pid]
        os.kill(server, signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0
    assert_nothing_left(name)


def test_the_launcher_ends_when_the_server_is_killed_again_and_again(
    repository: Callable[[str], Path],
) -> None:
    with launched(repository(ECHO), stderr=subprocess.PIPE) as child:
        wait_until_ready(child)
        assert child.stderr is not None
        for restarts in range(supervisor.RESTARTS + 1):
            (name,) = registered()
            (server,) = [p for p in cleanup.processes(name) if _parent(p) == child.pid]
            os.kill(server, signal.SIGKILL)
            if restarts < supervisor.RESTARTS:
                next(line for line in child.stderr if '"event": "restarted"' in line)
        assert child.wait(PATIENCE_S) == 128 + signal.SIGKILL
    assert_nothing_left(name)


def test_a_killed_launcher_takes_its_server_along(repository: Callable[[str], Path]) -> None:
    with launched(repository(ECHO)) as child:
        wait_until_ready(child)
        (name,) = registered()
        child.kill()
    wait_until(lambda: cleanup.processes(name) == [])  # by itself
    assert remove_orphans() == [name]
    assert_nothing_left(name)


def test_orphans_are_removed(repository: Callable[[str], Path]) -> None:
    # Started in a thread, the server cannot be tied to the launcher: it survives it.
    script = f"""
        import os, signal, threading
        from pathlib import Path
        from cascade.server.launcher import Server
        server = Server(Path({str(repository(ECHO))!r}), probe="echo")
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    assert ran.returncode == -signal.SIGKILL
    (name,) = registered()
    assert len(cleanup.processes(name)) == 2
    assert cleanup.segments(name)
    assert remove_orphans() == [name]
    assert_nothing_left(name)


def test_a_launcher_heals_on_a_full_disk(repository: Callable[[str], Path]) -> None:
    """Neither its ready line nor its events can be written."""
    with (
        open("/dev/full", "w") as full,
        launched(repository(ECHO), stderr=full, stdout=full) as child,
    ):
        wait_until(lambda: any(workers.alive(name) for name in registered()))
        kill_the_echo()
        assert child.poll() is None


def test_an_event_that_stderr_does_not_take_is_in_the_log_of_the_server(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("started\n")
    with open("/dev/full", "w") as full, redirect_stderr(full):
        supervisor.log_event(log, "process died", models=["rank"])
        supervisor.log_event(tmp_path / "absent", "process died")
    first, event = log.read_text().splitlines()
    assert first == "started"
    assert json.loads(event)["event"] == "process died"
    assert not (tmp_path / "absent").exists()


def test_a_launcher_heals_while_its_reader_sleeps_and_when_it_is_gone(
    repository: Callable[[str], Path],
) -> None:
    reader, writer = os.pipe()
    with launched(repository(ECHO), stderr=writer) as child:
        wait_until_ready(child)
        os.set_blocking(writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)  # the launcher has the same description
        kill_the_echo()
        os.close(reader)
        kill_the_echo()
        assert child.poll() is None
    os.close(writer)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def tidy_up() -> None:
    """As programs do that remove old temporary files; at once, so that no launcher interferes."""
    removed = cleanup.run_folder().rename(cleanup.run_folder().with_name("removed"))
    shutil.rmtree(removed)


def test_a_launcher_heals_and_publishes_after_its_files_were_removed(
    repository: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef"
    monkeypatch.setenv(security.KEY_VARIABLE, key)
    folder = repository(ECHO)
    with launched(folder, stderr=subprocess.PIPE) as child:
        url = wait_until_ready(child)
        (name,) = registered()
        tidy_up()
        wait_until(lambda: registered() == [name])
        kill_the_echo()
        assert child.stderr is not None
        next(line for line in child.stderr if '"event": "files restored"' in line)
        next(line for line in child.stderr if '"event": "reloaded"' in line)
        tidy_up()
        for segment in cleanup.segments(name):  # as logind does when a user has logged out
            segment.unlink()
        wait_until(lambda: registered() == [name])
        shutil.copytree(folder / "echo" / "1", folder / "echo" / "2")
        with grpc.InferenceServerClient(url) as client:
            client.load_model("echo", headers=security.headers(key))
        assert ask(url, [[1, 2]]).get_response().model_version == "2"
        (server,) = [p for p in cleanup.processes(name) if _parent(p) == child.pid]
        tidy_up()
        os.kill(server, signal.SIGSEGV)
        died = next(line for line in child.stderr if '"event": "server died"' in line)
        assert "its log went to" not in died
        next(line for line in child.stderr if '"event": "restarted"' in line)
        assert ask(url, [[1, 2]]).get_response().model_version == "2"
        (name,) = registered()
        child.terminate()
        assert child.wait(PATIENCE_S) == 0
    assert_nothing_left(name)


@pytest.mark.parametrize("removed", ["the server's folder", "TMPDIR"])
def test_a_launcher_heals_after_a_part_of_its_files_was_removed(
    repository: Callable[[str], Path], tmp_path: Path, removed: str
) -> None:
    folder = repository(ECHO).rename(tmp_path / "my repository (1)")
    with launched(folder) as child:
        url = wait_until_ready(child)
        (name,) = registered()
        gone = cleanup.run_folder() / name if "folder" in removed else tmp_path / "tmp"
        shutil.rmtree(gone.rename(tmp_path / "removed"))
        wait_until(lambda: registered() == [name])
        kill_the_echo()
        wait_until(lambda: answers(url))
        assert child.poll() is None


def answers(url: str) -> bool:
    try:
        return bool(ask(url, [[1, 2]]))
    except InferenceServerException:
        return False


def test_a_server_whose_files_were_removed_is_no_orphan_and_leaves_none(
    repository: Callable[[str], Path],
) -> None:
    with launched(repository(ECHO)) as child:
        wait_until_ready(child)
        (name,) = registered()
        tidy_up()
        wait_until(lambda: registered() == [name])
        assert remove_orphans() == []
        child.kill()
    wait_until(lambda: cleanup.processes(name) == [])
    assert remove_orphans() == [name]
    assert_nothing_left(name)


def test_the_run_folder_is_locked_while_a_server_lives() -> None:
    """systemd-tmpfiles spares what lies in a locked folder."""
    name = cleanup.register()
    folder = os.open(cleanup.run_folder(), os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    cleanup.remove(name)
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)


def test_a_launcher_ends_when_others_can_write_to_its_files(
    repository: Callable[[str], Path],
) -> None:
    """They could plant a program there, which the next load would run."""
    with launched(repository(ECHO), stderr=subprocess.PIPE) as child:
        wait_until_ready(child)
        folder = cleanup.run_folder()
        folder.chmod(0o777)
        assert child.stderr is not None
        assert child.wait(PATIENCE_S) == 1
        assert "is not private to this user" in child.stderr.read()
        folder.chmod(0o700)


def test_nothing_that_lives_or_belongs_to_another_server_is_removed() -> None:
    mine = cleanup.register()
    script = "from cascade.server import cleanup; print(cleanup.register())"
    dead = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    children = {
        name: subprocess.Popen(["sleep", "600"], env={**os.environ, cleanup.VARIABLE: name})
        for name in (mine, dead, dead + "0")
    }
    try:
        wait_until(lambda: all(cleanup.processes(name) for name in children))
        assert remove_orphans() == [dead]
        assert children[dead].wait(PATIENCE_S) == -signal.SIGKILL
        assert children[mine].poll() is None
        assert children[dead + "0"].poll() is None
        assert registered() == [mine]
        assert remove_orphans() == []
    finally:
        for child in children.values():
            child.kill()
            child.wait()


def test_a_run_folder_that_others_can_write_to_is_refused() -> None:
    folder = cleanup.run_folder()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="not private"):
        cleanup.run_folder()
    folder.chmod(0o700)


GOOD = {
    "wheel": "0.7.0",
    "numpy": "1.26.4",
    "python": (3, 11),
    "stubs": ["3.9", "3.10", "3.11"],
    "glibc": "2.36",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numpy": "2.0.1"}, r"numpy 2.0.1 .*Install 'numpy<2'"),
        ({"python": (3, 14)}, r"Python 3.14: it has stubs for 3.9, 3.10, 3.11"),
        ({"glibc": "2.31"}, r"needs glibc 2.35 or newer; this system has glibc 2.31"),
        ({"glibc": ""}, r"another C library"),
    ],
)
def test_versions_that_do_not_fit_are_told_with_the_remedy(
    change: dict[str, object], message: str
) -> None:
    binaries.check_wheel(**GOOD)  # type: ignore[arg-type]
    with pytest.raises(BinaryError, match=message):
        binaries.check_wheel(**{**GOOD, **change})  # type: ignore[arg-type]


def test_a_container_with_another_python_is_refused() -> None:
    binaries.check_python("3.12", (3, 12), "tritonserver")
    binaries.check_python(None, (3, 12), "tritonserver")
    with pytest.raises(BinaryError, match=r"embeds Python 3\.12, but this is Python 3\.11"):
        binaries.check_python("3.12", (3, 11), "tritonserver")


def test_the_container_comes_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = tmp_path / "backends" / "python" / binaries.STUB
    server = tmp_path / "bin" / "tritonserver"
    for path in (stub, server):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"libpython%d.%d.so.1.0" % sys.version_info[:2])
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(server.parent))
    found = binaries.tritonserver()
    assert found.path == server
    arguments = found.assemble(tmp_path / "unused", ROOT / "cascade")
    assert arguments == (f"--backend-directory={tmp_path / 'backends'}",)


def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "wheel_package", lambda: None)
    monkeypatch.setattr(binaries, "CONTAINER_SERVER", Path("/nonexistent/tritonserver"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BinaryError, match=r"pip install 'nvidia-pytriton==0.7.0'"):
        binaries.tritonserver()


def test_a_stub_without_its_libraries_is_told(tmp_path: Path) -> None:
    stub = tmp_path / binaries.STUB
    stub.write_text("#!/bin/sh\necho 'libpython3.11.so.1.0: cannot open' >&2; exit 127\n")
    stub.chmod(0o755)
    with pytest.raises(BinaryError, match=r"libpython3.11.so.1.0: cannot open.*--enable-shared"):
        binaries._check_runs(stub, ())


# The kernel checks no permissions of root's, unless root gives these capabilities up.
UNPRIVILEGED = () if os.getuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@pytest.mark.parametrize(
    ("name", "mode", "remedy"),
    [
        (f"{PYTHON}/{binaries.STUB}", 0o100, "chmod -R a+rX"),  # runs, but hides its environment
        (f"{PYTHON}/{binaries.STUB}", 0o644, "chmod a+x"),
        ("bin/tritonserver", 0o000, "chmod -R a+rX"),
        ("bin", 0o000, "chmod -R a+rX"),
        ("backends/python/triton_python_backend_utils.py", 0o200, "chmod -R a+rX"),
    ],
)
def test_what_this_user_may_not_use_of_the_wheel_is_told(
    repository: Callable[[str], Path], tmp_path: Path, name: str, mode: int, remedy: str
) -> None:
    real = binaries.wheel_package()
    if real is None:
        pytest.skip("the server is a container's")
    package = tmp_path / "pytriton"
    shutil.copytree(real / "tritonserver", package / "tritonserver", copy_function=os.symlink)
    (package / "__init__.py").touch()
    (tmp_path / binaries.LIBRARIES).symlink_to(real.parent / binaries.LIBRARIES)
    stub = package / "tritonserver" / PYTHON / binaries.STUB
    stub.unlink()
    shutil.copyfile(real / "tritonserver" / PYTHON / binaries.STUB, stub)
    stub.chmod(0o755)  # tritonserver can have changed that of the wheel
    path = package / "tritonserver" / name
    if not path.is_dir():
        path.unlink()
        path.write_bytes(b"#!/bin/sh")
    path.chmod(mode)
    ran = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-m", "cascade.server", "--repository", repository(ECHO)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    path.chmod(0o755)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"error: {path}")
    assert "this user may not use it" in ran.stderr
    assert remedy in ran.stderr


def test_a_repository_that_this_user_may_not_read_is_told(
    repository: Callable[[str], Path],
) -> None:
    folder = repository(ECHO)
    folder.chmod(0)
    ran = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-m", "cascade.server", "--repository", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    folder.chmod(0o755)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(f"error: {folder}: this user may not read it. Its owner can run")


@pytest.mark.parametrize(
    ("configs", "instances"),
    [
        ({}, 0),
        ({"a": 'backend: "python"'}, 1),
        ({"a": 'backend: "python" instance_group [{ count: 2 }, { kind: KIND_CPU }]'}, 3),
        ({"a": 'backend: "python" instance_group [{ count: 2 gpus: [ 0, 1 ] }]'}, 4),
        ({"a": 'backend: "python"', "b": 'platform: "ensemble"', "c": 'backend: "python"'}, 2),
    ],
)
def test_threads_times_instances_stay_within_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configs: dict[str, str], instances: int
) -> None:
    for name, text in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(text)
    assert threads.instances(tmp_path) == instances
    monkeypatch.setattr(threads, "cores", lambda: 7)
    per_process = threads.threads_per_process(tmp_path)
    assert per_process == [7, 7, 3, 2, 1][instances]
    assert per_process * instances <= 7
    monkeypatch.setattr(threads, "cores", lambda: 1)
    assert threads.threads_per_process(tmp_path) == 1


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.pbtxt").write_text("backend: python")
    with pytest.raises(ValueError, match=r"a/config.pbtxt is not a model configuration"):
        threads.instances(tmp_path)


def test_the_probe_knows_nothing_about_its_user() -> None:
    config = model_config_pb2.ModelConfig(max_batch_size=8)
    for name, dtype, dims in (
        ("dense", "TYPE_FP32", [3]),
        ("categorical", "TYPE_STRING", [-1, 2]),
        ("rows", "TYPE_INT64", [2]),
        ("flag", "TYPE_BOOL", [1]),
    ):
        config.input.add(name=name, data_type=dtype, dims=dims)
    config.input.add(name="extra", data_type="TYPE_FP32", dims=[1], optional=True)
    inputs = {tensor.name(): tensor for tensor in probe.unknown_user(config)}
    assert {name: (i.datatype(), i.shape()) for name, i in inputs.items()} == {
        "dense": ("FP32", [1, 3]),
        "categorical": ("BYTES", [1, 1, 2]),
        "rows": ("INT64", [1, 2]),
        "flag": ("BOOL", [1, 1]),
    }
    assert np.isnan(np.frombuffer(inputs["dense"]._get_content(), np.float32)).all()
    assert inputs["categorical"]._get_content() == bytes(8)  # two strings of length 0
    config.max_batch_size = 0
    assert probe.unknown_user(config)[0].shape() == [3]


def test_the_probe_reads_the_whole_answer() -> None:
    answer = service_pb2.ModelInferResponse(model_name="rank")
    answer.outputs.add(name="scores", datatype="FP32", shape=[1, 2])
    answer.raw_output_contents.append(np.zeros(2, np.float32).tobytes())
    probe.check(grpc.InferResult(answer))
    answer.raw_output_contents[0] = b""
    with pytest.raises(probe.ProbeError, match=r"'rank' .*'scores' .*\[1, 2\].*numpy<2"):
        probe.check(grpc.InferResult(answer))


LOG = """\
W1120 19:26:37.124551 7350 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1120 19:26:37.124745 7350 server.cc:241] "CudaDriverHelper has not been initialized."
I1120 19:26:37.126230 7350 model_lifecycle.cc:472] "loading: rank:1"
loading the item state
E1120 19:26:39.641266 7350 backend_model.cc:692] "ERROR: ValueError: no file\\nat model.py(4)"
E1120 19:26:39.641351 7350 backend_model.cc:692] "ERROR: ValueError: no file\\nat model.py(4)"

+------+---------+
| rank | 1       |
"""


def test_the_end_of_a_server_is_told_in_one_line() -> None:
    failed = "loading\nfailed to load 'rank' version 1: Internal: no file\nat model.py(4)"
    assert process.ended(1, failed) == (
        "tritonserver ended with 1: failed to load 'rank' version 1: Internal: no file"
    )
    thrown = "terminate called after throwing an instance\n  what():  Resource unavailable\n"
    assert process.ended(-6, thrown).endswith("(SIGABRT): Resource unavailable")
    assert process.ended(-9, "(its log is empty)") == "tritonserver ended with -9 (SIGKILL)"


def test_too_few_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(100, 1000)]
    monkeypatch.setattr(process.resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(process.resource, "setrlimit", lambda kind, pair: limits.append(pair))
    process.check_files()
    process.check_files()
    assert limits[1:] == [(1000, 1000)]
    limits.append((64, 64))
    with pytest.raises(ServerError, match=r"may open 64 files here \(ulimit -n\).*needs 256"):
        process.check_files()


def test_an_excerpt_holds_problems_only() -> None:
    assert process.log_excerpt(LOG) == (
        "loading the item state\nERROR: ValueError: no file\nat model.py(4)"
    )
    assert process.log_excerpt(LOG, lines=1) == "at model.py(4)"
    quiet = 'I1120 19:26:37.126230 7350 model_lifecycle.cc:472] "loading: rank:1"'
    assert process.log_excerpt(quiet) == quiet
    usage = "tritonserver: unrecognized option '--x'\nUsage: tritonserver [options]\n  --help\n"
    assert process.log_excerpt(usage) == (
        "tritonserver: unrecognized option '--x'\ntritonserver does not accept its arguments"
    )
    assert process.log_excerpt("error: creating server: Internal\nwhy") == "why"
    assert process.log_excerpt("") == "(its log is empty)"


def test_free_ports_are_three_different_ones() -> None:
    ports = Ports.free().resolve("127.0.0.1")
    assert len({ports.http, ports.grpc, ports.metrics, 0}) == 4
    assert ports.resolve("127.0.0.1") == ports
    with pytest.raises(ServerError, match="cannot listen on"):
        Ports(ports.http, ports.http, 0).resolve("127.0.0.1")


def test_a_server_that_refuses_for_want_of_room_is_not_reloaded(
    repository: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CANARY_S", 0.1)
    monkeypatch.setattr(supervisor, "CANARY_TIMEOUT_S", 0.5)  # for the first refusal
    told: list[str] = []
    with Server(repository(FULL), probe="echo") as server:
        watching = threading.Thread(target=Supervisor(server, lambda e, **_: told.append(e)).watch)
        watching.start()
        time.sleep(3)
        with pytest.raises(InferenceServerException, match=AGAIN):
            ask(server.url, [[1, 2]])
        server.cancel()
        watching.join(PATIENCE_S)
    assert told == []


def test_a_server_that_answers_others_is_not_reloaded(
    repository: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight that wait for a model of twenty answers a second: no canary has its turn in time."""
    monkeypatch.setattr(supervisor, "CANARY_S", 0.1)
    monkeypatch.setattr(supervisor, "CANARY_TIMEOUT_S", 0.2)
    told: list[str] = []
    with Server(repository(BUSY), probe="echo") as server, ThreadPoolExecutor(8) as crowd:
        waiting = [crowd.submit(ask, server.url, [[1, 2]]) for _ in range(80)]
        watching = threading.Thread(target=Supervisor(server, lambda e, **_: told.append(e)).watch)
        watching.start()
        for answer in waiting:
            answer.result()
        server.cancel()
        watching.join(PATIENCE_S)
    assert "reloaded" not in told
