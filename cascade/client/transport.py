"""How requests reach the server: tritonclient's two gRPC clients, in clear or over TLS. Each opens
another channel when nothing comes over the one that it has (`channel.Silence`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from typing import Any, ClassVar

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from cascade.client import channel
from cascade.client.channel import ChannelArgs
from cascade.client.errors import DEADLINE_EXCEEDED, Closed, WrongLoop, no_address
from cascade.client.plan import Answer, Tensors
from cascade.client.tls import Tls
from cascade.spec import DEADLINE

OUTPUTS = tuple(field.name for field in fields(Answer))


class _Renewed:
    """A client of tritonclient, made by `_connect`, and made again when its connection has died.
    The calls under way keep the one that they began with; it closes when they have ended and
    Python frees it."""

    _connect: ClassVar[Callable[..., Any]]

    def __init__(
        self, url: str, tls: Tls | None, send_deadline: bool, channel_args: ChannelArgs = ()
    ) -> None:
        given = dict(channel.arguments(url, channel_args))
        self._open = partial(type(self)._connect, url, tls, given)
        self._send_deadline = send_deadline
        self._client: Any = None
        self._silence = channel.Silence()

    @contextmanager
    def _calling(self) -> Iterator[Any]:
        """The client for one call, whose outcome counts. A cancelled call is one without an answer:
        callers set deadlines of their own by `asyncio.wait_for`."""
        client = self._client
        if client is None:
            raise Closed()
        try:
            yield client
        except InferenceServerException as error:
            if error.status() == DEADLINE_EXCEEDED or no_address(error):
                self._missed(client)
            else:
                self._silence.answered()
            raise
        except asyncio.CancelledError:
            self._missed(client)
            raise
        self._silence.answered()

    def _missed(self, client: Any) -> None:
        if client is self._client and self._silence.missed():
            with suppress(OSError):  # of a file of TLS that is being replaced
                self._client = self._open()


class BlockingTransport(_Renewed):
    """The sync client: its coroutines block and never suspend. Threads may share it."""

    _connect = staticmethod(channel.connect)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._client = self._open()

    async def config(self, model: str, timeout_s: float) -> Any:
        with self._calling() as client:
            return client.get_model_config(model, client_timeout=timeout_s).config

    async def infer(
        self, model: str, tensors: Tensors, timeout_s: float, request_id: str
    ) -> Answer:
        arguments = _arguments(model, tensors, timeout_s, request_id, self._send_deadline)
        with self._calling() as client:
            return _answer(client.infer(**arguments))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


class AsyncTransport(_Renewed):
    """The asyncio client, of one event loop."""

    _connect = staticmethod(channel.connect_aio)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._loop: asyncio.AbstractEventLoop | None = None

    def _open_here(self) -> None:
        """The first call opens the channel, which belongs to the loop that runs then. Raises
        WrongLoop in another."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._client = loop, self._open()
        elif self._loop is not loop:
            raise WrongLoop()

    async def config(self, model: str, timeout_s: float) -> Any:
        self._open_here()
        with self._calling() as client:
            return (await client.get_model_config(model, client_timeout=timeout_s)).config

    async def infer(
        self, model: str, tensors: Tensors, timeout_s: float, request_id: str
    ) -> Answer:
        self._open_here()
        arguments = _arguments(model, tensors, timeout_s, request_id, self._send_deadline)
        with self._calling() as client:
            return _answer(await client.infer(**arguments))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        client, self._client = self._client, None
        if client is not None and self._loop is loop:
            await client.close()
        self._loop = self._loop or loop


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
