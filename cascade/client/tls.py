"""How a client connects: in clear or encrypted, and how soon it tries again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# After a failed connection gRPC answers UNAVAILABLE from memory until its own backoff is over. At
# its default of a second and more, our retries would mostly hear that echo.
CHANNEL = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]


@dataclass(frozen=True)
class Tls:
    """Encrypt the connection, and check the server.

    Args:
        root_ca: PEM file of the authority that signed the server's certificate; None takes the
            roots that gRPC brings.
        client_key, client_cert: PEM files, for a server that wants to know its clients.

    Raises:
        ValueError: a file is missing, or a key is without its certificate.
    """

    root_ca: Path | None = None
    client_key: Path | None = None
    client_cert: Path | None = None

    def __post_init__(self) -> None:
        if (self.client_key is None) != (self.client_cert is None):
            raise ValueError("TLS: a client key and its certificate come together; one is missing")
        for path in (self.root_ca, self.client_key, self.client_cert):
            if path is not None and not path.is_file():
                raise ValueError(f"TLS: there is no file {path}")


def connection(tls: Tls | None) -> dict[str, Any]:
    """Arguments of a tritonclient over gRPC."""
    options: dict[str, Any] = {"channel_args": CHANNEL}
    if tls is not None:
        files = {
            "root_certificates": tls.root_ca,
            "private_key": tls.client_key,
            "certificate_chain": tls.client_cert,
        }
        options |= {"ssl": True} | {name: str(path) for name, path in files.items() if path}
    return options
