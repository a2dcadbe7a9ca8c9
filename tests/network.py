"""What lies between a client and a server, on loopback: dead connections, proxies, names."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from typing import Any

LOOK_S = 0.02


class Relay:
    """Passes connections on to `target`, HOST:PORT. `freeze` makes those that are open dead: they
    stay open, and nothing passes any more. New ones work."""

    def __init__(self, target: str, listen: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self._listener = socket.create_server(listen)
        self._era, self._open = 0, True
        self.accepted = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def freeze(self) -> None:
        self._era += 1

    def greet(self, client: socket.socket) -> None:
        """What is said to a client before its connection is passed on."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while self._open:
            if select.select([self._listener], [], [], LOOK_S)[0]:
                client, _ = self._listener.accept()
                self.accepted += 1
                thread = threading.Thread(target=self._pass, args=(client, self._era))
                thread.start()
                self._threads.append(thread)

    def _pass(self, client: socket.socket, era: int) -> None:
        with client, suppress(OSError):
            self.greet(client)
            with socket.create_connection(self._target) as server:
                other = {client: server, server: client}
                while self._open:
                    if era != self._era:
                        time.sleep(LOOK_S)
                        continue
                    readable, _, _ = select.select([client, server], [], [], LOOK_S)
                    for side in readable if era == self._era else ():
                        content = side.recv(65536)
                        if not content:
                            return
                        other[side].sendall(content)


class HttpProxy(Relay):
    """A proxy in the sense of the variable `http_proxy`, which leads to `target` whatever it is
    asked for, and notes that."""

    def __init__(self, target: str) -> None:
        self.asked: list[str] = []
        super().__init__(target)

    def greet(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        self.asked.append(head.decode().splitlines()[0])
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")


class Names(threading.Thread):
    """A DNS server that gives one address for every name, and none while there is no address."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address: str | None = None
        self.start()

    def url(self, name: str, port: str) -> str:
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/{name}:{port}"

    def run(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(512)
            end = query.index(b"\0", 12) + 1
            found, of_ipv4 = self.address, query[end : end + 2] == b"\0\1"
            answers = bytes([0, 1 if found and of_ipv4 else 0])
            flags = b"\x81\x80" if found else b"\x81\x83"  # 3 = there is no such name
            answer = query[:2] + flags + b"\0\1" + answers + b"\0\0\0\0" + query[12 : end + 4]
            if found and of_ipv4:
                answer += b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(found)
            self._socket.sendto(answer, sender)
