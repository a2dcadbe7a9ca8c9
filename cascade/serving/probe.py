"""A real request to any model, made from what the server says about it: the one honest sign that it
can answer. Every number is NaN or 0 and every string empty: a user about whom nothing is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import triton_to_np_dtype


class ProbeError(RuntimeError):
    """An answer came that cannot be right."""


def send(client: grpc.InferenceServerClient, model: str, timeout_s: float) -> None:
    """Ask `model` once and read every tensor of its answer.

    Raises:
        tritonclient.utils.InferenceServerException: the model is unknown or does not answer.
        ProbeError: an output holds less than its shape says.
    """
    config = client.get_model_config(model, client_timeout=timeout_s).config
    check(client.infer(model, unknown_user(config), client_timeout=timeout_s))


def check(result: grpc.InferResult) -> None:
    """Raises ProbeError where an output holds less than its shape says."""
    answer = result.get_response()
    for output in answer.outputs:
        try:
            result.as_numpy(output.name)
        except ValueError as error:
            raise ProbeError(
                f"model {answer.model_name!r} answers with an output {output.name!r} that does not "
                f"fill its shape {list(output.shape)}. Python models do that where they import "
                "numpy 2 into a server built against numpy 1: install 'numpy<2' for the Python "
                "that runs them."
            ) from error


def unknown_user(config: Any) -> list[grpc.InferInput]:
    """A request of one row for the model with that ModelConfig: what it must have, or everything
    where it need not have any one thing. A free dimension gets length 1."""
    inputs = []
    for declared in [d for d in config.input if not d.optional] or config.input:
        shape = [max(1, size) for size in declared.dims]
        if config.max_batch_size > 0:
            shape.insert(0, 1)
        dtype = _wire_type(config, declared)
        tensor = grpc.InferInput(declared.name, shape, dtype)
        tensor.set_data_from_numpy(_nothing_known(shape, dtype))
        inputs.append(tensor)
    return inputs


def _wire_type(config: Any, declared: Any) -> str:
    """TYPE_STRING and TYPE_FP32 of a configuration are BYTES and FP32 in a request."""
    enum = declared.DESCRIPTOR.fields_by_name["data_type"].enum_type
    name = str(enum.values_by_number[declared.data_type].name).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _nothing_known(shape: list[int], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "BYTES":
        return np.full(shape, b"", object)
    kind = np.dtype(triton_to_np_dtype(dtype))
    return np.full(shape, np.nan if kind.kind == "f" else 0, kind)
