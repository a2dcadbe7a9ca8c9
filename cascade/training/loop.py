"""One training loop for every model: progress, early stopping, resume, curves.

A run that was killed and started again gives the same weights as one that was not: batches and
random draws depend only on (seed, step), and the optimisers' state is saved with the weights.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cascade.training import checkpoint
from cascade.training.curves import Curves


@dataclass(frozen=True)
class Hyperparameters:
    """How to train one model; both learning rates fall linearly to 2 %."""

    batch_size: int = 512
    epochs: float = 1  # passes over the rows; a part of one is enough where rows are plenty
    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    lr: float = 1e-3  # of all but the embeddings
    embedding_lr: float = 1e-2
    weight_decay: float = 0.0  # of Adam: what a step takes off each weight it changes, times lr
    seed: int = 0
    patience: int = 3  # validations without improvement before the training stops
    validations: int = 2  # per epoch
    save_every: int = 500  # steps between two savings of the state to resume from

    def identity(self) -> dict[str, Any]:
        """What the trained weights depend on."""
        return {key: value for key, value in asdict(self).items() if key != "save_every"}


class Task(ABC):
    """What is trained and on what.

    Attributes:
        trained: whether the module is validated before its first batch, too, because it comes with
            weights that training may not improve.
        best_possible: an objective that no weights can be better than.
    """

    module: nn.Module
    steps_per_epoch: int
    trained: bool = False
    best_possible: float = -inf

    def begin(self) -> None:  # noqa: B027, for most tasks begin with what was validated
        """Called before the first batch, after the weights that the module came with were
        validated."""

    @abstractmethod
    def batches(self, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of an epoch without the first `skip`."""

    @abstractmethod
    def loss(self, batch: Any, step: int) -> Tensor:
        """A scalar."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Measures on the validation split; `objective` is what early stopping minimises."""


def make_optimizers(module: nn.Module, hyper: Hyperparameters) -> list[torch.optim.Optimizer]:
    """One optimiser for the tables with sparse gradients, one for the rest; a model that has only
    one of the two gets one."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding) and m.sparse}
    learnt = [p for p in module.parameters() if p.requires_grad]
    sparse = [p for p in learnt if id(p) in tables]
    dense = [p for p in learnt if id(p) not in tables]
    kinds: dict[str, tuple[Any, Any]] = {
        "adam": (torch.optim.SparseAdam, torch.optim.Adam),
        "adagrad": (torch.optim.Adagrad, torch.optim.Adagrad),
        "sgd": (torch.optim.SGD, torch.optim.SGD),
    }
    groups = zip(
        kinds[hyper.optimizer], (sparse, dense), (hyper.embedding_lr, hyper.lr), strict=True
    )
    optimizers = [kind(parameters, lr=lr) for kind, parameters, lr in groups if parameters]
    if hyper.weight_decay:
        for optimizer in optimizers:
            optimizer.register_step_post_hook(partial(_decay, hyper.weight_decay))
    return optimizers


def _decay(weight_decay: float, optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Decoupled weight decay (Loshchilov and Hutter, ICLR 2019) after a step; of a table, the rows
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


def fit(
    task: Task,
    hyper: Hyperparameters,
    folder: Path,
    name: str,
    made_from: Mapping[str, Any] | None = None,
    told: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train until the epochs are over or validation stops improving; keep the best weights.

    Args:
        folder: of TensorBoard's events and of the state to resume from, which is used if it is
            there, unless it was made from something else.
        name: for the progress bar.
        made_from: what else the weights depend on, as JSON: the model, the data.
        told: called with the record of each validation; what it raises ends the training.

    Returns:
        One record per validation: step, training loss and the validation measures.
    """
    run = _Run(task, hyper, folder, made_from or {})
    run.resume()
    total = max(1, round(hyper.epochs * task.steps_per_epoch))
    every = max(1, task.steps_per_epoch // hyper.validations)
    if not run.step:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # of an earlier training
    run.curves = Curves(folder / "tensorboard")
    # The gradients of the tables are right by construction; torch warns unless told not to check.
    unchecked = torch.sparse.check_sparse_tensor_invariants(enable=False)  # type: ignore[no-untyped-call]
    progress = tqdm(total=total, initial=run.step, desc=f"train {name}", unit=" batches")
    with unchecked, progress as bar:
        if not run.step:
            if task.trained:
                run.validate()
                bar.set_postfix(run.shown())
                _tell(told, run)
            task.begin()
        while run.step < total and not run.ended(hyper.patience):
            epoch, done = divmod(run.step, task.steps_per_epoch)
            for batch in task.batches(epoch, done):
                run.one_step(batch, total)
                if validates := run.step % every == 0 or run.step == total:
                    run.validate()
                bar.set_postfix(run.shown(), refresh=False)
                bar.update()
                if validates:
                    _tell(told, run)
                if run.step % hyper.save_every == 0:
                    run.save()
                if run.ended(hyper.patience) or run.step == total:
                    break
    run.curves.close()
    if run.best is not None:
        task.module.load_state_dict(run.best)
    return run.history


def _tell(told: Callable[[dict[str, float]], None] | None, run: _Run) -> None:
    if told is not None:
        told(run.history[-1])


class _Run:
    """The state of one training, in memory and on disk."""

    def __init__(
        self, task: Task, hyper: Hyperparameters, folder: Path, made_from: Mapping[str, Any]
    ) -> None:
        self.task, self.folder = task, folder
        self.optimizers = make_optimizers(task.module, hyper)
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.made_from = {**hyper.identity(), **made_from}
        self.step = self.bad = 0
        self.loss_sum = self.loss_count = 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None
        self.curves: Curves

    def one_step(self, batch: Any, total: int) -> None:
        scale = max(0.02, 1 - self.step / total)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.zero_grad()
        loss = self.task.loss(batch, self.step)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.loss_sum += float(loss.detach())
        self.loss_count += 1

    def ended(self, patience: int) -> bool:
        """Whether validation stopped improving, or cannot improve."""
        best_possible = self.task.best_possible
        return self.bad >= patience or any(h["objective"] <= best_possible for h in self.history)

    def shown(self) -> dict[str, str]:
        """What the progress bar shows: the mean loss since the last validation, and what that one
        measured."""
        live = {"loss": self.loss_sum / self.loss_count} if self.loss_count else {}
        record = {**(self.history[-1] if self.history else {}), **live}
        return {key: f"{value:.4f}" for key, value in record.items() if key != "step"}

    def validate(self) -> None:
        """Validate, and remember the best weights."""
        self.task.module.eval()
        with torch.inference_mode():
            measures = self.task.validate()
        self.task.module.train()
        loss = {"loss": self.loss_sum / self.loss_count} if self.loss_count else {}
        record = {"step": self.step, **loss, **measures}
        self.loss_sum = self.loss_count = 0.0
        self.bad += 1
        if measures["objective"] < min((h["objective"] for h in self.history), default=inf):
            self.bad = 0
            self.best = {key: value.clone() for key, value in self.task.module.state_dict().items()}
        self.history.append(record)
        self.curves.add(record, self.step)

    def save(self) -> None:
        progress = {
            "step": self.step,
            "bad": self.bad,
            "loss": [self.loss_sum, self.loss_count],
            "history": self.history,
        }
        state = (self.folder, self.task.module, self.optimizers)
        checkpoint.save_resume(*state, progress, self.best or {}, self.made_from)

    def resume(self) -> None:
        state = (self.folder, self.task.module, self.optimizers)
        if found := checkpoint.load_resume(*state, self.made_from):
            progress, best = found
            self.step, self.bad, self.history = (
                progress[key] for key in ("step", "bad", "history")
            )
            self.loss_sum, self.loss_count = progress["loss"]
            self.best = best or None
