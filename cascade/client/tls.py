"""The files of a connection in TLS."""

from __future__ import annotations

import argparse
import ssl
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cascade.errors import CascadeError


class TlsError(CascadeError, ValueError):
    """TLS files that are missing or incomplete."""


@dataclass(frozen=True)
class Tls:
    """Encrypt the connection, and check the server.

    Args:
        root_ca: PEM file of the authority that signed the server's certificate; None = the roots
            that gRPC contains.
        client_key, client_cert: PEM files, for a server that checks its clients.
    """

    root_ca: Path | None = None
    client_key: Path | None = None
    client_cert: Path | None = None

    def __post_init__(self) -> None:
        if (self.client_key is None) != (self.client_cert is None):
            raise TlsError("TLS: a client key and its certificate come together; one is missing")
        check_files(self.root_ca, self.client_key, self.client_cert)

    @staticmethod
    def add_arguments(parser: argparse._ActionsContainer) -> None:
        """The arguments of a program that `parsed` reads."""
        parser.add_argument("--tls", action="store_true", help="encrypt; trust gRPC's roots")
        option = partial(parser.add_argument, type=Path, metavar="PEM")
        option("--tls-ca", help="encrypt; trust this authority")
        option("--tls-key", help="encrypt; this client's key")
        option("--tls-cert", help="encrypt; this client's certificate")

    @classmethod
    def parsed(cls, arguments: argparse.Namespace) -> Tls | None:
        """None where none of the arguments came."""
        files = (arguments.tls_ca, arguments.tls_key, arguments.tls_cert)
        return cls(*files) if arguments.tls or any(files) else None

    def options(self) -> dict[str, Any]:
        """Arguments of a tritonclient."""
        names = ("root_certificates", "private_key", "certificate_chain")
        files = zip(names, (self.root_ca, self.client_key, self.client_cert), strict=True)
        return {"ssl": True} | {name: str(path) for name, path in files if path}


def check_files(authority: Path | None, key: Path | None, cert: Path | None) -> None:
    """Raises TlsError if one of the files is missing or cannot be used: no certificate, no key
    without a password, a key of another certificate."""
    for path in filter(None, (authority, key, cert)):
        if not path.is_file():
            raise TlsError(f"TLS: there is no file {path}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    what = f"the authority {authority}; expected certificates in PEM"
    try:
        if authority is not None:
            context.load_verify_locations(authority)
        if cert is not None:
            what = f"the certificate {cert} with the key {key}; expected PEM, and a key of its own"
            context.load_cert_chain(cert, key, password="")
    except OSError as error:  # ssl.SSLError is one
        raise TlsError(f"TLS: cannot use {what} ({error.strerror or error})") from error
