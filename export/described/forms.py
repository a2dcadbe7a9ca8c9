"""The forms in which a team hands over a model, and each as a flat ONNX graph.

`onnx: FILE`, `torchscript: FILE`, `pt2: FILE` (of torch.export.save), `module:
package.mod:Class` with `weights: FILE` (safetensors) and `config` (its arguments), or `converter:
NAME` with the `weights` of a well-known package, and `config`.
"""

from __future__ import annotations

import importlib
import inspect
import io
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade.artifact import Array
from cascade.located import Node
from cascade.schema import Side
from cascade.values import unknown_name
from export.artifacts.onnx_file import OPSET, trace
from export.described import converters
from export.described.features import Features
from export.foreign.inputs import schema_columns

FORMS = ("onnx", "torchscript", "pt2", "module", "converter")
KEYS = (*FORMS, "weights", "config", "inputs", "outputs", "output", "score")
MEANINGS = ("logit", "probability", "value")
DTYPES = ("float32", "float64", "float16", "int64", "int32")


@dataclass(frozen=True)
class InputForm:
    """What one argument of a model takes, [n, columns], or [n] where it is `flat`."""

    features: list[str]
    flat: bool
    dtype: str  # "" = int64 where all features are ids, else float32


class Form:
    """A model of the file. Raises LocatedError: it is not described, or cannot be read."""

    def __init__(self, node: Node, features: Features, sides: tuple[Side, ...]) -> None:
        node.only(*KEYS)
        self.node, self.features, self.sides = node, features, sides
        given = [kind for kind in FORMS if kind in node.mapping()]
        if len(given) != 1:
            raise node.error(
                f"{' and '.join(given) or 'no form of a model'} came; expected one of "
                f"{', '.join(FORMS)}"
            )
        self.kind = given[0]
        for key in ("weights", "config"):
            if self.kind not in ("module", "converter") and key in node.mapping():
                raise node.mapping()[key].error(
                    f"`{key}` goes with a module or a converter, not with {self.kind}"
                )
        inputs = node.take("inputs", Node.mapping)
        if not inputs:
            raise node.error("`inputs` names no input; say which features feed each of them")
        self.inputs = {name: self._input(one) for name, one in inputs.items()}
        self._outputs()
        if self.kind == "converter":
            converters.check(node, sides)
            self.outputs[""] = "logit"
            self.inputs = {
                name: InputForm(self.inputs[name].features, False, dtype)
                for name, dtype in converters.INPUTS.items()
                if name in self.inputs
            }

    @property
    def name(self) -> str:
        """What people call it: its file, or its class."""
        value = self.node.mapping()[self.kind].text()
        return value if self.kind in ("module", "converter") else Path(value).name

    def write_onnx(self, example: Mapping[str, Array], path: Path) -> nn.Module | None:
        """Write the graph to `path`, dynamic in the rows -> the module that it was traced from;
        None where it came as ONNX. `example` has arguments of at least two rows."""
        node = self.node.mapping()[self.kind]
        if self.kind == "onnx":
            _copy(node, path)
            return None
        if self.kind == "converter":
            features = {name: one.features for name, one in self.inputs.items()}
            module = converters.converted(self.node, features, self.features.schema)
        else:
            module = self._module(node) if self.kind == "module" else _load(node, self.kind)
        tensors = {name: torch.from_numpy(value) for name, value in example.items()}
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                outputs = [f"output_{i}" for i in range(len(flatten(module(*tensors.values()))))]
        except Exception as error:  # the team's own code may raise anything
            shapes = {name: f"{value.dtype} {[*value.shape]}" for name, value in example.items()}
            raise self.node.error(
                f"{self.name} cannot be called with {shapes}: {_line(error)}"
            ) from error
        try:
            _trace(module, tensors, outputs, path, self.kind)
        except Exception as error:  # as may the exporters
            raise self.node.error(
                f"{self.name} cannot be exported to ONNX: {_line(error)}. Export it yourself, and "
                "give the file as `onnx`"
            ) from error
        return module

    def _input(self, node: Node) -> InputForm:
        """A feature (its column [n], where it is one), or a list of features, or a mapping."""
        dtype, flat = "", False
        if isinstance(node.value, dict):
            node.only("features", "dtype", "flat")
            dtype = node.take("dtype", lambda n: n.choice("dtype", DTYPES), "")
            flat = node.take("flat", Node.boolean, False)
            node = node.take("features", lambda n: n)
        names, known = node.texts(), schema_columns(self.features.schema)
        for name in names:
            if name not in known:
                raise node.error(unknown_name("feature", name, known))
            side = next(f.side for f in self.features.schema.features if f.name == name)
            if side not in self.sides:
                raise node.error(
                    f"{name} is a feature of the {side}, which this model does not see"
                )
        columns = [column for name in names for column in known[name]]
        alone = isinstance(node.value, str) and len(columns) == 1
        if not dtype:
            ids = all(column.source.endswith("ids") for column in columns)
            dtype = "int64" if ids else "float32"
        if flat and len(columns) != 1:
            raise node.error(f"{names} have {len(columns)} columns; `flat` is for one")
        return InputForm(names, flat or alone, dtype)

    def _outputs(self) -> None:
        """`output: logit`, or `outputs: {name: meaning}` and the `score` over them."""
        node = self.node
        self.outputs: dict[str, str] = {}
        self.score = node.take("score", lambda n: n, None)
        if "outputs" in node.mapping():
            if "output" in node.mapping():
                raise node.error("`output` and `outputs` came; expected one of them")
            for name, one in node.take("outputs", Node.mapping).items():
                self.outputs[name] = one.choice("meaning", MEANINGS)
            if len(self.outputs) > 1 and self.score is None:
                raise node.error(
                    f"{len(self.outputs)} outputs came; say by `score` which formula of them "
                    "orders the items"
                )
        elif "output" in node.mapping():
            self.outputs[""] = node.take("output", lambda n: n.choice("meaning", MEANINGS))
            if self.score is not None:
                raise self.score.error(
                    "`score` names outputs; say them as `outputs: {name: meaning}`"
                )

    def _module(self, node: Node) -> nn.Module:
        place, _, name = node.text().partition(":")
        if not place or not name:
            raise node.error(f"{node.value!r} came; expected package.module:Class")
        for folder in (str(Path.cwd()), str(node.file.parent.resolve())):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        try:
            found = getattr(importlib.import_module(place), name)
        except (ImportError, AttributeError) as error:
            raise node.error(
                f"{node.value} cannot be imported from {Path.cwd()} or the folder of the file: "
                f"{error}"
            ) from error
        config = self.node.take("config", lambda n: n, None)
        arguments = {} if config is None else {k: v.plain() for k, v in config.mapping().items()}
        try:
            module = found(**arguments)
        except Exception as error:  # the team's own code may raise anything
            raise (config or node).error(f"{name}(**{arguments}) fails: {_line(error)}") from error
        if not isinstance(module, nn.Module):
            raise node.error(f"{name} makes a {type(module).__name__}; expected a torch.nn.Module")
        weights = self.node.take("weights", lambda n: n)
        path = weights.file_path()
        try:
            module.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(f"{error}".split())
            raise weights.error(
                f"{path} does not hold the weights of {name}: {reason:.400}"
            ) from error
        return module.eval()


def flatten(outputs: Any) -> list[Tensor]:
    """What a module returns, a tensor or a tuple, list or dict of them, as a list."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [*(outputs.values() if isinstance(outputs, dict) else outputs)]


def _load(node: Node, kind: str) -> nn.Module:
    path = node.file_path()
    if not path.is_file():
        raise node.error(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            if kind == "torchscript":
                module: nn.Module = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
            else:
                module = torch.export.load(path).module()
    except Exception as error:  # of many kinds: a zip, a pickle, a schema
        wanted = "torch.jit.save" if kind == "torchscript" else "torch.export.save"
        raise node.error(f"{path.name} is not what {wanted} writes: {_line(error)}") from error
    return module


def _trace(
    module: nn.Module, tensors: dict[str, Tensor], outputs: list[str], path: Path, kind: str
) -> None:
    if kind == "torchscript":
        try:
            _trace_script(module, tensors, outputs, path)
            return
        except Exception:  # that exporter does not know every operator: the other one may
            from torch._export.converter import TS2EPConverter  # takes seconds

            module = TS2EPConverter(cast(Any, module), tuple(tensors.values())).convert().module()
            kind = "pt2"
    names = _arguments(module, kind, [*tensors])
    example = dict(zip(names, tensors.values(), strict=True))
    dynamic = {name: {0: torch.export.Dim("rows")} for name in names}
    trace(module, example, dynamic, [*tensors], outputs, path, f"{path.name}.data")


def _trace_script(
    module: nn.Module, tensors: dict[str, Tensor], outputs: list[str], path: Path
) -> None:
    """By the exporter that takes TorchScript; it prints the whole graph where it fails."""
    axes = {name: {0: "rows"} for name in (*tensors, *outputs)}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, tuple(tensors.values()), str(path), dynamo=False, opset_version=min(OPSET, 18),
            input_names=[*tensors], output_names=outputs, dynamic_axes=axes,
        )  # fmt: skip


def _arguments(module: nn.Module, kind: str, given: list[str]) -> list[str]:
    """The names of forward's arguments, in the order of the file's inputs."""
    if kind == "pt2":
        names = [str(node.name) for node in module.graph.nodes if node.op == "placeholder"]  # type: ignore[union-attr]
    else:
        names = [*inspect.signature(module.forward).parameters]
    return given if {*given} <= {*names} else names[: len(given)]


def _copy(node: Node, path: Path) -> None:
    source = node.file_path()
    if not source.is_file():
        raise node.error(f"there is no file {source}")
    try:
        model = onnx.load(source)
    except Exception as error:  # protobuf, a missing external file, ...
        raise node.error(f"{source} cannot be read as ONNX: {_line(error)}") from error
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > 1 << 20
    options: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.name}.data"}
    onnx.save(model, str(path), **(options if large else {}))


def _line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in f"{error}".splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
