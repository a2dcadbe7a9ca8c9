"""What goes over gRPC: a step of the conversation as a request, and an answer's tensors."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import tritonclient.grpc as grpc
from tritonclient.utils import np_to_triton_dtype

from cascade.client.conversation import AskItems
from cascade.client.layout import Answer
from cascade.spec import DEADLINE


def request(model: str, step: AskItems, send_deadline: bool) -> dict[str, Any]:
    """The arguments of `infer`, of the sync and of the asyncio client."""
    timeout_us = max(1, int(step.timeout_s * 1e6))
    inputs = []
    for name, values in step.tensors.items():
        inputs.append(grpc.InferInput(name, values.shape, np_to_triton_dtype(values.dtype)))
        inputs[-1].set_data_from_numpy(values)
    return {
        "model_name": f"{step.model or model}{step.ending}",
        "inputs": inputs,
        "client_timeout": step.timeout_s,
        # Where a model's queue policy allows it, the server drops it then: nobody would read it.
        "timeout": timeout_us,
        "parameters": {DEADLINE: time.time_ns() // 1000 + timeout_us} if send_deadline else None,
        "request_id": step.request_id,
    }


def answer(result: grpc.InferResult) -> Answer:
    """The outputs by name; None for one that the model does not have."""
    return Answer(*(result.as_numpy(field.name) for field in fields(Answer)))
