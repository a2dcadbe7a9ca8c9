"""The ranker's own order over the whole catalogue, which the cascade approximates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from cascade.evaluation.metrics import first_mentions
from cascade.models.scorer import Scorer
from cascade.training.tasks import by_task, pair_logits

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

ITEMS_PER_CHUNK = 4096
USERS_PER_CHUNK = 32


@dataclass(frozen=True)
class Encoded:
    """Encoded users or items: dense float32 [B, F_dense] and ids int64 [B, C]."""

    dense: Floats
    ids: Ids

    def __len__(self) -> int:
        return len(self.dense)

    def take(self, rows: Ids | slice) -> Encoded:
        return Encoded(self.dense[rows], self.ids[rows])

    def tensors(self, device: str) -> tuple[Tensor, Tensor]:
        # Copies: what Parquet gives is read-only, which PyTorch's tensors cannot be.
        return torch.tensor(self.dense, device=device), torch.tensor(self.ids, device=device)


def full_order(
    scorer: Scorer, users: Encoded, items: Encoded, k: int, device: str = "cpu"
) -> tuple[Ids, Floats]:
    """Score every item for every user -> the best k catalogue rows [B, k] and logits [B, k]; of
    fewer than k items, the rest is -1 and -inf. Memory is bounded by a chunk of the catalogue."""
    best = torch.full((len(users), k), -torch.inf, device=device)
    rows = torch.full((len(users), k), -1, dtype=torch.long, device=device)
    with torch.inference_mode(), _progress(len(users) * len(items)) as bar:
        states = scorer.user(*users.tensors(device))
        for start in range(0, len(items), ITEMS_PER_CHUNK):
            item = scorer.item(*items.take(slice(start, start + ITEMS_PER_CHUNK)).tensors(device))
            logits = pair_logits(scorer, states, item[None])
            here = torch.arange(start, start + len(item), device=device).expand_as(logits)
            best, place = torch.cat((best, logits), 1).topk(k)
            rows = torch.cat((rows, here), 1).gather(1, place)
            bar.update(logits.numel())
    return rows.cpu().numpy(), best.float().cpu().numpy()


def candidate_scores(
    scorer: Scorer, users: Encoded, items: Encoded, candidates: Ids, device: str = "cpu"
) -> Floats:
    """Logits [B, K] of candidate rows [B, K]; -inf at a pad, and where an item comes again.

    Each item that occurs is computed once per chunk of users, then gathered, as the server does.
    """
    logits = np.empty(candidates.shape, np.float32)
    with torch.inference_mode():
        for start in range(0, len(users), USERS_PER_CHUNK):
            some = slice(start, start + USERS_PER_CHUNK)
            present, places = np.unique(candidates[some], return_inverse=True)
            item = scorer.item(*items.take(np.maximum(present, 0)).tensors(device))
            user = scorer.user(*users.take(some).tensors(device))
            places = places.reshape(-1, candidates.shape[1])
            scores = pair_logits(scorer, user, item, torch.from_numpy(places).to(device))
            logits[some] = scores.float().cpu().numpy()
    return np.where(first_mentions(candidates), logits, np.float32(-np.inf))


def best_candidates(candidates: Ids, scores: Floats, k: int) -> Ids:
    """The k candidates [B, k] of the best scores [B, K], best first, -1 where there are fewer."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(candidates, order, 1)
    return np.where(np.take_along_axis(scores, order, 1) > -np.inf, kept, -1)


def logits_of_rows(scorer: Scorer, users: Encoded, items: Encoded, device: str = "cpu") -> Floats:
    """Logits [B, T] of B (user, item) rows, as in training."""
    with torch.inference_mode():
        logits = by_task(scorer(*users.tensors(device), *items.tensors(device)))
    return logits.float().cpu().numpy()


def _progress(pairs: int) -> Any:
    return tqdm(desc="full order", total=pairs, unit=" pairs", unit_scale=True, mininterval=1.0)
