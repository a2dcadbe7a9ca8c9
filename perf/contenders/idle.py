"""A server that does nothing: what is measured against it is what the load generator costs."""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from perf.load import Generator, Plan
from perf.trace import read_requests

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SECONDS = 1.0


def serve(port: Connection) -> None:
    """Answer every request with the same bytes, until the process is ended; tells its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port.send(listener.getsockname()[1])
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in epoll.poll():
            if descriptor == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                epoll.register(client.fileno(), select.EPOLLIN)
                continue
            client = clients[descriptor]
            with suppress(OSError):
                if client.recv(65536):
                    client.sendall(ANSWER)
                    continue
            epoll.unregister(descriptor)
            clients.pop(descriptor).close()


def generator_us(requests: Path, in_flight: int = 8) -> float:
    """CPU time that `perf.load` spends on one request, in microseconds."""
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        plan = Plan("concurrency", in_flight, SECONDS)
        return Generator(("127.0.0.1", here.recv()), read_requests(requests), plan).run().cpu_us
    finally:
        server.kill()
        server.join()
