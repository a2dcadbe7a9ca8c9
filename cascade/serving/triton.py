"""The one adapter between stages and Triton's Python backend.

A model.py in the repository is `from cascade.serving.triton import TritonPythonModel`.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from cascade.encoding import InvalidInput
from cascade.serving import marks
from cascade.serving.runtime import Array
from cascade.serving.stages import load_stages
from cascade.spec import Serving


class TritonPythonModel:
    """Runs the stages of one process: concatenates the requests of a batch, computes them in as
    few runs as `users_per_run` allows, splits the answers."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {k: v["string_value"] for k, v in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        gpu = int(args["model_instance_device_id"])
        serving = replace(Serving.from_parameters(values), device_id=gpu)
        self.name = args["model_name"]
        names = values["stages"].split(",")
        self.stage = load_stages(names, folder, serving, int(values["candidates"]))
        self.absent = {
            tensor["name"]: (
                [int(size) for size in tensor["dims"]],
                np.dtype(pb_utils.triton_string_to_numpy(tensor["data_type"])),
            )
            for tensor in config["input"]
            if tensor.get("optional")
        }
        self.users_per_run = serving.users_per_run

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        marks.mark(marks.START)
        inputs = [self._read(request) for request in requests]
        try:
            return self._answer(inputs)
        except Exception:
            # Somebody's mistake: find out whose, and let the neighbours have their answers.
            return [self._answer_one(arrays) for arrays in inputs]

    def finalize(self) -> None:
        marks.write()

    def _read(self, request: Any) -> tuple[Array, ...]:
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        users = tensors[next(iter(tensors))].shape()[0]
        return tuple(
            tensors[name].as_numpy() if name in tensors else self._nothing(name, users)
            for name in self.stage.inputs
        )

    def _nothing(self, name: str, users: int) -> Array:
        """Stands in for an optional input that a request left out: NaN, or empty texts."""
        dims, dtype = self.absent[name]
        return np.full((users, *dims), b"" if dtype == np.object_ else np.nan, dtype)

    def _answer_one(self, arrays: tuple[Array, ...]) -> Any:
        try:
            return self._answer([arrays])[0]
        except InvalidInput as error:
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            # Nothing a caller can act on: the traceback goes into the log, not over the wire.
            pb_utils.Logger.log_error(f"{self.name}: {traceback.format_exc()}")
            message = f"{self.name} failed ({type(error).__name__}); the server's log says why"
            return _refusal(message, pb_utils.TritonError.INTERNAL)

    def _answer(self, inputs: list[tuple[Array, ...]]) -> list[Any]:
        one = len(inputs) == 1
        joined = inputs[0] if one else tuple(map(np.concatenate, zip(*inputs, strict=True)))
        marks.mark("read")
        outputs = self._run(*joined)
        responses, start = [], 0
        for arrays in inputs:
            stop = start + len(arrays[0])
            tensors = [
                pb_utils.Tensor(name, output[start:stop])
                for name, output in zip(self.stage.outputs, outputs, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        marks.mark("answer")
        return responses

    def _run(self, *inputs: Array) -> tuple[Array, ...]:
        users, most = len(inputs[0]), self.users_per_run or len(inputs[0])
        if users <= most:
            return self.stage(*inputs)
        runs = [self.stage(*(x[i : i + most] for x in inputs)) for i in range(0, users, most)]
        return tuple(map(np.concatenate, zip(*runs, strict=True)))


def _refusal(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
