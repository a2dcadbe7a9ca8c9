"""A real request to any model, made from what the server says about it: the one honest sign that it
can answer. Every number is NaN or 0 and every string empty: a user about whom nothing is known.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from cascade.errors import CascadeError

ITEM_IDS, SCORES = "item_ids", "scores"
AGAIN_S = 0.02
UNAVAILABLE, DEADLINE_EXCEEDED = "StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"
LOADING = "has no available versions"  # Triton says NOT_FOUND then


class ProbeError(CascadeError):
    """An answer came that cannot be right."""


def insist(client: grpc.InferenceServerClient, model: str, timeout_s: float) -> None:
    """`send`, again and again while the server is unavailable, which it also is when its queues
    are full, or loads the model, for so long in all.

    Raises:
        tritonclient.utils.InferenceServerException, ProbeError: as `send`; where time ran out after
            the server had been unavailable, what it said then.
    """
    deadline = time.monotonic() + timeout_s
    refusal: InferenceServerException | None = None
    while True:
        left_s = deadline - time.monotonic()
        try:
            return send(client, model, max(left_s, AGAIN_S))
        except InferenceServerException as error:
            if error.status() == UNAVAILABLE or LOADING in error.message():
                refusal = error
            elif error.status() != DEADLINE_EXCEEDED or refusal is None:
                raise
            if left_s <= AGAIN_S or refusal is not error:
                raise refusal from None
        time.sleep(AGAIN_S)


def send(client: grpc.InferenceServerClient, model: str, timeout_s: float) -> None:
    """Ask `model` once and read every tensor of its answer.

    Raises:
        tritonclient.utils.InferenceServerException: the model is unknown or does not answer.
        ProbeError: an output holds less than its shape says, or what no ranking is.
    """
    config = client.get_model_config(model, client_timeout=timeout_s).config
    check(client.infer(model, unknown_user(config), client_timeout=timeout_s))


def check(result: grpc.InferResult) -> None:
    """Raises ProbeError where an answer cannot be right."""
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
    """Every item once, with a number; a release may choose another order than the scores'. Pads,
    -1, do not count."""
    for ids, values in zip(item_ids, scores, strict=True):
        kept, ranked = ids[ids >= 0], values[ids >= 0]
        if len(np.unique(kept)) < len(kept) or not np.isfinite(ranked).all():
            raise ProbeError(
                f"model {model!r} answers with item_ids {ids.tolist()} and scores "
                f"{values.tolist()}; expected every item once, and numbers. Are all its files of "
                "one export?"
            )


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
