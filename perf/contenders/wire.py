"""What goes over the wire to each kind of server: complete HTTP requests built beforehand, and the
reading of their answers.

Triton's requests use the binary tensor extension of its inference protocol (v2): a JSON header that
names the tensors, then their bytes, those of a text behind its length. Its own client writes and
reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from tritonclient import http
from tritonclient.http import InferenceServerClient

from cascade.errors import CascadeError
from cascade.spec import ENSEMBLE
from perf.payload import Payload

Answer = tuple[Any, Any]  # item_ids [R], scores [R]


class WireError(CascadeError):
    """A server refused a request or gave an answer that cannot be read."""


@dataclass(frozen=True)
class Wire:
    """How one kind of server is asked over HTTP.

    Args:
        request: a user (dense [1, F], categorical [1, C]) -> the complete HTTP request.
        answer: lower-case headers and body of an answer of status 200 -> item_ids, scores.
    """

    request: Callable[[Any, Any], bytes]
    answer: Callable[[dict[str, str], bytes], Answer]

    def requests(self, users: Payload) -> list[bytes]:
        """One per user, in their order."""
        return [
            self.request(users.dense[row : row + 1], users.categorical[row : row + 1])
            for row in range(len(users))
        ]


def _post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = {"Host": "localhost", **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def _triton_request(dense: Any, categorical: Any) -> bytes:
    return triton_request(ENSEMBLE, dense=(dense, "FP32"), categorical=(categorical, "BYTES"))


def triton_request(model: str, **tensors: tuple[Any, str]) -> bytes:
    """A request to any model of Triton.

    Args:
        tensors: by name, the array [1, ...] and the type that Triton calls it by.
    """
    inputs = []
    for name, (values, dtype) in tensors.items():
        inputs.append(http.InferInput(name, values.shape, dtype))
        inputs[-1].set_data_from_numpy(values, binary_data=True)
    body, length = InferenceServerClient.generate_request_body(inputs)
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(length),
    }
    return _post(f"/v2/models/{model}/infer", body, headers)


def _triton_answer(headers: dict[str, str], body: bytes) -> Answer:
    length = int(headers["inference-header-content-length"])
    result = InferenceServerClient.parse_response_body(body, header_length=length)
    return result.as_numpy("item_ids")[0], result.as_numpy("scores")[0]


def _json_request(dense: Any, categorical: Any) -> bytes:
    user = {
        "dense": [None if np.isnan(x) else float(x) for x in dense[0]],
        "categorical": [text.decode() or None for text in categorical[0]],
    }
    return _post("/recommend", orjson.dumps(user), {"Content-Type": "application/json"})


def _json_answer(headers: dict[str, str], body: bytes) -> Answer:
    answer = orjson.loads(body)
    return np.array(answer["item_ids"], np.int64), np.array(answer["scores"], np.float32)


TRITON = Wire(_triton_request, _triton_answer)
JSON = Wire(_json_request, _json_answer)
