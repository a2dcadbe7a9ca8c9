"""The one adapter between a stage and Triton's Python backend.

A model.py in the repository is `from cascade.serving.triton import Retrieve as TritonPythonModel`.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import triton_python_backend_utils as pb_utils

from cascade.encoding import InvalidInput
from cascade.serving.runtime import Array
from cascade.serving.stages import Stage, load_stage
from cascade.spec import PRERANK, RANK, RETRIEVE, Serving


class TritonModel:
    """Runs one stage: concatenates the requests of a batch, runs once, splits the answers."""

    name: ClassVar[str]
    stage: Stage

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {k: v["string_value"] for k, v in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        gpu = int(args["model_instance_device_id"])
        serving = replace(Serving.from_parameters(values), device_id=gpu)
        self.stage = load_stage(self.name, folder, serving, int(values["candidates"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        inputs = [
            tuple(pb_utils.get_input_tensor_by_name(r, n).as_numpy() for n in self.stage.inputs)
            for r in requests
        ]
        try:
            return self._answer(inputs)
        except Exception:
            # Somebody's mistake: find out whose, and let the neighbours have their answers.
            return [self._answer_one(arrays) for arrays in inputs]

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
        if len(inputs) == 1:
            outputs = self.stage(*inputs[0])
        else:
            outputs = self.stage(*(np.concatenate(arrays) for arrays in zip(*inputs, strict=True)))
        responses, start = [], 0
        for arrays in inputs:
            stop = start + len(arrays[0])
            tensors = [
                pb_utils.Tensor(name, output[start:stop])
                for name, output in zip(self.stage.outputs, outputs, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = stop
        return responses


def _refusal(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


class Retrieve(TritonModel):
    """The first stage."""

    name = RETRIEVE


class Prerank(TritonModel):
    """The second stage."""

    name = PRERANK


class Rank(TritonModel):
    """The third stage."""

    name = RANK
