"""A real request to any model, made from the model's configuration: only an answer proves that the
model works. Every number is NaN or 0 and every string empty: a user without known features.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from cascade.client.errors import DEADLINE_EXCEEDED, is_transient
from cascade.errors import CascadeError

ITEM_IDS, SCORES = "item_ids", "scores"
RETRY_S = 0.02


class ProbeError(CascadeError):
    """An answer came that cannot be right."""


def ask_until_available(client: grpc.InferenceServerClient, model: str, timeout_s: float) -> None:
    """`send`, again while the server is unavailable (as it is when its queues are full) or loads
    the model, for at most `timeout_s`; then raises the server's last refusal."""
    deadline = time.monotonic() + timeout_s
    refusal: InferenceServerException | None = None
    while True:
        left_s = deadline - time.monotonic()
        try:
            return send(client, model, max(left_s, RETRY_S))
        except InferenceServerException as error:
            if is_transient(error):
                refusal = error
            elif error.status() != DEADLINE_EXCEEDED or refusal is None:
                raise
            if left_s <= RETRY_S or refusal is not error:
                raise refusal from None
        time.sleep(RETRY_S)


def send(client: grpc.InferenceServerClient, model: str, timeout_s: float) -> None:
    """Ask `model` once and read every tensor of its answer. Raises InferenceServerException if the
    model is unknown or does not answer, else as `check`."""
    config = client.get_model_config(model, client_timeout=timeout_s).config
    check(client.infer(model, unknown_user(config), client_timeout=timeout_s))


def check(result: grpc.InferResult) -> None:
    """Raises ProbeError if an output holds less than its shape says, or no valid ranking."""
    answer = result.get_response()
    outputs = {}
    for output in answer.outputs:
        try:
            outputs[output.name] = result.as_numpy(output.name)
        except ValueError as error:
            raise ProbeError(
                f"model {answer.model_name!r} answers with an output {output.name!r} that does not "
                f"fill its shape {list(output.shape)}. Python models do that where they import "
                "numpy 2 into a server built against numpy 1: install 'numpy<2' for the Python "
                "that runs them."
            ) from error
    if ITEM_IDS in outputs and SCORES in outputs:
        _check_ranking(answer.model_name, outputs[ITEM_IDS], outputs[SCORES])


def _check_ranking(model: str, item_ids: Any, scores: Any) -> None:
    """Every item once and with a finite score, in any order: a release may rerank. Padding, -1 or
    an empty string, does not count."""
    for ids, values in zip(item_ids, scores, strict=True):
        real = ids != b"" if ids.dtype == np.object_ else ids >= 0
        kept, ranked = ids[real], values[real]
        if len(np.unique(kept)) < len(kept) or not np.isfinite(ranked).all():
            raise ProbeError(
                f"model {model!r} answers with item_ids {ids.tolist()} and scores "
                f"{values.tolist()}; expected every item once, and numbers. Are all its files of "
                "one export?"
            )


def unknown_user(config: Any) -> list[grpc.InferInput]:
    """A request of one row for the model with that ModelConfig: its required inputs, or all inputs
    where every one is optional. A free dimension gets length 1."""
    inputs = []
    for declared in [d for d in config.input if not d.optional] or config.input:
        shape = [max(1, size) for size in declared.dims]
        if config.max_batch_size > 0:
            shape.insert(0, 1)
        dtype = _wire_type(declared)
        tensor = grpc.InferInput(declared.name, shape, dtype)
        tensor.set_data_from_numpy(_missing_values(shape, dtype))
        inputs.append(tensor)
    return inputs


def _wire_type(declared: Any) -> str:
    """TYPE_STRING and TYPE_FP32 of a configuration are BYTES and FP32 in a request."""
    name = str(model_config_pb2.DataType.Name(declared.data_type)).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _missing_values(shape: list[int], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "BYTES":
        return np.full(shape, b"", object)
    kind = np.dtype(triton_to_np_dtype(dtype))
    return np.full(shape, np.nan if kind.kind == "f" else 0, kind)
