"""Access to a server: the key that guards its control, TLS, and the keys that sign releases.

Every client that reaches the server may ask for recommendations and read configurations, health
and statistics. What changes the server (loading models, shared memory, traces, logging) takes a
key, over gRPC and over HTTP alike.

tritonserver takes the key on its command line alone. The launcher wipes it from there as soon as
the server answers (`process.wipe`); while models load, every user that may list the processes of
this machine can read it. Model code never finds the key in its environment.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpc import ChannelCredentials, ssl_channel_credentials

from cascade.client.tls import check_files
from cascade.errors import CascadeError, need

KEY_VARIABLE = "CASCADE_CONTROL_KEY"
KEY_HEADER = "control-key"
GRPC_PREFIX = "triton-grpc-protocol-"  # which tritonserver puts before the header's name
GUARDED = ("model-repository", "shared-memory", "trace", "logging")
# tritonserver splits its argument at colons and at equals signs.
_KEY = re.compile(r"[A-Za-z0-9_-]{16,}")


class SecurityError(CascadeError, ValueError):
    """A control key or a TLS file that cannot be used."""


class TrustError(CascadeError):
    """A key cannot be used, or what the repository wants served is not signed by a trusted one."""


def control_key(file: Path | None = None) -> str:
    """The key from a file, else from the environment, else a new random one. Raises SecurityError
    if it is too short, or tritonserver could not tell where it ends."""
    given = _key_in(file) if file else os.environ.get(KEY_VARIABLE)
    key = secrets.token_urlsafe(32) if given is None else given
    if not _KEY.fullmatch(key):
        raise SecurityError(
            f"the control key of {file or KEY_VARIABLE} has {len(key)} characters; expected 16 or "
            "more, and only letters, digits, - and _. Make one with: openssl rand -hex 32"
        )
    return key


def _key_in(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SecurityError(
            f"the control key file {file} is not text in UTF-8; make one with: openssl rand -hex 32"
        ) from error


def headers(key: str) -> dict[str, str]:
    """What a request that changes the server carries: the header for gRPC and the one for HTTP."""
    return {GRPC_PREFIX + KEY_HEADER: key, KEY_HEADER: key}


def arguments(key: str) -> Iterator[str]:
    """The arguments that make tritonserver ask for the key."""
    guarded = f"{','.join(GUARDED)}:{KEY_HEADER}={key}"
    yield f"--grpc-restricted-protocol={guarded}"
    yield f"--http-restricted-api={guarded}"


@dataclass(frozen=True)
class HeldTls:
    """TLS of a client with what its files held once."""

    credentials: ChannelCredentials

    def options(self) -> dict[str, Any]:
        """Arguments of a tritonclient."""
        return {"creds": self.credentials}


@dataclass(frozen=True)
class ServerTls:
    """gRPC in TLS. Triton's HTTP has none, so the launcher switches HTTP off.

    Args:
        cert, key: PEM files of the server: its certificate chain, its key.
        client_ca: authority of the clients' certificates; when it is given, the server refuses
            clients without a certificate. The launcher then shows the server's own certificate,
            so this authority must have signed that one, too.
        name: a name in the certificate; the launcher, which asks 127.0.0.1, checks for it.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None
    name: str = "localhost"

    def __post_init__(self) -> None:
        check_files(self.client_ca, self.key, self.cert)

    def arguments(self) -> Iterator[str]:
        """The arguments that make tritonserver encrypt."""
        yield "--allow-http=false"
        yield "--grpc-use-ssl=true"
        yield f"--grpc-server-cert={self.cert.resolve()}"
        yield f"--grpc-server-key={self.key.resolve()}"
        if self.client_ca is not None:
            yield "--grpc-use-ssl-mutual=true"
            yield f"--grpc-root-cert={self.client_ca.resolve()}"

    def connection(self) -> tuple[HeldTls, dict[str, Any]]:
        """For the launcher's own client: its TLS, which holds what the files hold now, and channel
        arguments. The client trusts the server's certificate itself, whatever authority signed it.
        Raises OSError: a file cannot be read."""
        cert = self.cert.read_bytes()
        own = (self.key.read_bytes(), cert) if self.client_ca else ()
        held = HeldTls(ssl_channel_credentials(cert, *own))
        return held, {"grpc.ssl_target_name_override": self.name}


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys of ed25519, any of which may have signed a release."""

    keys: tuple[Any, ...]

    @classmethod
    def read(cls, files: Sequence[Path]) -> TrustedKeys:
        """From PEM files, one key in each. Raises TrustError: cannot be used; OSError."""
        return cls(tuple(map(_public_key, files)))

    def check(self, content: bytes, signature: bytes) -> None:
        """Raises TrustError unless one of the keys made the signature of this content."""
        from cryptography.exceptions import InvalidSignature

        for key in self.keys:
            with suppress(InvalidSignature):
                key.verify(signature, content)
                return
        raise TrustError("no trusted key signed it as it is")


def _public_key(file: Path) -> Any:
    need("cryptography", "--trust", "sign", TrustError)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(file.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(
            f"{file} holds no public key in PEM; make one of the private key with: "
            "openssl pkey -in release.key -pubout -out release.pub"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        kind = type(key).__name__.removeprefix("_")
        raise TrustError(f"{file} holds a key of another kind, {kind}; expected ed25519")
    return key
