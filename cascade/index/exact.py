"""Exact retrieval: one matrix product of the users with all items, and the best K of it.

A GPU reads a million half-precision vectors in a fraction of a millisecond; approximate GPU indexes
lose at K = 1000. Each of the K best scores lies in one of the K groups of scores with the largest
maxima, so only those are sorted. (Chern et al., "TPU-KNN", NeurIPS 2022, keep only the maximum of a
group, and so are approximate.) The vectors are stored as float16; sums are float32. On a CPU they
are widened block by block, while the block is in cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade.artifact import Mapped, check_schema, read_json
from cascade.config import Serving
from cascade.files import sha256
from cascade.index.search import Floats, Ids, Mask, checked, fetched

if TYPE_CHECKING:
    from torch import Tensor

FILE, FACTS = "item_vectors.bin", "item_vectors.json"
DTYPE = "<f2"
LARGEST_HALF = float(np.finfo(np.float16).max)
CPU_BLOCK_ITEMS = 1024  # times 256 floats are a megabyte: what the second cache of a core holds
SCORES_BYTES = 1 << 30  # of a GPU's memory, for the scores of one block
Search = Callable[..., Ids]


class ExactIndex:
    """All item vectors, on a device. Made by `load`.

    Args:
        items: float16 [N, D] on the device that searches.
        recorded: replay a recorded search, `Serving.cuda_graphs`.
    """

    def __init__(self, items: Tensor, recorded: bool = False) -> None:
        self._items, self._recorded = items, recorded
        self.device = items.device
        self._searches: dict[int, Search] = {}

    def __len__(self) -> int:
        return len(self._items)

    @property
    def facts(self) -> dict[str, Any]:
        """What release.json records about the index."""
        items, width = self._items.shape
        return {"kind": "exact", "items": items, "width": width, "device": self.device.type}

    def search(self, queries: Floats, k: int) -> Ids:
        """[B, D] -> catalogue rows int64 [B, k], best first, -1 where there are no more."""
        queries = checked(queries, self._items.shape[1], k)
        if k not in self._searches:
            self._searches[k] = self.after(lambda queries: queries, k)
        return self._searches[k](queries)

    def after(self, tower: Callable[..., Any], k: int) -> Search:
        """A search for the vectors [B, D] that `tower` computes from tensors of this device, all of
        it on the device: arrays, batch first -> rows int64 [B, k]."""
        from cascade.runtime.devices import Runner, as_tuple

        runner = Runner(
            lambda *users: self.rows(as_tuple(tower(*users))[0], k), self.device, self._recorded
        )
        return lambda *users: runner(*users)[0]

    def search_among(self, queries: Floats, k: int, allowed: Mask) -> Ids:
        """[B, D] -> the best rows int64 [B, k] among the `allowed` [N], -1 where there are no
        more."""
        import torch

        wanted = min(k, int(np.count_nonzero(allowed)))
        found: Ids = np.full((len(queries), k), -1, np.int64)
        if wanted:
            with torch.inference_mode():
                vectors, mask = (
                    torch.from_numpy(np.ascontiguousarray(x)).to(self.device)
                    for x in (queries, allowed)
                )
                found[:, :wanted] = self.rows(vectors, wanted, mask).cpu().numpy()
        return found

    def search_oversampled(self, queries: Floats, k: int, extra: int) -> Ids:
        """[B, D] -> the best rows int64 [B, >= k], so that k remain without `extra` of them."""
        return self.search(queries, fetched(k, extra))

    def rows(self, queries: Tensor, k: int, allowed: Tensor | None = None) -> Tensor:
        """[B, D] -> rows int64 [B, k], both on the device; nothing is copied or waited for. Given
        `allowed`, bool [N] with at least k true, these rows alone."""
        import torch

        users, items = len(queries), len(self)
        # So many items that the scores of all users fit; nearly always that is all of them.
        block = max(k, CPU_BLOCK_ITEMS, SCORES_BYTES // (4 * max(1, users)))
        best, rows = [], []
        for start in range(0, items, block):
            part = self._items[start : start + block]
            scores = _scores(queries, part)
            if allowed is not None:
                scores.masked_fill_(~allowed[start : start + block], -torch.inf)
            values, places = top_k(scores, min(k, len(part)))
            best.append(values)
            rows.append(places + start)
        found = torch.cat(rows, dim=1)
        if len(rows) > 1:
            found = found.gather(1, torch.cat(best, dim=1).topk(min(k, items), dim=1).indices)
        return torch.nn.functional.pad(found, (0, k - found.shape[1]), value=-1)


def _scores(queries: Tensor, items: Tensor) -> Tensor:
    """[B, D] x float16 [N, D] -> float32 [B, N]. Rounded scores would tie, and ties lose items."""
    import torch

    if items.device.type != "cpu":
        return torch.mm(queries.to(items.dtype), items.t(), out_dtype=torch.float32)
    scores = queries.new_empty((len(queries), len(items)))
    for start in range(0, len(items), CPU_BLOCK_ITEMS):
        part = slice(start, start + CPU_BLOCK_ITEMS)
        torch.mm(queries, items[part].float().t(), out=scores[:, part])
    return scores


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[B, N] -> the k largest of each row, best first, and their places, [B, k] each. Equal scores
    may stand in for each other, as in `torch.topk`."""
    import torch

    users, items = scores.shape
    size = 1 << max(0, int((items / k) ** 0.5).bit_length() - 1)  # sorts N / size + k * size
    groups = items // size
    if size < 2 or groups <= k:
        return scores.topk(k, dim=1)
    whole = groups * size
    maxima = scores[:, :whole].reshape(users, groups, size).amax(2)
    chosen = maxima.topk(k, dim=1, sorted=False).indices
    within = torch.arange(size, device=scores.device)
    places = (chosen.unsqueeze(2) * size + within).flatten(1)  # [B, k * size]
    rest = torch.arange(whole, items, device=scores.device).expand(users, -1)
    places = torch.cat((places, rest), dim=1)
    best, order = scores.gather(1, places).topk(k, dim=1)
    return best, places.gather(1, order)


def save(vectors: Floats, folder: Path, schema_hash: str) -> None:
    """Write item vectors [N, D] as item_vectors.bin, float16, and item_vectors.json. A process
    that has the old file mapped keeps it.

    ValueError: no vectors, or numbers that float16 does not hold.
    """
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"item vectors have shape {list(vectors.shape)}; expected [N, D], N > 0")
    if not (np.abs(vectors) <= LARGEST_HALF).all():  # false for NaN, too
        raise ValueError("an item vector is not finite in float16: the item tower diverged")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{FILE}.partial"
    partial.write_bytes(np.ascontiguousarray(vectors, DTYPE).data)
    digest = sha256(partial)
    os.replace(partial, folder / FILE)
    items, width = vectors.shape
    facts = {"schema_hash": schema_hash, "items": items, "width": width, "sha256": digest}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def _facts(content: Any) -> tuple[Mapped, str, str]:
    """item_vectors.json -> the vectors' file, its sha256 and the schema's hash."""
    shape = int(content["items"]), int(content["width"])
    return Mapped(FILE, DTYPE, shape), content["sha256"], content["schema_hash"]


def vectors(folder: Path) -> Floats:
    """The item vectors that `save` wrote: float16 [N, D], mapped."""
    return read_json(folder / FACTS, _facts)[0].open(folder)


def remove(folder: Path) -> None:
    """Make room for another index: a folder that holds both retrieves exactly."""
    for name in (FACTS, FILE):
        (folder / name).unlink(missing_ok=True)


def present(folder: Path) -> bool:
    """Whether a version folder retrieves exactly."""
    return (folder / FACTS).exists()


def load(folder: Path, schema_hash: str, serving: Serving) -> ExactIndex:
    """Open what `save` wrote, on the device of `serving`. On a CPU the file stays mapped.

    ArtifactError: there is no such device; or a file is missing, damaged, or made for another
    schema.
    """
    import torch

    from cascade.runtime.devices import device_of

    file, digest, made_for = read_json(folder / FACTS, _facts)
    check_schema(folder, made_for, schema_hash)
    file.check(folder, digest)
    items = torch.from_numpy(np.asarray(file.open(folder))).to(device_of(serving))
    return ExactIndex(items, serving.cuda_graphs)
