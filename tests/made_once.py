"""What takes seconds to make and depends on its arguments alone, made once for all processes of
pytest-xdist: folders, and the traces of graphs."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.onnx._internal._lazy_import import onnxscript_apis

from export.artifacts import onnx_file

LARGEST_KEPT = 1 << 26  # bytes of a model whose graph is kept


@contextmanager
def made_once(folder: Path, key: bytes) -> Iterator[Path]:
    """A folder by the hash of `key`, locked: the first that comes fills it."""
    made = folder / hashlib.sha256(key).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield made


@contextmanager
def traces(folder: Path) -> Iterator[None]:
    """A trace takes seconds and depends on the module and on the arguments alone, so that of each
    is made once. What an export does with it is done every time."""
    real = onnx_file.trace

    def trace(module: Any, example: Any, *how: Any) -> None:
        *names, path, weights = how
        state = module.state_dict().values()
        if sum(tensor.nbytes for tensor in state) > LARGEST_KEPT:
            return real(module, example, *how)
        pickled = io.BytesIO()
        torch.save(module.eval(), pickled)
        shapes = [(name, value.shape, value.dtype) for name, value in example.items()]
        files = (path.name, weights, onnx_file.EXTERNAL_BYTES)
        key = pickled.getvalue() + repr((shapes, names, files)).encode()
        with made_once(folder, key) as made:
            if not made.exists():
                real(module, example, *how)
                made.mkdir()
                for file in (path, path.with_name(weights)):
                    if file.exists():
                        shutil.copy(file, made / file.name)
                return None
        path.with_name(weights).unlink(missing_ok=True)
        shutil.copytree(made, path.parent, dirs_exist_ok=True)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "trace", trace)
        # The exporter reads the sources of its 500 functions again for every graph.
        read = functools.cache(onnxscript_apis.get_torchlib_ops)
        patch.setattr(onnxscript_apis, "get_torchlib_ops", read)
        yield
