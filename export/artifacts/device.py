"""Forms of a model for one kind of device: half precision, which `export.artifacts.guard` judges,
and packages of native code, which parity with the eager module proves."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascade.artifact import AOTI_FILE, ArtifactError, Description
from cascade.models.scorer import Scorer
from export.artifacts.graphs import SURROGATE_ROWS, user_half

HALVES: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class HalfScorer(Scorer):
    """A trained model whose `user` and `cross` are computed in float16, or in bfloat16: fewer
    digits, and the range of float32.

    Item states are computed once, in float32, and narrowed at each use. Logits leave as float32, so
    that masks, top K and sigmoid are not rounded.
    """

    trained: Scorer

    def __init__(self, scorer: Scorer, dtype: torch.dtype) -> None:
        super().__init__(scorer.schema)
        self.user_width, self.item_width = scorer.user_width, scorer.item_width
        self.tasks = scorer.tasks
        self.dtype = dtype
        self.narrow = copy.deepcopy(user_half(scorer)).to(dtype)
        self.__dict__["trained"] = scorer  # no part of this module: no second copy in a graph

    def user_parts(self) -> list[str]:
        return [f"narrow.{part}" for part in self.trained.user_parts()]

    def user(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.narrow.user(dense.to(self.dtype), ids).float()

    def item(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.trained.item(dense, ids)

    def cross(self, user: Tensor, item: Tensor) -> Tensor:
        return self.narrow.cross(user.to(self.dtype), item.to(self.dtype)).float()


class Outside(nn.Module):
    """A module whose large buffers come as arguments, after its own: each process reads its own
    copy of what a package holds, and they share what it is handed."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *inputs: Tensor) -> Any:
        own, buffers = inputs[: -len(self.names)], inputs[-len(self.names) :]
        named = dict(zip(self.names, buffers, strict=True))
        return torch.func.functional_call(self.module, named, own)


def package(
    module: nn.Module,
    example: dict[str, Tensor],
    description: Description,
    folder: Path,
    device: str = "cpu",
) -> Path:
    """Write folder/model.pt2: native code for `cpu` or `cuda`, compiled by AOTInductor for this
    machine's processor, too: export on the machine that serves, or on one like it. The arguments
    are those of `onnx_file.export`; the module's mapped buffers, its surrogate rows still in place,
    become arguments of the code. Raises ArtifactError: there is no such device, or no compiler."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    if device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError("device is cuda, but torch finds no GPU: export on a machine with one")
    names = tuple(description.torch_mapped)
    path = folder / AOTI_FILE
    partial = folder / f"partial-{AOTI_FILE}"
    module.eval().to(device)
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            # There are no gradients here, and a lookup with sparse ones calls back into torch.
            part.sparse = False
    try:
        buffers = tuple(getattr(module, name) for name in names)
        arguments = (*(value.to(device) for value in example.values()), *buffers)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes of the compiler about its own libraries
            program = torch.export.export(
                Outside(module, names) if names else module,
                arguments,
                dynamic_shapes=_dynamic(module, tuple(example), len(names)),
            )
            aoti_compile_and_package(program, package_path=str(partial))
    except InductorError as error:
        if not isinstance(error.inner_exception, InvalidCxxCompiler):
            raise
        raise ArtifactError(
            f"torch finds no C++ compiler ({error.inner_exception}): install g++, or export with "
            "another --runtime"
        ) from error
    finally:
        module.to("cpu")
    os.replace(partial, path)
    return path


def _dynamic(module: nn.Module, inputs: tuple[str, ...], buffers: int) -> Any:
    """The batch, the candidates of a user and the items are free."""
    batch = torch.export.Dim("batch", min=1)
    free: list[dict[int, Any]] = [{0: batch} for _ in inputs]
    if buffers:  # a scoring stage: its last input are rows
        free[-1][1] = torch.export.Dim("candidates_per_user", min=getattr(module, "keep", 2))
    items = torch.export.Dim("items", min=SURROGATE_ROWS // 2)
    free += [{0: items} for _ in range(buffers)]
    return (tuple(free),) if buffers else tuple(free)  # `Outside` takes all in one argument
