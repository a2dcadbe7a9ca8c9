"""What runs an exported graph: ONNX Runtime or TorchScript behind one small interface.

A scoring stage's item state is a file of its own, mapped into memory, so that every process of a
machine shares one copy. ONNX Runtime maps it as external data; TorchScript is handed the mapping.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cascade.schema import Schema
from cascade.spec import Serving

Array = npt.NDArray[Any]

FORMAT = 1
ONNX_FILE, TORCH_FILE, DESCRIPTION_FILE = "model.onnx", "model.pt", "stage.json"


class ArtifactError(ValueError):
    """A version folder that cannot be served: files missing, damaged, or of another schema."""


@dataclass(frozen=True)
class Mapped:
    """A matrix in a raw little-endian file of its own, by the name of the graph's initialiser."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape))

    def open(self, folder: Path) -> Array:
        """Map the file. Processes share its pages; what one writes would stay its own copy (torch
        warns of memory that it may not write at all)."""
        return np.memmap(folder / self.file, self.dtype, "c", shape=self.shape)


@dataclass(frozen=True)
class Description:
    """stage.json: what a version folder holds."""

    stage: str
    schema_hash: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    mapped: dict[str, Mapped]

    def save(self, folder: Path) -> None:
        mapped = {name: vars(value) for name, value in self.mapped.items()}
        content = {"format": FORMAT, **vars(self), "mapped": mapped}
        (folder / DESCRIPTION_FILE).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Description:
        """Read and check a version folder.

        Raises:
            ArtifactError: says which file is missing, damaged, or too short.
        """
        path = folder / DESCRIPTION_FILE
        if not path.exists():
            raise ArtifactError(f"{folder} holds no exported stage: {path.name} is missing")
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise ArtifactError(f"{path} has another format than {FORMAT}: export again")
            mapped = {
                name: Mapped(value["file"], value["dtype"], tuple(value["shape"]))
                for name, value in content.pop("mapped").items()
            }
            found = cls(
                stage=content["stage"],
                schema_hash=content["schema_hash"],
                inputs=tuple(content["inputs"]),
                outputs=tuple(content["outputs"]),
                mapped=mapped,
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{path} is damaged: {error}") from error
        for value in found.mapped.values():
            file = folder / value.file
            what = f"has {file.stat().st_size} bytes" if file.exists() else "is missing"
            if what != f"has {value.nbytes} bytes":
                raise ArtifactError(
                    f"{file} {what}, where {value.shape} of {value.dtype} take {value.nbytes}: "
                    "export again, or restore the file"
                )
        return found


class Graph(Protocol):
    """An exported graph: arrays in, arrays out, both in the order of the description."""

    def __call__(self, *inputs: Array) -> list[Array]:
        """Run one batch."""


class OnnxGraph:
    """Runs model.onnx. The providers follow the device; the CPU is always the last resort of
    single operators, never of a missing GPU."""

    def __init__(self, folder: Path, description: Description, serving: Serving) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = serving.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers: list[Any] = ["CPUExecutionProvider"]
        if serving.device == "cuda":
            present = onnxruntime.get_available_providers()
            if "CUDAExecutionProvider" not in present:
                raise ArtifactError(
                    f"device is cuda, but this ONNX Runtime ({onnxruntime.__version__}) has only "
                    f"{present}: install the extra `gpu`, or export with --device cpu"
                )
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": serving.device_id}))
        path = folder / ONNX_FILE
        if not path.exists():
            raise ArtifactError(f"{path} is missing: export again with --runtime onnx")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # the only base that ONNX Runtime's errors share
            raise _unloadable(path, error) from error
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._order = [description.inputs.index(name) for name in self._inputs]
        self._outputs = list(description.outputs)

    def __call__(self, *inputs: Array) -> list[Array]:
        feed = {n: inputs[i] for n, i in zip(self._inputs, self._order, strict=True)}
        found: list[Array] = self._session.run(self._outputs, feed)
        return found


class TorchGraph:
    """Runs model.pt."""

    def __init__(self, folder: Path, description: Description, serving: Serving) -> None:
        import torch

        path = folder / TORCH_FILE
        if not path.exists():
            raise ArtifactError(f"{path} is missing: export again with --runtime torchscript")
        if serving.device == "cuda" and not torch.cuda.is_available():
            raise ArtifactError("device is cuda, but torch finds no GPU: export with --device cpu")
        torch.set_num_threads(max(1, serving.threads))
        self._torch, self._device = torch, torch.device("cpu")
        if serving.device == "cuda":
            self._device = torch.device("cuda", serving.device_id)
        load: Any = torch.jit.load  # without type annotations
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # known; in the README
                self._module = load(str(path), map_location=self._device).eval()
        except RuntimeError as error:  # torch's one error for all that a file can have wrong
            raise _unloadable(path, error) from error
        for name, value in description.mapped.items():
            mapped = torch.from_numpy(np.asarray(value.open(folder)))
            setattr(self._module, name, mapped.to(self._device))

    def __call__(self, *inputs: Array) -> list[Array]:
        torch = self._torch
        with torch.inference_mode():
            tensors = (torch.from_numpy(np.ascontiguousarray(x)).to(self._device) for x in inputs)
            outputs = self._module(*tensors)
        tensors_out: Sequence[Any] = outputs if isinstance(outputs, tuple) else (outputs,)
        return [tensor.cpu().numpy() for tensor in tensors_out]


def _unloadable(path: Path, error: Exception) -> ArtifactError:
    reason = str(error).splitlines()[0]
    return ArtifactError(f"{path} cannot be loaded ({reason}): export again, or restore the file")


def load_graph(folder: Path, schema: Schema | None, serving: Serving) -> tuple[Description, Graph]:
    """Open a version folder's graph.

    Raises:
        ArtifactError: the folder cannot be served.
        SchemaError: it was exported for another schema.
    """
    description = Description.load(folder)
    if schema is not None:
        schema.check_same(description.schema_hash, str(folder))
    runtime = OnnxGraph if serving.runtime == "onnx" else TorchGraph
    return description, runtime(folder, description, serving)
