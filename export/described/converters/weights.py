"""The tensors of a state_dict, each taken once and of an expected shape."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cascade.located import LocatedError, Node

NESTED = ("state_dict", "model_state_dict", "model")  # keys of training checkpoints
WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DistributedDataParallel, compile, DLRMTrain
SHOWN = 4  # keys in an error
Layer = tuple[Tensor, Tensor]  # weight [out, in], bias [out]


class Weights:
    """A state_dict that a converter takes apart; `ordered` says whether the file keeps the order of
    its keys, which safetensors does not."""

    def __init__(
        self, node: Node, converter: str, tensors: dict[str, Tensor], ordered: bool
    ) -> None:
        self._node, self._converter = node, converter
        self._left, self.ordered = dict(tensors), ordered
        self._keys = [*tensors]

    @classmethod
    def read(cls, node: Node, converter: str) -> Weights:
        """Read .safetensors, or what torch.save wrote of a state_dict or of a checkpoint around
        one. Raises LocatedError."""
        path = node.file_path()
        if not path.is_file():
            raise node.error(f"there is no file {path}")
        ordered = path.suffix != ".safetensors"
        found = _torch(node, path) if ordered else _safetensors(node, path)
        for wrapper in WRAPPERS:
            if found and all(key.startswith(wrapper) for key in found):
                found = {key.removeprefix(wrapper): value for key, value in found.items()}
        return cls(node, converter, found, ordered)

    def error(self, message: str) -> LocatedError:
        """An error at the weights, to be raised."""
        return self._node.error(f"{self._node.value} as {self._converter}: {message}")

    def has(self, start: str) -> bool:
        """Whether a key that starts so has not been taken."""
        return any(key.startswith(start) for key in self._left)

    def take(self, key: str, *shape: int | None) -> Tensor:
        """A tensor as float32; None in `shape` is any size."""
        if key not in self._left:
            raise self.error(f"{key} is missing; the file has {_some(self._keys)}")
        found = self._left.pop(key)
        sizes = [*found.shape]
        fits = len(sizes) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, sizes, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise self.error(f"{key} is {sizes}; expected [{wanted}]")
        return found.float()

    def drop(self, key: str) -> None:
        """Take a tensor that serving does not need."""
        self._left.pop(key, None)

    def names(self, start: str, end: str) -> list[str]:
        """What stands between in the keys that were not taken, in the order of the file."""
        pattern = re.compile(f"{re.escape(start)}([^.]+){re.escape(end)}")
        return [match[1] for match in map(pattern.fullmatch, self._left) if match]

    def numbers(self, start: str, end: str, step: int = 1) -> list[int]:
        """The same, where they are 0, step, 2 * step, ..."""
        found = sorted(int(name) for name in self.names(start, end) if name.isdecimal())
        wanted = [*range(0, step * max(len(found), 1), step)]
        for number, expected in zip(found or [-1], wanted, strict=True):
            if number != expected:
                raise self.error(
                    f"{start}{expected}{end} is missing; the file has {_some(self._keys)}"
                )
        return found

    def layers(
        self, start: str, end: str = "", width: int | None = None, step: int = 1
    ) -> list[Layer]:
        """Linear layers START0END.weight, START0END.bias, ..., each of which takes what the one
        before gives, and the first `width` numbers."""
        found = []
        for number in self.numbers(start, f"{end}.weight", step):
            weight = self.take(f"{start}{number}{end}.weight", None, width)
            width = weight.shape[0]
            found.append((weight, self.take(f"{start}{number}{end}.bias", width)))
        return found

    def tables(self, start: str, config: Node) -> list[str]:
        """The names of the tables START*.weight in the order in which the model joins their
        vectors: as `tables` of the config lists them, a table of two features twice, or as the file
        does. Raises LocatedError: the file has no order, or other tables."""
        found = self.names(start, ".weight")
        if not found:
            raise self.error(f"{start}*.weight is missing; the file has {_some(self._keys)}")
        listed = config.take("tables", lambda n: n, None)
        if listed is None:
            if not self.ordered and len(found) > 1:
                raise self.error(
                    f"safetensors does not keep the order of the tables {', '.join(found)}; list "
                    "them in `config` as `tables: [NAME, ...]`, as the model joins their vectors"
                )
            return found
        names = listed.texts()
        if {*names} != {*found}:
            raise listed.error(f"{', '.join(names)} came; expected {', '.join(found)}")
        return names

    def end(self) -> None:
        """Refuse what no one took."""
        if self._left:
            raise self.error(
                f"{_some([*self._left])} came, which no model has that {self._converter} reads"
            )


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{', '.join(keys[:SHOWN]) or 'nothing'}{more}"


def _safetensors(node: Node, path: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise node.error(f"{path} cannot be read as safetensors: {error}") from error
    return found


def _torch(node: Node, path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: a zip, a pickle
        reason = f"{type(error).__name__}: {error}".split(". ")[0].splitlines()[0]
        raise node.error(
            f"{path} holds more than tensors, or is not of torch.save: {reason}. Save "
            "model.state_dict() alone"
        ) from error
    for key in NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise node.error(f"{path} holds a {type(found).__name__}; expected a state_dict")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise node.error(
                f"{path} holds {name!r}, a {type(value).__name__}; expected tensors, perhaps in "
                f"one of {', '.join(NESTED)}"
            )
    return dict(found)


def _numpy_scalars() -> list[Any]:
    """What a checkpoint with metrics of NumPy needs: numbers alone, no code."""
    scalar = np.float64(0).__reduce__()[0]
    places = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]
    return [np.dtype, *dtypes, *((scalar, place) for place in places)]
