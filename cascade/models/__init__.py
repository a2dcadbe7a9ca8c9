"""The models, and the registry that knows them by name.

A new model of this repository is a module with a `Scorer`, its configuration and its presets, and
one line below. `tests/unit/test_models.py` holds every registered model to the contract.
"""

from cascade.models import blend, dlrm, logistic, two_tower
from cascade.models.registry import MODELS, build, parse, preset, register

register("two_tower", two_tower.TwoTower, two_tower.PRESETS)
register("logistic", logistic.LogisticRegression, logistic.PRESETS)
register("dlrm", dlrm.DLRM, dlrm.PRESETS)
register("blend", blend.Blend, blend.PRESETS)

__all__ = ["MODELS", "build", "parse", "preset", "register"]
