"""Exports a module to model.onnx, its large tensors in files of their own beside it. The graph is
traced over a few surrogate rows of item state, and then pointed at the mapped file. So it does not
depend on the catalogue, which may be larger than memory and than the 2 GB of a protobuf message."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from cascade.artifact import ONNX_FILE, Description, Mapped
from cascade.models.contract import belongs
from cascade.models.scorer import Scorer
from cascade.spec import Weights

OPSET = 20  # ONNX Runtime 1.19, the oldest that is served with, reads up to opset 21
WEIGHTS_FILE = "weights.bin"
EXTERNAL_BYTES = 1 << 20  # a tensor above this leaves the protobuf
KEPT = "GemmAsItIs"
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
}


def export(
    module: nn.Module,
    example: dict[str, Tensor],
    description: Description,
    folder: Path,
    weights: Weights = "float32",
) -> None:
    """Write folder/model.onnx (and weights.bin), dynamic in the batch and in the candidates.

    Args:
        module: what to export; its buffers named in `description.mapped` lie in their own files.
        example: arguments by name; batch size 2 at least: the tracer takes a 1 for a constant.
        weights: int8 stores the weights of the layers that see every candidate in 8 bits per
            column, and quantises what they are multiplied with as it comes.
    """
    trace_stage(module, example, description, folder)
    finish(module, description, folder, weights)


def trace_stage(
    module: nn.Module, example: dict[str, Tensor], description: Description, folder: Path
) -> None:
    """The first half of `export`, which takes seconds and does not depend on int8."""
    batch = torch.export.Dim("batch")
    dynamic: dict[str, dict[int, torch.export.Dim]] = {name: {0: batch} for name in example}
    if "candidates" in example:
        keep = getattr(module, "keep", 2)
        dynamic["candidates"][1] = torch.export.Dim("candidates_per_user", min=keep)
    inputs, outputs = [*description.inputs], [*description.graph_outputs]
    trace(module, example, dynamic, inputs, outputs, folder / ONNX_FILE, WEIGHTS_FILE)


def finish(module: nn.Module, description: Description, folder: Path, weights: Weights) -> None:
    """The second half of `export`, in place."""
    path = folder / ONNX_FILE
    if weights == "int8":
        quantise(path, _worth_8_bits(module))
    model = onnx.load(str(path), load_external_data=False)
    for name, value in description.graph_mapped.items():
        point_at(model, name, value)
    for key in ("stage", "schema_hash"):
        model.metadata_props.add(key=key, value=getattr(description, key))
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


def trace(
    module: nn.Module,
    example: dict[str, Tensor],
    dynamic: dict[str, dict[int, torch.export.Dim]],
    inputs: list[str],
    outputs: list[str],
    path: Path,
    weights_file: str,
) -> None:
    """Write a module as an ONNX file, and its tensors above `EXTERNAL_BYTES` into `weights_file`
    beside it; `dynamic` names the free dimensions by argument. The source lines that the exporter
    notes at each node are left out: they name folders of this machine."""
    # What torch.export wrote is in its mode for good, and knows its arguments by their order.
    exported = isinstance(module, torch.fx.GraphModule)
    # The exporter warns at every export that torchvision is missing, which nothing here needs.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    for name in ("onnxscript", "onnx_ir"):  # each constant that they could not fold
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of the exporter about its own libraries
        program = torch.onnx.export(
            module if exported else module.eval(),
            args=tuple(example.values()) if exported else (),
            kwargs=None if exported else example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple(dynamic.values()) if exported else dynamic,
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    external = path.with_name(weights_file)
    external.unlink(missing_ok=True)
    ir.save(program.model, path, external_data=weights_file, size_threshold_bytes=EXTERNAL_BYTES)
    if external.exists() and not external.stat().st_size:
        external.unlink()


def quantise(path: Path, layers: set[str]) -> None:
    """Dynamic quantisation in place, of the products with the weights named in `layers`. Every node
    needs a name."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(path))
    del model.graph.value_info[:]  # not all of the exporter's shapes agree with those inferred here
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] not in layers:
            node.op_type = KEPT  # the quantiser would split what it does not quantise
    logging.disable(logging.WARNING)  # the quantiser recommends a preparation that fails on TopK
    try:
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],  # it turns the latter into the former first
            nodes_to_exclude=[node.name for node in model.graph.node if node.op_type == "MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # where inference fails
        )
    finally:
        logging.disable(logging.NOTSET)
    quantised = onnx.load(str(path))
    for node in quantised.graph.node:
        if node.op_type == KEPT:
            node.op_type = "Gemm"
    weights = path.parent / WEIGHTS_FILE
    if weights.exists():  # move what the quantiser loaded into the protobuf out again
        weights.unlink()
        onnx.external_data_helper.convert_model_to_external_data(
            quantised, location=WEIGHTS_FILE, size_threshold=EXTERNAL_BYTES
        )
    onnx.save(quantised, str(path))
    if weights.exists():  # in 8 bits all tensors may be small enough to stay inside
        weights.chmod(path.stat().st_mode)


def _worth_8_bits(module: nn.Module) -> set[str]:
    """The weights of the layers that see every candidate. A layer among the model's `user_parts`
    sees one row, and a layer of one output has one column: there it takes longer to quantise the
    input than to multiply it."""
    scorer = module.get_submodule("scorer")
    assert isinstance(scorer, Scorer)
    return {
        f"scorer.{name}.weight"
        for name, layer in scorer.named_modules()
        if isinstance(layer, nn.Linear)
        and layer.out_features > 1
        and not belongs(name, scorer.user_parts())
    }


def point_at(model: onnx.ModelProto, name: str, value: Mapped) -> None:
    """Replace an initialiser's values by a reference to a whole file."""
    found = [tensor for tensor in model.graph.initializer if tensor.name == name]
    if len(found) != 1:
        raise ValueError(
            f"the exported graph has {len(found)} initialisers named {name}; expected one. They "
            f"are: {[tensor.name for tensor in model.graph.initializer]}"
        )
    tensor = found[0]
    tensor.Clear()
    tensor.name, tensor.data_type = name, ONNX_TYPES[value.dtype]
    tensor.dims.extend(value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", value.file), ("offset", "0"), ("length", str(value.nbytes))):
        tensor.external_data.add(key=key, value=text)
    for info in model.graph.value_info:
        if info.name == name:
            model.graph.value_info.remove(info)
            break
