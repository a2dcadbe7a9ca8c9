"""Optimisers, schedules, clipping, accumulation and precision, held to torch and to formulas."""

from __future__ import annotations

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cascade.training.loop import Task, fit
from cascade.training.optimization import optimizers, precision, schedule
from cascade.training.optimization.hyperparameters import CHOICES, Hyperparameters, TrainingError
from cascade.training.optimization.optimizers import RowWiseAdagrad, clip, make_optimizers
from tests.weights import assert_same_weights

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, WIDTH = 5, 3
EVERY_ROW = torch.tensor([0, 1, 2, 3, 4, 2, 2, 0])
OPTIMIZERS = CHOICES["optimizer"]


def net(sparse: bool = True, seed: int = 0) -> nn.Sequential:
    """A table and a layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(ROWS, WIDTH, sparse=sparse), nn.Linear(WIDTH, 1))


def learn(model: nn.Module, made, batches) -> None:
    """One step of the optimisers on each batch of rows; the target of a row is its number."""
    for rows in batches:
        for optimizer in made:
            optimizer.zero_grad()
        (model(rows).squeeze(1) - rows).square().mean().backward()
        for optimizer in made:
            optimizer.step()


def close(got: nn.Module, expected: nn.Module, **tolerance) -> None:
    for (name, one), other in zip(
        got.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("optimizer", "of_torch"),
    [
        ("sgd", torch.optim.SGD),
        ("adagrad", torch.optim.Adagrad),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_with_all_rows_in_the_batch_an_optimizer_is_that_of_torch(optimizer, of_torch):
    decay = {"weight_decay": 0.3} if optimizer == "adamw" else {}
    betas = {"betas": (0.9, 0.98)} if optimizer in ("adam", "adamw") else {}
    model, expected = net(), net(sparse=False)
    hyper = Hyperparameters(optimizer=optimizer, lr=0.05, embedding_lr=0.05, beta2=0.98, **decay)
    batches = [EVERY_ROW[torch.randperm(8)] for _ in range(10)]
    learn(model, make_optimizers(model, hyper), batches)
    learn(expected, [of_torch(expected.parameters(), lr=0.05, **betas, **decay)], batches)
    assert not torch.equal(model[0].weight, net()[0].weight)
    close(model, expected)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_the_rows_of_a_batch_change(optimizer, weight_decay):
    model, before = net(), net()
    hyper = Hyperparameters(optimizer=optimizer, embedding_lr=0.05, weight_decay=weight_decay)
    made = make_optimizers(model, hyper)
    learn(model, made, [torch.tensor([0, 1, 1, 3])] * 3)
    assert (model[0].weight != before[0].weight).any(1).tolist() == [True, True, False, True, False]
    learn(model, made, [torch.tensor([4])])
    assert (model[0].weight != before[0].weight).any(1).tolist() == [True, True, False, True, True]


def rowwise(table, steps, lr, eps=1e-10):
    """The formula, for (rows, gradients) of each step in NumPy float64."""
    table, total = table.astype(np.float64), np.zeros(len(table))
    for rows, gradients in steps:
        summed = np.zeros_like(table)
        np.add.at(summed, rows, gradients)
        for row in set(rows.tolist()):
            total[row] += (summed[row] ** 2).mean()
            table[row] -= lr * summed[row] / (np.sqrt(total[row]) + eps)
    return table


def drawn(steps=20):
    random = np.random.default_rng(3)
    start = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return start, [
        (random.integers(0, ROWS, 4), random.normal(size=(4, WIDTH)).astype(np.float32))
        for _ in range(steps)
    ]


@pytest.mark.parametrize("sparse", [True, False])
def test_rowwise_adagrad_is_its_formula(sparse):
    start, steps = drawn()
    table = nn.Embedding.from_pretrained(torch.tensor(start), freeze=False, sparse=sparse)
    optimizer = RowWiseAdagrad([table.weight], lr=0.1)
    for rows, gradients in steps:
        optimizer.zero_grad()
        (table(torch.tensor(rows)) * torch.tensor(gradients)).sum().backward()
        optimizer.step()
    (state,) = optimizer.state.values()
    assert state["sum"].shape == (ROWS,)
    expected = rowwise(start, steps, 0.1)
    np.testing.assert_allclose(table.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_rowwise_adagrad_is_that_of_fbgemm():
    """FBGEMM has the kernels of TorchRec."""
    pytest.importorskip("fbgemm_gpu")
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    width = 4  # FBGEMM's rows have a multiple of four
    random = np.random.default_rng(3)
    start = torch.tensor(random.normal(size=(ROWS, width)), dtype=torch.float32)
    fused = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, width, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.1,
        eps=1e-8,
    )
    fused.split_embedding_weights()[0].data.copy_(start)
    table = nn.Embedding.from_pretrained(start.clone(), freeze=False, sparse=True)
    optimizer = RowWiseAdagrad([table.weight], lr=0.1, eps=1e-8)
    for _ in range(20):
        rows = torch.tensor(random.integers(0, ROWS, 4))
        gradients = torch.tensor(random.normal(size=(4, width)), dtype=torch.float32)
        (fused(rows, torch.arange(5)) * gradients).sum().backward()
        optimizer.zero_grad()
        (table(rows) * gradients).sum().backward()
        optimizer.step()
    torch.testing.assert_close(table.weight.detach(), fused.split_embedding_weights()[0])


def test_rowwise_adagrad_refuses_what_is_no_table():
    with pytest.raises(ValueError, match=r"a weight of shape \[3\] came; expected a table"):
        RowWiseAdagrad([nn.Parameter(torch.zeros(3))])


def test_the_example_of_rowwise_adagrad():
    assert doctest.testmod(optimizers).failed == 0


def test_a_table_of_bags_is_a_table():
    bags = nn.EmbeddingBag(ROWS, WIDTH, sparse=True)
    (optimizer,) = make_optimizers(bags, Hyperparameters())
    bags(EVERY_ROW[None]).sum().backward()
    optimizer.step()
    assert isinstance(optimizer, torch.optim.SparseAdam)


def test_tables_are_rowwise_and_the_rest_is_adagrad():
    sparse, dense = make_optimizers(net(), Hyperparameters(optimizer="rowwise_adagrad"))
    assert [type(sparse), type(dense)] == [RowWiseAdagrad, torch.optim.Adagrad]


@pytest.mark.parametrize("most", [0.01, 1.0, 1e6])
def test_clipping_is_that_of_torch(most):
    """Of a table, it clips the sum of the gradients of a row that comes several times."""
    model, expected = net(), net(sparse=False)
    for one in (model, expected):
        (one(EVERY_ROW).squeeze(1) - EVERY_ROW).square().mean().backward()
    assert not model[0].weight.grad.is_coalesced()
    norm = nn.utils.clip_grad_norm_(expected.parameters(), most)
    clip(make_optimizers(model, Hyperparameters()), most)
    for got, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(got.grad.to_dense(), wanted.grad)
    after = torch.stack([p.grad.to_dense().square().sum() for p in model.parameters()]).sum().sqrt()
    assert float(after) == pytest.approx(min(most, float(norm)), rel=1e-3)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_is(wrong):
    """The scaler of fp16 leaves out the step of one optimiser; the other's makes no harm."""
    model = net()
    (model(EVERY_ROW).squeeze(1) - EVERY_ROW).square().mean().backward()
    model[1].weight.grad[0, 0] = wrong
    clip(make_optimizers(model, Hyperparameters()), 1.0)
    assert not model[1].weight.grad.isfinite().all()
    assert not model[0].weight.grad.to_dense().any()


def shares(hyper, steps, per_epoch):
    return [schedule.share(hyper, step, steps, per_epoch) for step in range(steps)]


def test_rates_by_default_fall_to_a_fiftieth():
    assert shares(Hyperparameters(), 100, 50) == [max(0.02, 1 - step / 100) for step in range(100)]


def test_a_constant_rate():
    assert shares(Hyperparameters(schedule="constant"), 7, 7) == [1.0] * 7


@pytest.mark.parametrize(("epochs", "growth"), [(1.0, 1), (0.5, 2), (0.25, 3)])
def test_cosine_with_warm_restarts_is_that_of_torch(epochs, growth):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    of_torch = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        optimizer, round(20 * epochs), growth
    )
    expected = []
    for _ in range(100):
        expected += of_torch.get_last_lr()
        optimizer.step()
        of_torch.step()
    hyper = Hyperparameters(schedule="cosine", cycle_epochs=epochs, cycle_growth=growth)
    assert shares(hyper, 100, 20) == pytest.approx(expected, abs=1e-12)
    assert expected.count(1.0) > 2  # it restarted


def test_cosine_without_a_cycle_falls_over_the_whole_training():
    found = shares(Hyperparameters(schedule="cosine"), 100, 20)
    assert found == pytest.approx([(1 + np.cos(np.pi * step / 100)) / 2 for step in range(100)])


@pytest.mark.parametrize("name", CHOICES["schedule"])
def test_warmup_rises_before_any_schedule(name):
    """The schedule then runs over the steps that are left."""
    warm = shares(Hyperparameters(schedule=name, warmup_steps=4), 24, 24)
    assert warm == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, *shares(Hyperparameters(schedule=name), 20, 20)]
    )
    assert shares(Hyperparameters(schedule=name, warmup_steps=9), 3, 3) == [0.1, 0.2, 0.3]


class Mean(Task):
    """A regression whose loss is a mean over the rows of a batch; its last weights are its best."""

    def __init__(self, batch_size: int, rows: int = 48):
        random = torch.Generator().manual_seed(1)
        self.rows = torch.randint(ROWS, (rows,), generator=random)
        self.module, self.batch_size = net(), batch_size
        self.steps_per_epoch = rows // batch_size

    def batches(self, epoch, skip):
        yield from self.rows.split(self.batch_size)[skip:]

    def loss(self, batch, step):
        self.step = step
        return (self.module(batch).squeeze(1) - batch).square().mean()

    def validate(self):
        return {"objective": -float(self.step)}


def trained(folder, batch_size, task=Mean, **changes):
    """The weights at the end of a training of three epochs."""
    made = task(batch_size)
    fit(made, Hyperparameters(epochs=3, lr=0.05, embedding_lr=0.05, **changes), folder, "mean")
    return made.module.state_dict()


@pytest.mark.parametrize(
    "changes",
    [
        *({"optimizer": name, "weight_decay": 0.1} for name in OPTIMIZERS),
        {"clip_norm": 0.5, "schedule": "cosine", "cycle_epochs": 0.5, "warmup_steps": 3},
    ],
    ids=str,
)
def test_batches_that_accumulate_are_as_one_large_batch(tmp_path, changes):
    large = trained(tmp_path / "large", 12, **changes)
    small = trained(tmp_path / "small", 4, accumulate=3, **changes)
    alone = trained(tmp_path / "alone", 4, **changes)
    for name, weight in large.items():
        torch.testing.assert_close(small[name], weight, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(alone[name], weight, rtol=1e-4, atol=1e-5)


def test_the_last_step_is_of_the_batches_that_are_left(tmp_path):
    """Five batches of one epoch are a step of four and a step of one."""
    made = Mean(8, rows=40)
    hyper = Hyperparameters(optimizer="sgd", lr=0.05, embedding_lr=0.05, schedule="constant")
    fit(made, replace(hyper, accumulate=4, validations=1), tmp_path, "mean")
    expected = net()
    learn(expected, make_optimizers(expected, hyper), [made.rows[:32], made.rows[32:]])
    close(made.module, expected)


def test_a_norm_is_clipped_in_training(tmp_path):
    changes = {"optimizer": "sgd", "schedule": "constant"}
    free, clipped = (trained(tmp_path / str(c), 48, clip_norm=c, **changes) for c in (0.0, 0.1))
    for weights, far in ((free, True), (clipped, False)):
        moved = sum(
            (weights[name] - value).square().sum() for name, value in net().state_dict().items()
        )
        assert (float(moved) ** 0.5 > 3 * 0.05 * 0.1 + 1e-6) == far  # steps * rate * norm


def test_bf16_is_of_the_layers_alone(tmp_path):
    seen = []

    class Watched(Mean):
        def loss(self, batch, step):
            seen.append(self.module(batch).dtype)
            return super().loss(batch, step)

        def validate(self):
            seen.append(self.module(self.rows).dtype)
            return super().validate()

    found = trained(tmp_path / "bf16", 12, Watched, precision="bf16")
    assert seen[:3] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    exact = trained(tmp_path / "float32", 12)
    for name, weight in exact.items():
        assert not torch.equal(found[name], weight)
        torch.testing.assert_close(found[name], weight, rtol=0.1, atol=0.05)


def test_fp16_needs_cuda(tmp_path):
    with pytest.raises(TrainingError, match="precision fp16 came for a training on cpu; expected"):
        fit(Mean(12), Hyperparameters(precision="fp16"), tmp_path, "mean")
    assert not (tmp_path / "tensorboard").exists()


def test_the_loss_of_fp16_is_scaled(tmp_path, monkeypatch):
    """torch has the scaler of CUDA on a CPU, too: a scale that overflows makes no step, and the
    scale is resumed."""
    monkeypatch.setattr(precision, "check", lambda *_: None)
    scales = []

    class Watched(Mean):
        fail_at = None

        def loss(self, batch, step):
            if step == self.fail_at:
                raise KeyboardInterrupt
            return super().loss(batch, step) * 4

    class Failing(Watched):
        fail_at = 8

    def made(hyper, device):
        scales.append(torch.amp.GradScaler(device.type))
        return scales[-1]

    monkeypatch.setattr(precision, "scaler", made)
    changes = {"precision": "fp16", "save_every": 2, "clip_norm": 5.0}
    expected = trained(tmp_path / "unbroken", 4, Watched, **changes)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "broken", 4, Failing, **changes)
    assert_same_weights(trained(tmp_path / "broken", 4, Watched, **changes), expected)
    unbroken, broken, resumed = scales
    assert unbroken.get_scale() < 2.0**16  # it overflowed, and was halved
    assert resumed.state_dict() == unbroken.state_dict()
    assert broken.state_dict()["_growth_tracker"] < unbroken.state_dict()["_growth_tracker"]


BEFORE = {  # what checkpoints of before these options hold
    "batch_size": 512,
    "epochs": 1,
    "optimizer": "adam",
    "lr": 1e-3,
    "embedding_lr": 1e-2,
    "weight_decay": 0.0,
    "seed": 0,
    "patience": 3,
    "validations": 2,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"schedule": "cosine"},
        {"warmup_steps": 1},
        {"cycle_epochs": 0.5},
        {"cycle_growth": 2},
        {"clip_norm": 1.0},
        {"accumulate": 2},
        {"precision": "bf16"},
        {"beta2": 0.98},
    ],
    ids=str,
)
def test_the_identity_of_a_training_has_the_new_options_where_they_are_used(change):
    assert Hyperparameters(save_every=7, **change).identity() == {**BEFORE, **change}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lamb"}, "optimizer: 'lamb' came; expected one of adam, adamw, adagrad"),
        ({"schedule": "step"}, "schedule: 'step' came; expected one of linear, constant, cosine"),
        ({"precision": "fp8"}, "precision: 'fp8' came; expected one of float32, bf16, fp16"),
        ({"accumulate": 0}, "accumulate: 0 came; expected at least 1"),
        ({"clip_norm": -1.0}, r"clip_norm: -1\.0 came; expected at least 0"),
        ({"beta2": 1.0}, r"beta2: 1\.0 came; expected at least 0, and less than 1"),
        ({"clip_norm": float("nan")}, "clip_norm: nan came; expected at least 0"),
    ],
)
def test_what_no_training_can_have_is_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        Hyperparameters(**change)
