"""Opens the two forms that torch runs: model.pt by TorchScript, on any device that torch knows, and
model.pt2, native code that AOTInductor compiled for one kind of device.

The item state goes to the device in the precision of its file: a float16 state stays float16 and is
widened after a gather. It is not part of a model.pt2: every call passes it in, so that processes
share the pages of its file (`export.artifacts.device.package`).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade.artifact import AOTI_FILE, TORCH_FILE, ArtifactError, Description, unloadable
from cascade.config import Serving
from cascade.runtime.devices import Function, Runner, device_of

DEVICE_KEY = "AOTI_DEVICE_KEY"  # of a package's metadata: the device it was compiled for
State = dict[str, torch.Tensor]  # the mapped arrays of a folder, on the device


def torch_graph(folder: Path, description: Description, serving: Serving) -> Runner:
    """Open the file of the runtime `torchscript` or `aoti`.

    Raises ArtifactError: it is missing or damaged, or the device is not there or another one.
    """
    file, load = {"torchscript": (TORCH_FILE, _torchscript), "aoti": (AOTI_FILE, _aoti)}[
        serving.runtime
    ]
    path = folder / file
    if not path.exists():
        raise ArtifactError(f"{path} is missing: export again with --runtime {serving.runtime}")
    device = device_of(serving)
    state = {
        name: torch.from_numpy(np.asarray(value.open(folder))).to(device)
        for name, value in description.torch_mapped.items()
    }
    try:
        function = load(path, state, device)
    except RuntimeError as error:  # torch's one error for all that a file can have wrong
        raise unloadable(path, error) from error
    return Runner(function, device, serving.cuda_graphs)


def _torchscript(path: Path, state: State, device: torch.device) -> Function:
    load: Any = torch.jit.load  # without type annotations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of all that reads TorchScript
        module: Any = load(str(path), map_location=device).eval()
    for name, values in state.items():
        setattr(module, name, values)
    return module  # type: ignore[no-any-return]


def _aoti(path: Path, state: State, device: torch.device) -> Function:
    from torch._inductor import aoti_load_package

    # Without the package's own locks, which must not occur in a recorded run; a process computes
    # one batch at a time.
    package = aoti_load_package(
        str(path),
        run_single_threaded=True,
        device_index=-1 if device.index is None else device.index,
    )
    made_for = package.get_metadata().get(DEVICE_KEY)
    if made_for != device.type:
        raise ArtifactError(
            f"{path} was compiled for {made_for}, and device is {device.type}: export again with "
            f"--runtime aoti --device {device.type}"
        )
    values = tuple(state.values())
    return lambda *inputs: package(*inputs, *values)
