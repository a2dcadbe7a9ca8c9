"""One training loop for every model: progress, early stopping, resume, curves.

A run that was killed and started again gives the same weights as one that was not: batches, random
draws and learning rates depend only on (seed, step), torch draws anew from them for each batch, and
the optimisers' state is saved with the weights.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cascade.training import checkpoint
from cascade.training.curves import Curves
from cascade.training.optimization import precision, schedule
from cascade.training.optimization.hyperparameters import Hyperparameters
from cascade.training.optimization.optimizers import clip, make_optimizers

__all__ = ["Hyperparameters", "Task", "fit"]


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
        One record per validation: step (of batches), training loss and the validation measures.

    Raises TrainingError: the device of the weights cannot train in the precision asked for.
    """
    total = max(1, round(hyper.epochs * task.steps_per_epoch))
    run = _Run(task, hyper, folder, made_from or {}, total)
    run.resume()
    every = max(1, task.steps_per_epoch // hyper.validations)
    save_every = -(-hyper.save_every // hyper.accumulate) * hyper.accumulate  # saves no gradients
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
                run.one_batch(batch)
                if validates := run.step % every == 0 or run.step == total:
                    run.validate()
                bar.set_postfix(run.shown(), refresh=False)
                bar.update()
                if validates:
                    _tell(told, run)
                if run.step % save_every == 0:
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
        self,
        task: Task,
        hyper: Hyperparameters,
        folder: Path,
        made_from: Mapping[str, Any],
        total: int,
    ) -> None:
        self.task, self.hyper, self.folder, self.total = task, hyper, folder, total
        self.device = next(task.module.parameters()).device
        precision.check(hyper, self.device)
        self.scaler = precision.scaler(hyper, self.device)
        self.optimizers = make_optimizers(task.module, hyper)
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.made_from = {**hyper.identity(), **made_from}
        self.step = self.bad = 0
        self.loss_sum = self.loss_count = 0.0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] | None = None
        self.curves: Curves

    def one_batch(self, batch: Any) -> None:
        """Add a batch to the gradients; the last of those of one change makes it."""
        size = self.hyper.accumulate
        place = self.step % size
        size = min(size, self.total - self.step + place)  # the last change may be of fewer
        if place == 0:
            self._set_rates()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
        self._seed()
        with precision.autocast(self.hyper, self.device):
            loss = self.task.loss(batch, self.step)
        self.scaler.scale(loss / size).backward()  # type: ignore[no-untyped-call]
        if place + 1 == size:
            self._change()
        self.step += 1
        self.loss_sum += float(loss.detach())
        self.loss_count += 1

    def _seed(self) -> None:
        """What dropout draws for a batch depends on the batch alone, as all that is drawn."""
        seed = self.hyper.seed * 1_000_003 + self.step
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 80 times as long
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _set_rates(self) -> None:
        size = self.hyper.accumulate
        steps, per_epoch = -(-self.total // size), self.task.steps_per_epoch / size
        share = schedule.share(self.hyper, self.step // size, steps, per_epoch)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def _change(self) -> None:
        """Change the weights by their gradients."""
        if self.hyper.clip_norm:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            clip(self.optimizers, self.hyper.clip_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

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
            "scaler": self.scaler.state_dict(),
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
            self.scaler.load_state_dict(progress.get("scaler", {}))
            self.best = best or None
