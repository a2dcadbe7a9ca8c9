"""Runs a function of tensors on a device for arrays of the host.

Copies go through pinned memory and do not wait for each other. With `recorded`, a batch is padded
to the next of a few sizes, and everything that the function launches is recorded once per size in
a CUDA graph and replayed ("Accelerating PyTorch with CUDA Graphs", pytorch.org). On a CPU nothing
is recorded: the same buffers are filled and the function is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascade.artifact import Array, ArtifactError
from cascade.config import Serving
from cascade.runtime.buckets import in_buckets

WARM_UP_RUNS = 3  # the first use of a library allocates, which cannot be recorded
Function = Callable[..., Any]  # tensors of the device -> a tensor, or several


def device_of(serving: Serving) -> torch.device:
    """The device of `serving`, or ArtifactError if there is no GPU; torch gets the threads of
    `serving`."""
    if serving.device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError("device is cuda, but torch finds no GPU: export with --device cpu")
    torch.set_num_threads(max(1, serving.threads))
    if serving.device == "cuda":
        torch.cuda.set_device(serving.device_id)  # streams and graphs belong to the current one
        return torch.device("cuda", serving.device_id)
    return torch.device("cpu")


class Runner:
    """Calls `function`, tensors of the device in and out, batch first, with arrays.

    `recorded`: replay a recorded run of a fixed size.
    """

    def __init__(self, function: Function, device: torch.device, recorded: bool) -> None:
        self.function = function  # for callers that continue on the device
        self._device, self._recorded = device, recorded
        self._recordings: dict[tuple[tuple[int, ...], ...], _Recording] = {}

    def __call__(self, *inputs: Array) -> list[Array]:
        with torch.inference_mode():
            if not self._recorded:
                tensors = [upload(x, self._device) for x in inputs]
                return download(as_tuple(self.function(*tensors)))
            return in_buckets(self._replay, inputs)

    def _replay(self, inputs: list[Array]) -> list[Array]:
        shapes = tuple(values.shape for values in inputs)
        if shapes not in self._recordings:
            self._recordings[shapes] = _Recording(self.function, inputs, self._device)
        return self._recordings[shapes](inputs)


class _Recording:
    """A run of one shape: buffers at fixed addresses, and the launches between them."""

    def __init__(self, function: Function, like: Sequence[Array], device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._function = function
        self._host = [torch.from_numpy(x).clone() for x in like]
        if pinned:
            self._host = [x.pin_memory() for x in self._host]
        self._inputs = [x.to(device) for x in self._host]  # on a CPU these are the same buffers
        self._graph = self._record(device) if pinned else None

    def _record(self, device: torch.device) -> Any:
        side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._function(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._outputs = as_tuple(self._function(*self._inputs))
        return graph

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        for buffer, values in zip(self._host, inputs, strict=True):
            buffer.copy_(torch.from_numpy(values))
        if self._graph is None:
            return download(as_tuple(self._function(*self._inputs)))
        for device, host in zip(self._inputs, self._host, strict=True):
            device.copy_(host, non_blocking=True)
        self._graph.replay()
        return download(self._outputs)  # waits, so that the buffers are free for the next run


def upload(values: Array, device: torch.device) -> Tensor:
    """An array to the device, without waiting for the copy to end."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensors: Sequence[Tensor]) -> list[Array]:
    """Tensors to the host: all copies at once, and one wait for all of them."""
    if tensors[0].device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
    for target, source in zip(host, tensors, strict=True):
        target.copy_(source, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [tensor.numpy() for tensor in host]


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    """The outputs of a module, one or several, as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
