"""`python tests/export/converters/make_fixtures.py`: makes tests/export/converters/fixtures.

Real models of TorchRec and DeepCTR-Torch, untrained but with all weights drawn anew: their
state_dicts as torch.save writes them, rows, and the logits that the packages' own forward gives for
these. The result is committed, so the tests need neither package. They want a venv of their own:

    python -m venv venv
    venv/bin/pip install -c constraints.txt torch==2.13.0 numpy pyarrow scikit-learn requests
    venv/bin/pip install --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0 deepctr-torch==0.3.0
    venv/bin/pip install -c constraints.txt iopath pyre-extensions tensordict torchmetrics==1.0.3 \
        tqdm pandas
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DCN
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRMTrain
from torchrec.modules.embedding_configs import PoolingType

FOLDER = Path(__file__).with_name("fixtures")
ROWS, NUMBERS, LENGTH, PAD = 24, 3, 3, 0
SIZES = {"user": 9, "shop": 7, "item": 11}  # rows of each table; a bag of tags follows
TAGS = 8


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    dense = random.normal(size=(ROWS, NUMBERS)).astype(np.float32)
    single = np.stack([random.integers(0, size, ROWS) for size in SIZES.values()], 1)
    tags = random.integers(1, TAGS, (ROWS, LENGTH))
    for row in range(ROWS):
        tags[row, random.integers(0, LENGTH + 1) :] = PAD  # some without a member
    ids = np.concatenate((single, tags), 1)
    logits: dict[str, Any] = {}
    for name, model in _torchrec().items():
        _saved(name, model)
        with torch.no_grad():
            plain = model.model if isinstance(model, DLRMTrain) else model
            found = plain(torch.from_numpy(dense), _jagged(ids))
        logits[name] = found[:, 0].numpy()
    for name, model in _deepctr().items():
        _saved(name, model)
        columns = (ids, dense) if "numbers" in name else (ids,)
        rows = np.concatenate(columns, 1).astype(np.float32)
        with torch.no_grad():
            logits[name] = model(torch.from_numpy(rows))[:, 0].numpy()
    np.savez_compressed(FOLDER / "rows.npz", dense=dense, ids=ids, **logits)


def _torchrec() -> dict[str, torch.nn.Module]:
    """Tables in an order of no alphabet; one collection sums its bags, in the other, which means
    them, two features share a table."""

    def collection(named: dict[str, tuple[int, list[str]]], mean: bool) -> EmbeddingBagCollection:
        pooling = PoolingType.MEAN if mean else PoolingType.SUM
        tables = [
            EmbeddingBagConfig(
                name=f"t_{name}", embedding_dim=4, num_embeddings=rows, feature_names=features,
                pooling=pooling,
            )
            for name, (rows, features) in named.items()
        ]  # fmt: skip
        return EmbeddingBagCollection(device=torch.device("cpu"), tables=tables)

    own = {name: (size, [name]) for name, size in (*SIZES.items(), ("tags", TAGS))}
    shared = {"user": (9, ["user", "shop"]), "item": own["item"], "tags": own["tags"]}
    return {
        "torchrec_dlrm": DLRM(collection(own, mean=False), NUMBERS, [6, 4], [8, 5, 1]),
        "torchrec_dcn": DLRMTrain(
            DLRM_DCN(collection(shared, mean=True), NUMBERS, [6, 4], [8, 5, 1], 2, 3)
        ),
    }


def _jagged(ids: np.ndarray) -> KeyedJaggedTensor:
    tags = ids[:, len(SIZES) :]
    values = [*ids[:, : len(SIZES)].T, tags[tags != PAD]]
    lengths = [*np.ones((len(SIZES), ROWS), int), (tags != PAD).sum(1)]
    return KeyedJaggedTensor.from_lengths_sync(
        keys=[*SIZES, "tags"],
        values=torch.from_numpy(np.concatenate(values)),
        lengths=torch.from_numpy(np.concatenate(lengths).astype(np.int32)),
    )


def _deepctr() -> dict[str, torch.nn.Module]:
    bag = VarLenSparseFeat(SparseFeat("tags", TAGS, 3), LENGTH, combiner="mean")
    ids = [*(SparseFeat(name, size, 4) for name, size in SIZES.items()), bag]
    numbers = [DenseFeat(f"n{i}", 1) for i in range(NUMBERS)]
    both: dict[str, Any] = {"dnn_hidden_units": (8, 4), "cross_num": 2}
    matrices = {"cross_parameterization": "matrix", "dnn_use_bn": True}
    made = {
        "deepctr_numbers": DCN([*ids, *numbers], [*ids, *numbers], **both),
        "deepctr_matrices": DCN(ids, ids, **both, **matrices, dnn_activation="sigmoid"),
    }
    for model in made.values():
        model.out.task = "regression"  # the same without the sigmoid: the logit
    return made


def _saved(name: str, model: torch.nn.Module) -> None:
    """Draw all weights, so that no bias is zero, and none is too small to matter; save them."""
    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator) * 0.3
            value.copy_(drawn.abs() + 0.5 if key.endswith("running_var") else drawn)
    torch.save(model.eval().state_dict(), FOLDER / f"{name}.pt")


if __name__ == "__main__":
    main()
