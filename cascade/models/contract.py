"""Whether a model keeps the contract of `Scorer`, found out by running it on a few rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cascade.errors import CascadeError
from cascade.models.scorer import Scorer
from cascade.schema import Side

USERS, ITEMS = 2, 3
TOLERANCE = 1e-4
Rows = tuple[Tensor, Tensor]  # dense [B, F_dense], ids [B, C]
Module = TypeVar("Module", bound=nn.Module)


class ContractError(CascadeError):
    """A model that declares or returns something else than `Scorer` asks for."""


def check(scorer: Scorer) -> None:
    """Run `user`, `item`, `cross` and `forward` on a few drawn rows.

    A `ContractError` says that a state or the logits have another shape than promised, a model's
    own `forward` and `cross` disagree, a declared part is read by another method, too, or a part
    of one side alone is not declared.
    """
    name = type(scorer).__name__
    users, items = _drawn(scorer, "user", USERS), _drawn(scorer, "item", ITEMS)
    with torch.inference_mode(), _evaluating(scorer):
        user, user_reads = _recorded(scorer, lambda: scorer.user(*users))
        item, item_reads = _recorded(scorer, lambda: scorer.item(*items))
        _check_shape(f"{name}.user()", user, (USERS, scorer.user_width))
        _check_shape(f"{name}.item()", item, (ITEMS, scorer.item_width))
        every = item.expand(USERS, -1, -1)
        logits, cross_reads = _recorded(scorer, lambda: scorer.cross(user, every))
        several = logits.dim() == 3 or len(scorer.tasks) > 1
        tasks = (len(scorer.tasks),) if several else ()
        _check_shape(f"{name}.cross()", logits, (USERS, ITEMS, *tasks))
        _check_parts(scorer, "user", user_reads, item_reads | cross_reads)
        _check_parts(scorer, "item", item_reads, user_reads | cross_reads)
        _check_served(scorer, users, every)
        if scorer.defines("forward"):
            _check_forward(scorer, users, items, logits)


def check_retriever(scorer: Scorer) -> None:
    """`check`, and that the score is the dot product of the states, which an index searches by."""
    check(scorer)
    users, items = _drawn(scorer, "user", USERS), _drawn(scorer, "item", ITEMS)
    with torch.inference_mode(), _evaluating(scorer):
        user, item = scorer.user(*users), scorer.item(*items)
        scores = scorer.score(user, item.expand(USERS, -1, -1))
        same = user.shape[1] == item.shape[1] and torch.allclose(
            user @ item.t(), scores, TOLERANCE, TOLERANCE
        )
    if not same:
        raise ContractError(
            f"{type(scorer).__name__} cannot retrieve: cross() must be the dot product of the "
            "user state and the item state, because that is what an index searches by"
        )


def without(module: Module, parts: Iterable[str]) -> Module:
    """A shallow copy of the module that lacks the named parts; all else is shared."""
    left = copy.copy(module)
    kinds = ("_modules", "_parameters", "_buffers")
    left.__dict__.update({kind: dict(module.__dict__[kind]) for kind in kinds})
    for part in parts:
        head, _, rest = part.partition(".")
        if rest:
            inner = left.get_submodule(head)
            left.__dict__["_modules"][head] = without(inner, [rest])
        else:
            for kind in kinds:
                left.__dict__[kind].pop(part, None)
    return left


def belongs(name: str, parts: Iterable[str]) -> bool:
    """Whether the parameter or module of this name is one of the parts, or is below one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _check_parts(scorer: Scorer, side: Side, own: set[str], others: set[str]) -> None:
    """`own` and `others`: the tensors that the side's method reads, and that other methods read."""
    declared = scorer.user_parts() if side == "user" else scorer.item_parts()
    where = f"{type(scorer).__name__}.{side}_parts()"
    if shared := sorted(path for path in others if belongs(path, declared)):
        raise ContractError(
            f"{where} names {shared}, but another method than {side}() reads it, too: a part "
            "belongs to one side only if no other method reads it"
        )
    # A module that both sides read is shared as a whole, though one of its tensors may not be.
    modules = {path[:at] for path in others for at in range(len(path)) if path[at] == "."}
    alone = {path for path in own - others if path.rpartition(".")[0] not in modules}
    if forgotten := sorted(path for path in alone if not belongs(path, declared)):
        raise ContractError(
            f"{where} lacks {forgotten}: only {side}() reads it, so it belongs to the {side}"
        )


def _drawn(scorer: Scorer, side: Side, count: int) -> Rows:
    schema = scorer.schema
    random = torch.Generator().manual_seed(count)
    dense = torch.rand(count, schema.dense_width(side), generator=random)
    most = [f.cardinality for f in schema.ids(side) for _ in range(f.length)] or [1]
    ids = torch.randint(1 << 40, (count, len(most)), generator=random) % torch.tensor(most)
    device = next(iter(_tensors(scorer).values()), dense).device
    return dense.to(device), ids.to(device)


def _tensors(scorer: Scorer) -> dict[str, Tensor]:
    return dict([*scorer.named_parameters(), *scorer.named_buffers()])


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the tensors that operations read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        return func(*args, **(kwargs or {}))


def _recorded(scorer: Scorer, run: Callable[[], Tensor]) -> tuple[Tensor, set[str]]:
    """-> what `run` gives, and the names of the parameters and buffers that it read."""
    with _Reads() as reads:
        result = run()
    return result, {path for path, tensor in _tensors(scorer).items() if id(tensor) in reads.seen}


def _check_served(scorer: Scorer, users: Rows, items: Tensor) -> None:
    """What a served graph holds must be enough to score."""
    served = without(scorer, scorer.item_parts())
    try:
        served.score(served.user(*users), items)
    except AttributeError as error:
        raise ContractError(
            f"{type(scorer).__name__} cannot score without its item_parts(): {error}"
        ) from error


def _check_forward(scorer: Scorer, users: Rows, items: Rows, logits: Tensor) -> None:
    """`forward` of all pairs of users [B] and items [K] equals `cross`, [B, K] or [B, K, T]."""
    repeated = (x.repeat_interleave(len(items[0]), 0) for x in users)
    rows = scorer(*repeated, *(x.repeat(len(users[0]), 1) for x in items))
    crossed = logits.flatten(0, 1)
    if rows.shape != crossed.shape or not torch.allclose(rows, crossed, TOLERANCE, TOLERANCE):
        raise ContractError(
            f"{type(scorer).__name__}: forward() and cross(user(), item()) differ on the same "
            f"rows: {rows.tolist()} and {crossed.tolist()}"
        )


def _check_shape(what: str, found: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(found.shape) != expected:
        raise ContractError(f"{what} gives a tensor {[*found.shape]}; expected {[*expected]}")


@contextmanager
def _evaluating(scorer: Scorer) -> Iterator[None]:
    """Without dropout and the like, which would also draw random numbers."""
    training = scorer.training
    scorer.eval()
    try:
        yield
    finally:
        scorer.train(training)
