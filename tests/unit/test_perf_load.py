"""The load generator against small servers that do what they are told."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

from perf.harness import load
from perf.harness.load import Generator, LoadError, Plan, status
from perf.harness.measurement import LOST, OK, Load, Trace, summarise

OKAY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"
REQUESTS = [b"user %d" % number for number in range(7)]
MS = 1_000_000

Answer = Callable[[bytes], list[bytes]]  # parts, sent one by one; none = hang up


class Scripted:
    """A server of a thread per connection; notes what it was sent."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.answer: Answer = lambda request: [OKAY]
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client:
            while request := client.recv(4096):
                self.seen.append(request)
                parts = self.answer(request)
                if not parts:
                    return
                for part in parts:
                    client.sendall(part)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes up the accept
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    with suppress(OSError):
        server.close()


def run(server: Scripted, plan: Plan) -> Trace:
    return Generator(server.address, REQUESTS, plan).run()


def test_an_answer_is_complete_when_its_body_is() -> None:
    for end in range(len(OKAY)):
        assert status(OKAY[:end]) is None
    assert status(OKAY) == 200
    assert status(BUSY) == 503
    with pytest.raises(LoadError, match="without Content-Length"):
        status(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")


def test_a_closed_loop_asks_for_one_user_after_the_other(server: Scripted) -> None:
    trace = run(server, Plan("concurrency", 1, 0.2, warm_up_s=0, first=5))
    expected = [REQUESTS[(5 + number) % 7] for number in range(len(server.seen))]
    assert server.seen == expected
    assert len(trace.sent_ns) == len(server.seen) > 7
    assert (trace.status == OK).all()
    assert (trace.done_ns > trace.sent_ns).all()
    assert (trace.sent_ns[1:] >= trace.done_ns[:-1]).all()  # never two under way


def test_a_closed_loop_keeps_so_many_under_way(server: Scripted) -> None:
    all_in = threading.Barrier(4, timeout=20)

    def together(request: bytes) -> list[bytes]:
        if len(server.seen) <= 4:
            all_in.wait()  # passes only when four requests are under way at a time
        return [OKAY]

    server.answer = together
    trace = run(server, Plan("concurrency", 4, 0.1, warm_up_s=0))
    assert len(trace.sent_ns) >= 4
    assert (trace.status == OK).all()


@pytest.mark.parametrize(("mode", "value"), [("concurrency", 4), ("rate", 200)])
def test_a_connection_is_opened_when_the_one_before_is_in_use(
    mode: str, value: float, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    connect = Generator._connect

    def noted(generator: Generator) -> None:
        sent.append(generator._next)
        connect(generator)

    all_in = threading.Barrier(4, timeout=20)
    server.answer = lambda request: [OKAY] if len(server.seen) > 4 or all_in.wait() >= 0 else []
    monkeypatch.setattr(Generator, "_connect", noted)
    monkeypatch.setattr("perf.harness.load.CONNECTIONS_APART_NS", 100 * MS)
    run(server, Plan(mode, value, 1, warm_up_s=0))
    assert sent[:4] == [0, 1, 2, 3]


def test_an_open_loop_sends_when_a_request_is_due(server: Scripted) -> None:
    held, release = threading.Semaphore(0), threading.Event()

    def first_waits(request: bytes) -> list[bytes]:
        if request == REQUESTS[0]:
            release.wait(20)  # until all others were asked
        else:
            held.release()
            if len(server.seen) > 30:
                release.set()
        return [OKAY]

    server.answer = first_waits
    trace = run(server, Plan("rate", 400, 0.4, warm_up_s=0, seed=3))
    assert len(trace.sent_ns) > 60  # the first one held up nobody
    assert (trace.sent_ns >= trace.due_ns).all()
    assert (trace.status == OK).all()
    assert trace.done_ns[0] > trace.sent_ns[30]
    again = run(server, Plan("rate", 400, 0.4, warm_up_s=0, seed=3))
    np.testing.assert_array_equal(np.diff(trace.due_ns), np.diff(again.due_ns))


def test_poisson_times_are_of_the_rate_asked_for() -> None:
    due = np.diff(Plan("rate", 1000, 20, seed=1).due()) / 1e6
    assert due.mean() == pytest.approx(1, rel=0.05)
    assert due.std() == pytest.approx(1, rel=0.05)  # an exponential's deviation is its mean


@pytest.mark.parametrize("mode", ["concurrency", "rate"])
def test_refusals_and_hung_up_connections_count_as_failed(mode: str, server: Scripted) -> None:
    replies = {b"user 2": [BUSY], b"user 4": [], b"user 6": [OKAY[:9], OKAY[9:30], OKAY[30:]]}
    server.answer = lambda request: replies.get(request, [OKAY])
    trace = run(server, Plan(mode, {"concurrency": 2, "rate": 200}[mode], 0.3, warm_up_s=0))
    user = np.arange(len(trace.status)) % 7
    assert (trace.status[user == 2] == 503).all()
    assert (trace.status[user == 4] == LOST).all()
    assert (trace.status[(user != 2) & (user != 4)] == OK).all()
    measured = summarise(trace, Load(mode, 1), "x")
    assert measured.failed == ((user == 2) | (user == 4)).sum()


def test_a_run_is_made_in_a_process_of_its_own(server: Scripted) -> None:
    address = "{}:{}".format(*server.address)
    trace = load.run(address, REQUESTS, Plan("concurrency", 2, 0.2, warm_up_s=0))
    assert (trace.status == OK).all()
    assert len(trace.sent_ns) == len(server.seen) > 7
    server.close()
    with pytest.raises(LoadError, match="nothing answers"):
        load.run(address, REQUESTS, Plan("concurrency", 1, 0.2))


def test_a_server_that_always_hangs_up_ends_the_run(server: Scripted) -> None:
    server.answer = lambda request: []
    with pytest.raises(LoadError, match="hung up"):
        run(server, Plan("concurrency", 2, 60))


def made(due: list[float], done: list[float], until: float, **other: object) -> Trace:
    """A trace from times in ms; counts from 0 on."""
    due_ns, done_ns = np.array(due) * MS, np.array(done) * MS
    values = {"sent_ns": due_ns, "status": np.full(len(due), OK), **other}
    integers = {key: np.asarray(value).astype(np.int64) for key, value in values.items()}
    return Trace(
        due_ns.astype(np.int64),
        done_ns=done_ns.astype(np.int64),
        from_ns=0,
        until_ns=int(until * MS),
        cpu_us=1.5,
        **integers,
    )


def test_a_closed_loop_counts_what_ended_in_time() -> None:
    trace = made([-2, 0, 10, 20, 28], [-1, 5, 12, 29, 33], until=30)
    measured = summarise(trace, Load("concurrency", 1), "x")
    assert measured.requests == 3
    assert measured.throughput == pytest.approx(3 / 0.03)
    assert measured.latency_ms["max_ms"] == pytest.approx(9)
    assert measured.latency_ms["p50_ms"] == pytest.approx(5)


def test_an_open_loop_counts_what_was_due_in_time_from_when_it_was_due() -> None:
    late = {"sent_ns": np.array([-5, 0, 13, 28.5]) * MS}
    trace = made([-5, 0, 10, 28], [-4, 6, 14, 90], until=30, **late)
    measured = summarise(trace, Load("rate", 100), "x")
    assert measured.requests == 3  # the last one too, though its answer came after the time
    assert measured.latency_ms["max_ms"] == pytest.approx(62)
    assert measured.throughput == pytest.approx(2 / 0.03)
    assert trace.late() == 1  # 3 ms late; half a millisecond is not
    assert measured.delayed_percent == pytest.approx(25)


def test_a_run_without_answers_says_so() -> None:
    trace = made([1, 2], [0, 0], until=30, status=[503, 0])
    measured = summarise(trace, Load("rate", 100), "x")
    assert (measured.requests, measured.failed) == (0, 2)
    assert "no request was answered" in (measured.error or "")
