"""Runs model.pt, a TorchScript file, on any device that torch knows.

The item state goes to the device in the precision of its file: a float16 state stays float16 and is
widened after a gather.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cascade.artifact import TORCH_FILE, Array, ArtifactError, Description, unloadable
from cascade.config import Serving
from cascade.runtime.devices import Runner, device_of


class TorchGraph:
    """Runs model.pt.

    `function` is the graph itself, tensors of `device` in and out, for callers that continue there.
    """

    def __init__(self, folder: Path, description: Description, serving: Serving) -> None:
        path = folder / TORCH_FILE
        if not path.exists():
            raise ArtifactError(f"{path} is missing: export again with --runtime torchscript")
        self.device = device_of(serving)
        load: Any = torch.jit.load  # without type annotations
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # known; in the README
                module = load(str(path), map_location=self.device).eval()
        except RuntimeError as error:  # torch's one error for all that a file can have wrong
            raise unloadable(path, error) from error
        for name, value in description.mapped.items():
            mapped = torch.from_numpy(np.asarray(value.open(folder)))
            setattr(module, name, mapped.to(self.device))
        self.function = module
        self._run = Runner(module, self.device, serving.cuda_graphs)

    def __call__(self, *inputs: Array) -> list[Array]:
        return self._run(*inputs)
