"""The models, and the registry that knows them by name.

A new model of this repository is a module with a `Scorer`, its configuration and its presets, and
one line below. `tests/unit/test_models.py` holds every registered model to the contract.
"""

from cascade.models import blend
from cascade.models.registry import MODELS, build, parse, preset, register
from cascade.models.retrieval import gru4rec, mf, sasrec, two_tower, youtube
from cascade.models.scoring import (
    autoint,
    dcn,
    dcnv2,
    deepfm,
    din,
    dlrm,
    logistic,
    mlp,
    mmoe,
    ncf,
    shared_bottom,
    transformer,
    wide_deep,
)

register("two_tower", two_tower.TwoTower, two_tower.PRESETS)
register("mf", mf.MatrixFactorization, mf.PRESETS)
register("youtube", youtube.YouTube, youtube.PRESETS)
register("sasrec", sasrec.SASRec, sasrec.PRESETS)
register("gru4rec", gru4rec.GRU4Rec, gru4rec.PRESETS)

register("logistic", logistic.LogisticRegression, logistic.PRESETS)
register("dlrm", dlrm.DLRM, dlrm.PRESETS)
register("mlp", mlp.MLP, mlp.PRESETS)
register("ncf", ncf.NeuMF, ncf.PRESETS)
register("wide_deep", wide_deep.WideDeep, wide_deep.PRESETS)
register("deepfm", deepfm.DeepFM, deepfm.PRESETS)
register("dcn", dcn.DCN, dcn.PRESETS)
register("dcnv2", dcnv2.DCNv2, dcnv2.PRESETS)
register("autoint", autoint.AutoInt, autoint.PRESETS)
register("din", din.DIN, din.PRESETS)
register("transformer", transformer.Transformer, transformer.PRESETS)
register("shared_bottom", shared_bottom.SharedBottom, shared_bottom.PRESETS)
register("mmoe", mmoe.MMoE, mmoe.PRESETS)
register("blend", blend.Blend, blend.PRESETS)

__all__ = ["MODELS", "build", "parse", "preset", "register"]
