"""Optimisers of sparse tables and of all else, and the clipping of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from cascade.training.optimization.hyperparameters import Hyperparameters


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row of a table [R, D], a D-th of the usual state: the mean
    of the squares of the row's gradient is added to it (Gupta et al., "Training with Low-precision
    Embedding Tables", 2018, and TorchRec's optimiser of this name).

        s_r <- s_r + mean(g_r^2),  w_r <- w_r - lr * g_r / (sqrt(s_r) + eps)

    A sparse gradient changes only the rows that it has. Raises ValueError where a parameter is no
    table.

        >>> table = nn.Embedding(3, 2, sparse=True)
        >>> nn.init.zeros_(table.weight)[0].tolist()
        [0.0, 0.0]
        >>> optimizer = RowWiseAdagrad([table.weight], lr=0.5)
        >>> (table(torch.tensor([1])) @ torch.tensor([1.0, 7.0])).sum().backward()
        >>> optimizer.step()
        >>> table.weight.tolist()  # the mean of 1 and 49 is 25
        [[0.0, 0.0], [-0.10000000149011612, -0.699999988079071], [0.0, 0.0]]
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-2, eps: float = 1e-10) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})
        for group in self.param_groups:
            for table in group["params"]:
                if table.dim() != 2:
                    raise ValueError(f"a weight of shape {[*table.shape]} came; expected a table")
                self.state[table]["sum"] = table.new_zeros(len(table))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._change(table, self.state[table]["sum"], group["lr"], group["eps"])
        return loss

    @staticmethod
    def _change(table: Tensor, total: Tensor, lr: float, eps: float) -> None:
        gradient = table.grad
        assert gradient is not None
        rows: Any = slice(None)
        if gradient.is_sparse:
            gradient = gradient.coalesce()  # a row that comes twice has one gradient
            rows, gradient = gradient.indices()[0], gradient.values()
        total[rows] += gradient.square().mean(1)
        table[rows] -= lr * gradient / (total[rows].sqrt() + eps).unsqueeze(1)


BETA1 = 0.9  # of Adam, everywhere
# By name: of tables with sparse gradients, of all else.
KINDS: dict[str, tuple[Any, Any]] = {
    "adam": (torch.optim.SparseAdam, torch.optim.Adam),
    "adamw": (torch.optim.SparseAdam, torch.optim.Adam),  # which `_decay` makes AdamW
    "adagrad": (torch.optim.Adagrad, torch.optim.Adagrad),
    "rowwise_adagrad": (RowWiseAdagrad, torch.optim.Adagrad),
    "sgd": (torch.optim.SGD, torch.optim.SGD),
}


def make_optimizers(module: nn.Module, hyper: Hyperparameters) -> list[torch.optim.Optimizer]:
    """One optimiser for the tables with sparse gradients, one for the rest; a model that has only
    one of the two gets one."""
    kinds = nn.Embedding | nn.EmbeddingBag
    tables = {id(m.weight) for m in module.modules() if isinstance(m, kinds) and m.sparse}
    learnt = [p for p in module.parameters() if p.requires_grad]
    sparse = [p for p in learnt if id(p) in tables]
    dense = [p for p in learnt if id(p) not in tables]
    groups = zip(
        KINDS[hyper.optimizer], (sparse, dense), (hyper.embedding_lr, hyper.lr), strict=True
    )
    more = {"betas": (BETA1, hyper.beta2)} if hyper.optimizer in ("adam", "adamw") else {}
    optimizers = [kind(parameters, lr=lr, **more) for kind, parameters, lr in groups if parameters]
    if hyper.weight_decay:
        for optimizer in optimizers:
            if hyper.optimizer == "adamw":
                register: Any = optimizer.register_step_pre_hook
            else:
                register = optimizer.register_step_post_hook
            register(partial(_decay, hyper.weight_decay))
    return optimizers


def _decay(weight_decay: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Decoupled weight decay (Loshchilov and Hutter, ICLR 2019) at a step; of a table, the rows
    that were in the batch."""
    with torch.no_grad():
        for group in optimizer.param_groups:
            left = 1 - group["lr"] * weight_decay
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight.grad.is_sparse:
                    rows = weight.grad._indices().unique()
                    weight[rows] *= left
                else:
                    weight.mul_(left)


@torch.no_grad()
def clip(optimizers: Iterable[torch.optim.Optimizer], most: float) -> None:
    """Scale all gradients by one number, so that their norm, of all together, is at most `most`.

    As `torch.nn.utils.clip_grad_norm_`, but for sparse gradients, too: a row that is in a batch
    several times counts by the sum of its gradients. Where some are not finite, all others become
    0: a scaler of fp16 leaves out the step of those alone.
    """
    values = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight.grad.is_sparse:
                    weight.grad = weight.grad.coalesce()
                    values.append(weight.grad._values())
                else:
                    values.append(weight.grad)
    scale = torch.nan_to_num(most / (get_total_norm(values) + 1e-6), nan=0.0).clamp(max=1.0)
    for value in values:
        value.mul_(scale)
