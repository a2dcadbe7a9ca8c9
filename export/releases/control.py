"""Loads and unloads models of a running server, and asks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from cascade import pbtxt
from cascade.artifact import Array
from cascade.client import channel
from cascade.client.errors import DEADLINE_EXCEEDED, UNAVAILABLE
from cascade.errors import CascadeError
from cascade.server import starved
from cascade.spec import CHALLENGER_SHARE, ENSEMBLE

LOAD_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 30.0
FOLLOWS_S = 5.0  # until a server that copies its repository has a new configuration
LOOK_S = 0.2
ABSENT = "failed to poll from model repository"  # of the server about a model that it does not find
TRIES = 3  # on a connection that broke; every call may be repeated


class ControlError(CascadeError):
    """The server refuses, or does not answer; the message is the server's."""


class Control:
    """A server whose models are under explicit control: HOST:PORT of its gRPC service, and the
    headers that its restricted protocols require."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url, self._headers = url, dict(headers or {})
        self._client = channel.connect(url)

    def load(self, model: str, config: pb.ModelConfig, signed: bool) -> float:
        """Load a model as its config.pbtxt, `config`, now says -> seconds that it took. A server
        that serves a copy of its repository (`cascade.server.trust`) has it a little later: then
        the model is loaded once more. `signed`: its releases are, so the copy will have them.

        Raises ControlError: the server did not load it; what was loaded before stays.
        """
        start = time.monotonic()
        while True:
            late = time.monotonic() > start + (LOAD_TIMEOUT_S if signed else FOLLOWS_S)
            try:
                seconds = self._call("load", model, partial(starved.load, self._client))
                if self._has(model, config):
                    return seconds
            except ControlError as error:
                if ABSENT not in str(error) or time.monotonic() > start + FOLLOWS_S:
                    raise
            if late:
                raise ControlError(
                    f"{self.url} loads another configuration of {model} than that of this "
                    "repository: it serves another one, or only releases that a key of its --trust "
                    "signed (--sign KEY); its output says more"
                )
            time.sleep(LOOK_S)

    def _has(self, model: str, config: pb.ModelConfig) -> bool:
        """Whether the server has the versions of a model that a configuration says, and answers
        with its release, and for its share. Raises ControlError."""
        limits = {"client_timeout": ANSWER_TIMEOUT_S}
        try:
            ask = self._client.get_model_repository_index
            index = _asked(ask, headers=self._headers, **limits).models
            ready = {m.version for m in index if m.name == model and m.state == "READY"}
            if not {*map(str, config.version_policy.specific.versions)} <= ready:
                return False
            if not config.ensemble_scheduling.step:
                return True
            found = _asked(self._client.get_model_config, model, **limits).config
        except InferenceServerException as error:
            raise ControlError(f"{self.url} has no {model}: {error.message()}") from error
        return pbtxt.pinned(found) == pbtxt.pinned(config) and _share(found) == _share(config)

    def unload(self, model: str) -> None:
        """Unload a model. Raises ControlError."""
        self._call("unload", model, self._client.unload_model)

    def _call(self, verb: str, model: str, call: Callable[..., None]) -> float:
        start = time.perf_counter()
        try:
            _asked(call, model, headers=self._headers, client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            reason = error.message()
            if error.status() == DEADLINE_EXCEEDED:
                reason = (
                    f"it took more than {LOAD_TIMEOUT_S:g} s. A server that was not started by "
                    "python -m cascade.server may wait for a worker that got no processor: start "
                    "it again"
                )
            raise ControlError(f"{self.url} did not {verb} {model}: {reason}") from error
        return time.perf_counter() - start

    def ask(self, model: str, version: int | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by name -> arrays by name. Raises ControlError: there is no answer."""
        tensors = []
        for name, value in inputs.items():
            tensor = grpc.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(np.ascontiguousarray(value))
            tensors.append(tensor)
        try:
            number = "" if version is None else str(version)
            limit = {"client_timeout": ANSWER_TIMEOUT_S}
            answer = _asked(self._client.infer, model, tensors, number, **limit)
        except InferenceServerException as error:
            raise ControlError(f"{model} of {self.url}: {error.message()}") from error
        return {o.name: answer.as_numpy(o.name) for o in answer.get_response().outputs}

    def release(self) -> int | None:
        """The release that `recommend` answers with, None without one. Raises ControlError."""
        try:
            limit = {"client_timeout": ANSWER_TIMEOUT_S}
            found = _asked(self._client.get_model_config, ENSEMBLE, **limit)
        except InferenceServerException as error:
            if error.status() in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT"):
                return None
            raise ControlError(
                f"no server answers at {self.url} ({error.message()}): start it, or publish "
                "without --url"
            ) from error
        return pbtxt.pinned(found.config)


def _share(config: pb.ModelConfig) -> str:
    found = config.parameters
    return str(found[CHALLENGER_SHARE].string_value) if CHALLENGER_SHARE in found else ""


def _asked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What the call returns. A publisher's connection lies idle while a release is made, and may
    have died meanwhile: gRPC notices that by this call, and has another connection for the next."""
    for left in reversed(range(TRIES)):
        try:
            return call(*arguments, **options)
        except InferenceServerException as error:
            if error.status() != UNAVAILABLE or not left:
                raise
