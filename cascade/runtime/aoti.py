"""Runs model.pt2, a package of native code that AOTInductor compiled for one kind of device.

The item state is not part of the package: every call passes it in, so that processes share the
pages of its file (`export.artifacts.device.package`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade.artifact import AOTI_FILE, Array, ArtifactError, Description, unloadable
from cascade.config import Serving
from cascade.runtime.devices import Runner, device_of

DEVICE_KEY = "AOTI_DEVICE_KEY"  # of a package's metadata: the device it was compiled for


class AotiGraph:
    """Runs model.pt2.

    `function` is the graph itself, tensors of `device` in and out, for callers that continue there.
    """

    def __init__(self, folder: Path, description: Description, serving: Serving) -> None:
        from torch._inductor import aoti_load_package

        path = folder / AOTI_FILE
        if not path.exists():
            raise ArtifactError(f"{path} is missing: export again with --runtime aoti")
        self.device = device_of(serving)
        try:
            # Without the package's own locks, which must not occur in a recorded run; a
            # process computes one batch at a time.
            package = aoti_load_package(
                str(path),
                run_single_threaded=True,
                device_index=serving.device_id if serving.device == "cuda" else -1,
            )
        except RuntimeError as error:  # torch's one error for all that a file can have wrong
            raise unloadable(path, error) from error
        made_for = package.get_metadata().get(DEVICE_KEY)
        if made_for != self.device.type:
            raise ArtifactError(
                f"{path} was compiled for {made_for}, and device is {self.device.type}: export "
                f"again with --runtime aoti --device {self.device.type}"
            )
        state = [
            torch.from_numpy(np.asarray(value.open(folder))).to(self.device)
            for value in description.mapped.values()
        ]

        def function(*inputs: torch.Tensor) -> Any:
            return package(*inputs, *state)

        self.function = function
        self._run = Runner(function, self.device, serving.cuda_graphs)

    def __call__(self, *inputs: Array) -> list[Array]:
        return self._run(*inputs)
