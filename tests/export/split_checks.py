"""Takes models apart, and compares the two graphs with the flat one: shared by the tests of the
split."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from export.foreign.split import ITEM, ROWS, USER, Derived, derive
from tests.export.split_models import draw

REQUESTS = ((1, 1), (3, 7), (5, 4))  # users, candidates
ITEMS = 20
LARGEST_DIFFERENCE = 1e-5  # of the largest logit


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def exported(model: torch.nn.Module, dynamo: bool, opset: int = 18) -> onnx.ModelProto:
    values, file = draw(4), io.BytesIO()
    arguments, names = tuple(map(torch.from_numpy, values.values())), [*values]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one exporter is deprecated, and teams have its files
        if dynamo:
            rows = torch.export.Dim("rows", min=1)
            program = torch.onnx.export(
                model,
                arguments,
                dynamo=True,
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=tuple({0: rows} for _ in arguments),
                opset_version=opset,
                verbose=False,
            )
            assert program is not None
            return program.model_proto
        torch.onnx.export(
            model,
            arguments,
            file,
            dynamo=False,
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {0: "rows"} for name in (*names, "logits")},
            opset_version=opset,
        )
    return onnx.load_from_string(file.getvalue())


def side(name: str) -> Any:
    return USER if name.startswith("user") else ITEM


def taken_apart(flat: onnx.ModelProto, candidates: int = 200) -> Derived:
    widths = {name: value.shape[1] for name, value in draw(1).items()}
    names = [value.name for value in flat.graph.input]

    def feeds(count: int) -> dict[str, Any]:
        return {name: value for name, value in draw(count).items() if name in names}

    sides = {name: [side(name)] * widths[name] for name in names}
    return derive(flat, sides, feeds, flat.graph.output[0].name, candidates)


def check(flat: onnx.ModelProto, derived: Derived) -> None:
    """All pairs of some users and items."""
    onnx.checker.check_model(derived.pairs)
    known, pairs = session(flat), session(derived.pairs)
    items = draw(ITEMS, seed=2)
    states: Sequence[Any] = []
    if derived.items is not None:
        graph = session(derived.items)
        states = graph.run(None, {value.name: items[value.name] for value in graph.get_inputs()})
    for users, candidates in REQUESTS:
        asked = draw(users, seed=1)
        rows = np.random.default_rng(users).integers(0, ITEMS, (users, candidates))
        flat_feed = {
            value.name: np.repeat(asked[value.name], candidates, 0)
            if side(value.name) == USER
            else items[value.name][rows.ravel()]
            for value in known.get_inputs()
        }
        (expected,) = known.run(None, flat_feed)
        feed = {p.name: s[rows.ravel()] for p, s in zip(derived.parts, states, strict=True)}
        feed |= {**asked, ROWS: rows}
        (found,) = pairs.run(None, {value.name: feed[value.name] for value in pairs.get_inputs()})
        assert found.shape == expected.shape
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=LARGEST_DIFFERENCE * scale)
