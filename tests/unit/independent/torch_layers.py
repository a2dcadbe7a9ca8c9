"""Models put together of PyTorch's own layers, with the weights of ours: `reference(scorer, rows)`
-> logits [B]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cascade.models.retrieval.gru4rec import GRU4Rec
from cascade.models.scoring.transformer import Transformer
from tests.unit.independent.case import Rows, fill_linears, rows_of
from tests.unit.independent.deepctr import crossed
from tests.unit.independent.rechub import fill_attention


def gru4rec(scorer: GRU4Rec, rows: Rows) -> Tensor:
    """`nn.GRUCell`, user by user and member by member, as in the authors' own code for PyTorch; the
    state of a user without members is that before the first one."""
    items, bias = rows_of(scorer.items, "product"), rows_of(scorer.bias, "product")
    cells = []
    for layer in range(scorer.gru.num_layers):
        cell = nn.GRUCell(items.shape[1], items.shape[1])
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        cell.load_state_dict({name: getattr(scorer.gru, f"{name}_l{layer}") for name in names})
        cells.append(cell)
    scores = []
    for members, (item,) in zip(rows.members("bought"), rows.members("product"), strict=True):
        states = [torch.zeros(items.shape[1]) for _ in cells]
        for member in members:
            below = items[member]
            for place, cell in enumerate(cells):
                states[place] = below = cell(below, states[place])
        scores.append(states[-1] @ items[item] + bias[item, 0])
    return torch.stack(scores)


def transformer(scorer: Transformer, rows: Rows) -> Tensor:
    """`nn.TransformerEncoderLayer`, one row at a time without pads; DeepCTR-Torch's cross layers;
    an MLP of `nn.Linear` and `nn.ReLU`."""
    first = scorer.encoder[0]
    width, heads = scorer.places.shape[1], first.attention.heads
    layers = []
    for ours in scorer.encoder:
        theirs = nn.TransformerEncoderLayer(
            width, heads, ours.network[0].out_features, dropout=0.0, batch_first=True
        )
        fill_attention(theirs.self_attn, ours.attention)
        fill_linears((theirs.linear1, theirs.linear2), (ours.network[0], ours.network[3]))
        theirs.norm1.load_state_dict(ours.norms[0].state_dict())
        theirs.norm2.load_state_dict(ours.norms[1].state_dict())
        layers.append(theirs)
    encoder = nn.Sequential(*layers).eval()
    items, past = rows_of(scorer.fields.item, "product"), []
    for members in rows.members("bought"):
        x = items[members] + scorer.places[len(scorer.places) - len(members) :]
        past.append(encoder(x.unsqueeze(0))[0].mean(0) if members else torch.zeros(width))
    row = torch.cat((torch.stack(past), scorer.fields.flat(*rows)), dim=1)
    steps: list[nn.Module] = []
    for layer in scorer.layers:
        steps += [layer, nn.ReLU()]
    logits: Tensor = nn.Sequential(*steps[:-1])(crossed(scorer.crosses, row))
    return logits.squeeze(1)
