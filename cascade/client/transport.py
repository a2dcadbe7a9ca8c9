"""How requests reach the server: tritonclient's two gRPC clients, in clear or over TLS."""

from __future__ import annotations

import argparse
import asyncio
import ssl
import time
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
from tritonclient.utils import np_to_triton_dtype

from cascade.client.plan import Answer, Tensors
from cascade.errors import CascadeError
from cascade.spec import DEADLINE

# After a failed connection gRPC answers UNAVAILABLE from memory until its own backoff is over. At
# its default of a second and more, our retries would mostly hear that echo.
CHANNEL = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
OUTPUTS = tuple(field.name for field in fields(Answer))


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


class BlockingTransport:
    """The sync client: its coroutines block and never suspend. Threads may share it."""

    def __init__(self, url: str, tls: Tls | None, send_deadline: bool) -> None:
        options = tls.options() if tls else {}
        self._client = grpc.InferenceServerClient(url, channel_args=CHANNEL, **options)
        self._send_deadline = send_deadline

    async def config(self, model: str, timeout_s: float) -> Any:
        return self._client.get_model_config(model, client_timeout=timeout_s).config

    async def infer(
        self, model: str, tensors: Tensors, timeout_s: float, request_id: str
    ) -> Answer:
        arguments = _arguments(model, tensors, timeout_s, request_id, self._send_deadline)
        return _answer(self._client.infer(**arguments))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        self._client.close()


class AsyncTransport:
    """The asyncio client, of one event loop."""

    def __init__(self, url: str, tls: Tls | None, send_deadline: bool) -> None:
        self._url, self._options = url, tls.options() if tls else {}
        self._send_deadline = send_deadline
        self._opened: grpc_aio.InferenceServerClient | None = None

    @property
    def _client(self) -> grpc_aio.InferenceServerClient:
        """Opened by the first call, because a channel belongs to the loop that runs then."""
        if self._opened is None:
            options = {"channel_args": CHANNEL, **self._options}
            self._opened = grpc_aio.InferenceServerClient(self._url, **options)
        return self._opened

    async def config(self, model: str, timeout_s: float) -> Any:
        return (await self._client.get_model_config(model, client_timeout=timeout_s)).config

    async def infer(
        self, model: str, tensors: Tensors, timeout_s: float, request_id: str
    ) -> Answer:
        arguments = _arguments(model, tensors, timeout_s, request_id, self._send_deadline)
        return _answer(await self._client.infer(**arguments))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()


Transport = BlockingTransport | AsyncTransport
"""Its calls raise InferenceServerException."""


def _arguments(
    model: str, tensors: Tensors, timeout_s: float, request_id: str, send_deadline: bool
) -> dict[str, Any]:
    """The arguments of `infer`."""
    timeout_us = max(1, int(timeout_s * 1e6))
    inputs = []
    for name, values in tensors.items():
        inputs.append(grpc.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
        inputs[-1].set_data_from_numpy(values)
    return {
        "model_name": model,
        "inputs": inputs,
        "client_timeout": timeout_s,
        # Where a model's queue policy allows it, the server drops the request after this time.
        "timeout": timeout_us,
        "parameters": {DEADLINE: time.time_ns() // 1000 + timeout_us} if send_deadline else None,
        "request_id": request_id,
    }


def _answer(result: grpc.InferResult) -> Answer:
    """The outputs by name; None for one that the model does not have."""
    return Answer(*map(result.as_numpy, OUTPUTS))
