"""Runs model.onnx by ONNX Runtime, on the CPU, by CUDA or by TensorRT.

On the CPU a plain `run` is the fastest call: binding buffers costs more than the allocation it
saves. On a GPU inputs and outputs are bound to device memory that every batch of a shape reuses, as
a recorded CUDA graph requires
(onnxruntime.ai, "CUDA Execution Provider", section "Using CUDA Graphs").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cascade.artifact import ONNX_FILE, Array, ArtifactError, Description, unloadable
from cascade.config import Serving
from cascade.runtime.buckets import BUCKETS, in_buckets

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
ENGINES = "tensorrt"  # the folder, beside the graph, of the engines that TensorRT built
TYPICAL_USERS = 16  # the batch that a TensorRT engine is tuned for
UNRECORDED = "-1"  # the annotation of a run that no CUDA graph is made of


class OnnxGraph:
    """The providers follow the device and the runtime; the CPU is always the last resort of single
    operators, never of a missing GPU."""

    def __init__(self, folder: Path, description: Description, serving: Serving) -> None:
        import onnxruntime

        chosen = choose_providers(onnxruntime, folder, description, serving)
        path = folder / ONNX_FILE
        if not path.exists():
            raise ArtifactError(f"{path} is missing: export again with --runtime onnx")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), session_options(onnxruntime, serving), providers=chosen
            )
        except Exception as error:  # the only base that ONNX Runtime's errors share
            raise unloadable(path, error) from error
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._order = [description.inputs.index(name) for name in self._inputs]
        self._outputs = list(description.graph_outputs)
        self._serving = serving
        self._bound: dict[tuple[tuple[int, ...], ...], _Bound] = {}

    def __call__(self, *inputs: Array) -> list[Array]:
        ordered = [inputs[place] for place in self._order]
        if self._serving.cuda_graphs:
            return in_buckets(self._run_bound, ordered)
        if self._serving.device == "cuda":
            return self._run_bound(ordered)
        feed = dict(zip(self._inputs, ordered, strict=True))
        found: list[Array] = self._session.run(self._outputs, feed)
        return found

    def _run_bound(self, inputs: list[Array]) -> list[Array]:
        feed = dict(zip(self._inputs, inputs, strict=True))
        shapes = tuple(values.shape for values in inputs)
        if shapes not in self._bound:
            if not self._serving.cuda_graphs and len(self._bound) >= BUCKETS[-1]:
                self._bound.pop(next(iter(self._bound)))  # the oldest shape; new ones are rare
            self._bound[shapes] = _Bound(
                self._session, feed, self._outputs, self._serving, len(self._bound) + 1
            )
        return self._bound[shapes](feed)


class _Bound:
    """A run of one shape, from and to device memory at fixed addresses. ONNX Runtime keeps the CUDA
    graph of each shape under its number."""

    def __init__(
        self,
        session: Any,
        feed: dict[str, Array],
        outputs: list[str],
        serving: Serving,
        number: int,
    ) -> None:
        import onnxruntime

        where = (serving.device, serving.device_id if serving.device == "cuda" else 0)
        value = onnxruntime.OrtValue
        self._session, self._options = session, onnxruntime.RunOptions()
        if serving.cuda_graphs and serving.device == "cuda":
            self._options.add_run_config_entry("gpu_graph_id", str(number))
        first = onnxruntime.RunOptions()
        first.add_run_config_entry("gpu_graph_id", UNRECORDED)
        like = session.run(outputs, feed, first)  # only a run knows the shapes of the outputs
        self._binding = session.io_binding()
        self._inputs = {
            name: value.ortvalue_from_shape_and_type(list(x.shape), x.dtype, *where)
            for name, x in feed.items()
        }
        self._outputs = [
            value.ortvalue_from_shape_and_type(list(x.shape), x.dtype, *where) for x in like
        ]
        for name, buffer in self._inputs.items():
            self._binding.bind_ortvalue_input(name, buffer)
        for name, buffer in zip(outputs, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, buffer)

    def __call__(self, feed: dict[str, Array]) -> list[Array]:
        for name, buffer in self._inputs.items():
            buffer.update_inplace(np.ascontiguousarray(feed[name]))
        self._session.run_with_iobinding(self._binding, self._options)
        # Copies: the next run writes there.
        return [np.array(buffer.numpy()) for buffer in self._outputs]


def session_options(onnxruntime: Any, serving: Serving) -> Any:
    """Threads that sleep between two runs instead of spinning: where processes share the cores, a
    waiting thread must not take the time of a working one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = serving.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def choose_providers(
    onnxruntime: Any, folder: Path, description: Description, serving: Serving
) -> list[Any]:
    """ONNX Runtime's providers for this device and runtime, the preferred one first.

    Raises:
        ArtifactError: this ONNX Runtime lacks the provider, or the settings contradict each other.
    """
    if serving.runtime == "tensorrt" and serving.device != "cuda":
        raise ArtifactError("runtime tensorrt runs on a GPU only: export with --device cuda")
    if serving.device != "cuda":
        return [CPU]
    present = onnxruntime.get_available_providers()
    wanted = [TENSORRT, CUDA] if serving.runtime == "tensorrt" else [CUDA]
    for name in wanted:
        if name not in present:
            raise ArtifactError(
                f"device is cuda and runtime {serving.runtime}, but this ONNX Runtime "
                f"({onnxruntime.__version__}) has only {present}, not {name}: install the extra "
                "`gpu`, or export with --device cpu"
            )
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's libraries where pip put them
    cuda = {
        "device_id": serving.device_id,
        "enable_cuda_graph": str(int(serving.cuda_graphs and serving.runtime == "onnx")),
    }
    chosen: list[Any] = [(CUDA, cuda), CPU]
    if serving.runtime == "tensorrt":
        chosen.insert(0, (TENSORRT, tensorrt_options(folder, description, serving)))
    return chosen


def tensorrt_options(
    folder: Path, description: Description, serving: Serving
) -> dict[str, str | int]:
    """TensorRT's options: engines are built once, kept beside the graph, and take every batch up to
    the largest bucket without a rebuild."""
    cache = folder / ENGINES
    cache.mkdir(exist_ok=True)
    options: dict[str, str | int] = {
        "device_id": serving.device_id,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_fp16_enable": str(int(serving.half)),
        "trt_cuda_graph_enable": str(int(serving.cuda_graphs)),
    }
    # Without all widths TensorRT finds the shapes by itself and builds an engine as each comes.
    if set(description.widths) == set(description.inputs):
        for name, users in (("min", 1), ("opt", TYPICAL_USERS), ("max", BUCKETS[-1])):
            options[f"trt_profile_{name}_shapes"] = ",".join(
                f"{tensor}:{users}x{description.widths[tensor]}" for tensor in description.inputs
            )
    return options
