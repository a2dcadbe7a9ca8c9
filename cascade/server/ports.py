"""Where the services of a server listen."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass

from cascade.errors import CascadeError


class ServerError(CascadeError):
    """The server did not start or does not answer; the message holds what its log says."""


@dataclass(frozen=True)
class Ports:
    """Where the three services listen; 0 = choose a free port at the start."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @classmethod
    def free(cls) -> Ports:
        """Three ports that nothing listens on, chosen when the server starts."""
        return cls(0, 0, 0)

    def resolve(self, host: str) -> Ports:
        """Fill in the zeros.

        Raises:
            ServerError: something listens on a wanted port already.
        """
        with ExitStack() as stack:
            chosen = [stack.enter_context(_bound(host, p)) for p in self.by_service().values()]
            return Ports(*(bound.getsockname()[1] for bound in chosen))

    def by_service(self) -> dict[str, int]:
        """By the name that tritonserver has for the service."""
        return {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1)
    except OSError as error:
        bound.close()
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another port (0 = any free "
            "one) or stop what listens there."
        ) from error
    return bound
