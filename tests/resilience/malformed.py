"""Requests that no client library makes, drawn by hypothesis: over gRPC and over HTTP."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from cascade.spec import DEADLINE, ENSEMBLE, RECOMMEND_FILTERED, STAGES

NAMES = (
    *("dense", "categorical", "context", "exclude", "allow"),
    *("user_dense", "user_ids", "candidates", "x", "", "item_ids"),
)
DTYPES = ("FP32", "FP64", "INT64", "INT8", "BYTES", "BOOL", "FP16", "", "TYPE_FP32", "no")
FRONTS = (ENSEMBLE, RECOMMEND_FILTERED)
MODELS = (*FRONTS, *FRONTS, *STAGES, "absent", "", "../recommend", "recommend\0")
VERSIONS = ("", "", "1", "2", "-1", "x", "99999999999999999999")
LONGEST = 4096
HUGE = 2**62
# Lengths that lie: of a string in a tensor, of a tensor in a body, of a body.
LENGTHS = st.sampled_from((0, 1, 7, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1))
DIMS = st.one_of(st.integers(0, 70), st.sampled_from((-1, -HUGE, 2**31, HUGE)))
PARAMETERS = st.one_of(
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(pb.InferParameter, string_param=st.text(max_size=50)),
    st.builds(pb.InferParameter, double_param=st.floats()),
)
SHAPES = st.one_of(st.sampled_from(([1, 13], [1, 6], [2, 13])), st.lists(DIMS, max_size=5))


@dataclass(frozen=True)
class Malformed:
    """What to send: the bytes of a gRPC message, or those of a whole HTTP request."""

    protocol: Literal["grpc", "http"]
    content: bytes


def _strings(lengths: list[int]) -> bytes:
    """Strings as in a BYTES tensor, whose lengths may lie."""
    return b"".join((n % 2**32).to_bytes(4, "little") + b"a" * min(n, 8) for n in lengths)


RAW = st.one_of(
    st.binary(max_size=LONGEST),
    st.sampled_from((b"", b"\0" * 52, b"\xff" * 52, b"\0" * 24)),
    st.lists(LENGTHS, max_size=8).map(_strings),
)


@st.composite
def _messages(draw: Any) -> pb.ModelInferRequest:
    """A request for some model whose parts do not fit each other."""
    message = pb.ModelInferRequest(
        model_name=draw(st.sampled_from(MODELS)),
        model_version=draw(st.sampled_from(VERSIONS)),
        id=draw(st.sampled_from(("", "1", "\n{}", "x" * LONGEST))),
    )
    for _ in range(draw(st.integers(0, 4))):
        tensor = message.inputs.add(
            name=draw(st.sampled_from(NAMES)),
            datatype=draw(st.sampled_from(DTYPES)),
            shape=draw(SHAPES),
        )
        if draw(st.integers(0, 4)) == 0:
            tensor.contents.fp32_contents.extend([1.0] * draw(st.integers(0, 30)))
        if draw(st.integers(0, 9)) == 0:
            tensor.parameters["shared_memory_region"].string_param = "absent"
            tensor.parameters["shared_memory_byte_size"].int64_param = draw(LENGTHS)
    message.raw_input_contents.extend(draw(st.lists(RAW, max_size=4)))
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
        message.outputs.add(name=name)
    if draw(st.booleans()):
        key = draw(st.sampled_from(("timeout", "priority", "sequence_id", "binary_data_output")))
        message.parameters[key].int64_param = draw(LENGTHS)
    if draw(st.booleans()):
        message.parameters[DEADLINE].CopyFrom(draw(PARAMETERS))
    return message


@st.composite
def _good_but_for(draw: Any) -> pb.ModelInferRequest:
    """The request of an unknown user with one part changed."""
    message = pb.ModelInferRequest(model_name=ENSEMBLE)
    message.inputs.add(name="dense", datatype="FP32", shape=[1, 13])
    message.inputs.add(name="categorical", datatype="BYTES", shape=[1, 6])
    message.raw_input_contents.extend([b"\0" * 52, b"\0" * 24])
    tensor = message.inputs[draw(st.integers(0, 1))]
    match draw(st.sampled_from(("name", "datatype", "shape", "raw", "fewer", "deadline"))):
        case "name":
            tensor.name = draw(st.text(max_size=50))
        case "datatype":
            tensor.datatype = draw(st.sampled_from(DTYPES))
        case "shape":
            del tensor.shape[:]
            tensor.shape.extend(draw(SHAPES))
        case "raw":
            message.raw_input_contents[draw(st.integers(0, 1))] = draw(RAW)
        case "fewer":
            del message.raw_input_contents[1]
        case "deadline":
            message.parameters[DEADLINE].CopyFrom(draw(PARAMETERS))
    return message


def _cut(content: bytes, at: int) -> bytes:
    return content[: at % (len(content) + 1)]


_whole = st.one_of(_messages(), _good_but_for()).map(lambda message: message.SerializeToString())
GRPC = st.one_of(
    _whole,
    st.builds(_cut, _whole, st.integers(0, LONGEST)),
    st.binary(max_size=LONGEST),
).map(lambda content: Malformed("grpc", content))

JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), st.integers(-HUGE, HUGE), st.text(max_size=9)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@st.composite
def _bodies(draw: Any) -> tuple[bytes, int]:
    """A body of Triton's HTTP protocol, and the length of its JSON."""
    tensor = {
        "name": draw(st.sampled_from(NAMES)),
        "datatype": draw(st.sampled_from(DTYPES)),
        "shape": draw(SHAPES),
    }
    if draw(st.booleans()):
        tensor["parameters"] = {"binary_data_size": draw(LENGTHS)}
    else:
        tensor["data"] = draw(JSON_VALUES)
    value = {"inputs": [tensor] * draw(st.integers(0, 3)), "id": draw(st.text(max_size=9))}
    text = json.dumps(draw(st.sampled_from((value, [value], {}, tensor)))).encode()
    return text + draw(RAW), len(text)


@st.composite
def _http(draw: Any) -> Malformed:
    """An HTTP request that lies about its lengths, or about its form."""
    model = draw(st.sampled_from((*FRONTS, *STAGES, "absent", "%2e%2e", "x" * LONGEST)))
    body, json_length = draw(st.one_of(_bodies(), st.tuples(RAW, LENGTHS)))
    length = draw(st.one_of(st.just(len(body)), st.just(len(body)), LENGTHS))
    header_length = draw(st.one_of(st.just(json_length), LENGTHS))
    method = draw(st.sampled_from(("POST", "POST", "POST", "GET", "PUT", "BREW")))
    lines = (
        f"{method} /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {length}",
        f"Inference-Header-Content-Length: {header_length}",
        "Connection: close",
        draw(st.sampled_from(("", "Content-Encoding: gzip\r\n", "Expect: 100-continue\r\n"))),
    )
    content = "\r\n".join(lines).encode() + b"\r\n" + body
    return Malformed("http", draw(st.one_of(st.just(content), st.binary(max_size=LONGEST))))


REQUESTS = st.one_of(GRPC, _http())
