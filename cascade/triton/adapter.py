"""The adapter between the stages and Triton's Python backend.

A model.py in the repository is `from cascade.triton.adapter import TritonPythonModel`.
"""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cascade.artifact import Array
from cascade.config import ProcessConfig, Product, of_release
from cascade.encoding import InvalidInput
from cascade.release import RELEASE_FILE, check_stages, read_release
from cascade.runtime import spans
from cascade.spec import (
    CONTEXT,
    DEADLINE,
    ENSEMBLE,
    RECOMMEND_FILTERED,
    RELEASE,
    REPOSITORY_VARIABLE,
    USER_ID,
)
from cascade.stages.load import deny_list_of, load_stages
from cascade.triton import request_log
from cascade.triton.admission import AGAIN, Admission
from cascade.triton.metrics import Metrics
from cascade.triton.request_log import RequestLog
from cascade.triton.utf8 import use_utf8

Arrays = tuple[Any, ...]  # the inputs of a request in order; None for an absent optional one


class TritonPythonModel:
    """Runs the stages of one process: joins the requests of a batch, computes them in as few runs
    as `users_per_run` allows, and splits the answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by Triton when it loads a version.

        Raises CascadeError: the version cannot be served; Triton reports the message.
        """
        use_utf8()
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        process = ProcessConfig.from_parameters(parameters)
        model = Path(args["model_repository"])
        repository = Path(os.environ.get(REPOSITORY_VARIABLE, model.parent))
        self.name, release = args["model_name"], int(args["model_version"])
        check_stages(model.parent, release, process.stages)
        self.stage = load_stages(
            process.stages,
            model / args["model_version"],
            replace(process.serving, device_id=int(args["model_instance_device_id"])),
            process.candidates,
            deny_list_of(repository, process.product, serving=True),
            _formulas(model.parent, release, process.product),
        )
        self.absent = {
            tensor["name"]: (
                [int(size) for size in tensor["dims"]],
                np.dtype(pb_utils.triton_string_to_numpy(tensor["data_type"])),
            )
            for tensor in config["input"]
            if tensor.get("optional")
        }
        self.needed = frozenset(self.stage.needed)
        self.users_per_run = process.serving.users_per_run
        self.admission = Admission.of(config, release, process.serving.max_queue_size)
        self.declared = {
            output["name"] for output in config["output"]
        }  # all, or of earlier releases
        self.release = release if RELEASE.name in self.declared else None
        self.log = RequestLog(self.name, release, request_log.wanted(parameters))
        held = getattr(self.stage, "stages", (self.stage,))
        stages = dict(zip(process.stages, held, strict=True))
        self.metrics = Metrics(pb_utils, self.name, release, stages, self.log)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Called by Triton with the requests of a batch -> a response to each, in their order."""
        if self.admission.refuses(len(requests)):
            self.metrics.error("queue", len(requests))
            message = f"more than {self.admission.most} users wait for {self.name}: {AGAIN}"
            return [_error(message, pb_utils.TritonError.UNAVAILABLE) for _ in requests]
        refusals = [self._late(request) for request in requests]
        if not any(refusals):
            return self._compute(requests)
        left = [r for r, refusal in zip(requests, refusals, strict=True) if refusal is None]
        answers = iter(self._compute(left) if left else ())
        return [next(answers) if refusal is None else refusal for refusal in refusals]

    def finalize(self) -> None:
        """Called by Triton when it unloads the version."""
        self.metrics.close()
        spans.write()

    def _late(self, request: Any) -> Any | None:
        """The error response to a request whose deadline has passed; None for all others."""
        deadline = _parameter(request, DEADLINE)
        if deadline is None:
            return None
        if type(deadline) is not int:
            self.metrics.error("input")
            message = f"parameter {DEADLINE}: {deadline!r} came; send whole microseconds since 1970"
            return _error(message, pb_utils.TritonError.INVALID_ARG)
        if time.time_ns() // 1000 <= deadline:
            return None
        self.metrics.error("late")
        message = f"its deadline passed before {self.name} began: allow more time"
        return _error(message, pb_utils.TritonError.CANCELLED)

    def _compute(self, requests: Sequence[Any]) -> list[Any]:
        spans.end(spans.START)
        start = time.perf_counter()
        try:
            inputs = [self._read(request) for request in requests]
            answers, users = self._answer(inputs), [len(arrays[0]) for arrays in inputs]
        except Exception:
            # One of the requests is invalid, or the stage fails: run each request alone, so that
            # only the invalid one gets an error.
            answers = [self._answer_one(request) for request in requests]
            users = [request.inputs()[0].shape()[0] for request in requests]
        seconds = time.perf_counter() - start
        self.metrics.batch(sum(users), seconds)
        if self.log.every_request:
            ids = map(_request_id, requests)
            self.log.answered([*zip(ids, users, strict=True)], seconds)
        self.admission.look(sum(users), len(requests))
        return answers

    def _read(self, request: Any) -> Arrays:
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        users = tensors[next(iter(tensors))].shape()[0]
        if not self.needed <= tensors.keys():
            self._check(tensors)
        optional = (tensors.get(name) for name in self.stage.optional)
        return (
            *(
                tensors[name].as_numpy() if name in tensors else self._blank(name, users)
                for name in self.stage.inputs
            ),
            *(None if tensor is None else tensor.as_numpy() for tensor in optional),
        )

    def _check(self, given: Collection[str]) -> None:
        """Raises InvalidInput for a request that says nothing of some of its user's features."""
        missing = [name for name in self.stage.needed if name not in given]
        if missing and not {USER_ID, CONTEXT} & {*given}:
            raise InvalidInput(
                f"input {' and '.join(missing)} is missing: send it, or the user's raw values by "
                f"feature name as a JSON object in the input {CONTEXT} of {RECOMMEND_FILTERED}"
            )

    def _blank(self, name: str, users: int) -> Array:
        """Stands in for an input of the stage that the request left out: NaN, or empty texts."""
        dims, dtype = self.absent[name]
        return np.full((users, *dims), b"" if dtype == np.object_ else np.nan, dtype)

    def _answer_one(self, request: Any) -> Any:
        request_id = _request_id(request)
        try:
            return self._answer([self._read(request)])[0]
        except InvalidInput as error:
            self.metrics.error("input")
            self.log.problem(request_id, "warning", str(error))
            return _error(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            # A caller cannot act on it: the traceback goes into the log, not over the wire.
            self.metrics.error("stage")
            self.log.problem(request_id, "error", repr(error), traceback.format_exc())
            message = f"{self.name} failed ({type(error).__name__}); the server's log says why"
            return _error(message, pb_utils.TritonError.INTERNAL)

    def _answer(self, inputs: list[Arrays]) -> list[Any]:
        joined = inputs[0] if len(inputs) == 1 else _joined(inputs)
        spans.end("read")
        outputs = self._run(*joined)
        responses, start = [], 0
        for arrays in inputs:
            stop = start + len(arrays[0])
            tensors = [
                pb_utils.Tensor(name, output[start:stop])
                for name, output in zip(self.stage.outputs, outputs, strict=True)
                if name in self.declared
            ]
            if self.release is not None:
                releases = np.full((stop - start, 1), self.release, np.int64)
                tensors.append(pb_utils.Tensor(RELEASE.name, releases))
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        spans.end("answer")
        return responses

    def _run(self, *inputs: Any) -> tuple[Array, ...]:
        users, most = len(inputs[0]), self.users_per_run or len(inputs[0])
        if users <= most:
            return self.stage(*inputs)
        runs = [
            self.stage(*(x if x is None else x[i : i + most] for x in inputs))
            for i in range(0, users, most)
        ]
        return tuple(map(np.concatenate, zip(*runs, strict=True)))


def _formulas(repository: Path, number: int, product: Product) -> Product:
    """The settings with the formulas of a release: Triton keeps one config.pbtxt for all versions
    that are loaded, and each has its own, as its release.json says."""
    if not (repository / ENSEMBLE / str(number) / RELEASE_FILE).exists():
        return product
    _, own = of_release(read_release(repository, number))
    return replace(product, score=own.score, prerank_score=own.prerank_score)


def _joined(requests: Sequence[Arrays]) -> Arrays:
    """The inputs of all requests of a batch. An optional input that no request has is None; if only
    some have it, it is empty for the others."""
    return tuple(_column(parts, requests) for parts in zip(*requests, strict=True))


def _column(parts: Arrays, requests: Sequence[Arrays]) -> Array | None:
    if all(part is None for part in parts):
        return None
    joined: Array = np.concatenate(
        [
            np.full((len(request[0]), 1), b"", object) if part is None else part
            for part, request in zip(parts, requests, strict=True)
        ]
    )
    return joined


def _parameter(request: Any, name: str) -> Any:
    """A parameter of a request; None if the request has none of that name."""
    text: str = request.parameters()
    if name not in text:
        return None
    try:
        return json.loads(text).get(name)
    except ValueError:  # a number that is not finite: the server has no JSON for it
        return math.nan


def _request_id(request: Any) -> str:
    """The client's id; empty where it is not UTF-8, which HTTP lets through."""
    try:
        return str(request.request_id())
    except UnicodeDecodeError:
        return ""


def _error(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
