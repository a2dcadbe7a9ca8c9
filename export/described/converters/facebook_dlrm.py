"""`DLRM_Net` of facebookresearch/dlrm (dlrm_s_pytorch.py): keys `emb_l.0.weight`, `bot_l.0.weight`,
`bot_l.2.weight`, `top_l.0.weight`, ...

The table N is that of the N-th feature of `ids`; bags are summed. That program puts a sigmoid after
the last top layer and may clamp the probability (--loss-threshold): both are left off.
Tables of --qr-flag and --md-flag, and --weighted-pooling, are refused: they have other keys.
"""

from __future__ import annotations

from torch import nn

from cascade.located import Node
from export.described.converters.fields import Fields
from export.described.converters.layers import Dlrm, Dots, Joined, Lookup, mlp
from export.described.converters.weights import Weights

INTERACTIONS = ("dot", "cat")


def convert(weights: Weights, fields: Fields, config: Node) -> nn.Module:
    """The module. `config` may say `interaction` (--arch-interaction-op), `itself`
    (--arch-interaction-itself), which the width of the top net tells as a rule, and `sigmoid_bot`,
    the bottom layer, counted from 0, that a sigmoid follows (-1 = none, as in that program)."""
    config.only("interaction", "itself", "sigmoid_bot")
    bottom = weights.layers("bot_l.", step=2)
    width = len(bottom[-1][0])
    numbers = weights.numbers("emb_l.", ".weight")
    tables = [weights.take(f"emb_l.{number}.weight", None, width) for number in numbers]
    top = weights.layers("top_l.", step=2)
    if len(top[-1][0]) != 1:
        raise weights.error(f"the last top layer gives {len(top[-1][0])} numbers; expected 1")
    fields.check_dense(bottom[0][0].shape[1], "bot_l.0")
    fields.check_ids(len(tables), f"the tables emb_l.0 to emb_l.{len(tables) - 1}")
    interaction = _interaction(weights, config, len(tables) + 1, width, top[0][0].shape[1])
    most = len(bottom) - 1
    sigmoid = config.take("sigmoid_bot", lambda n: n.integer(-1, most), -1)
    lookup = Lookup(fields.ids, tables, mean=False)
    return Dlrm(mlp(bottom, True, sigmoid), lookup, interaction, mlp(top, False))


def _interaction(weights: Weights, config: Node, count: int, width: int, takes: int) -> nn.Module:
    """The one that gives as many numbers as the top net takes; `count` vectors of `width` come."""
    kind = config.take("interaction", lambda n: n.choice("interaction", INTERACTIONS), None)
    itself = config.take("itself", Node.boolean, None)
    possible = {
        ("dot", False): width + count * (count - 1) // 2,
        ("dot", True): width + count * (count + 1) // 2,
        ("cat", False): count * width,
    }
    found = [
        (op, own)
        for (op, own), gives in possible.items()
        if gives == takes and kind in (None, op) and itself in (None, own)
    ]
    if not found:
        known = ", ".join(
            f"{op}{' with itself' if own else ''} {gives}" for (op, own), gives in possible.items()
        )
        raise weights.error(
            f"top_l.0 takes {takes} numbers, but {count} vectors of width {width} give by {known}"
            + (f"; `config` says {config.plain()}" if kind or itself is not None else "")
        )
    if len(found) > 1:
        raise weights.error(
            f"top_l.0 takes {takes} numbers, which both {found[0][0]} and {found[1][0]} give; say "
            "in `config` which `interaction` it is"
        )
    ((op, own),) = found
    if op == "cat":
        return Joined()
    return Dots([(i, j) for i in range(count) for j in range(i + own)])
