"""Models by name, each with its presets: `build("dlrm", "criteo", schema)`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cascade.models import dlrm, logistic, two_tower
from cascade.models.scorer import Scorer
from cascade.schema import Schema

MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "two_tower": (two_tower.TwoTower, two_tower.TwoTowerConfig, two_tower.PRESETS),
    "logistic": (logistic.LogisticRegression, logistic.LogisticConfig, logistic.PRESETS),
    "dlrm": (dlrm.DLRM, dlrm.DLRMConfig, dlrm.PRESETS),
}


def preset(model: str, name: str) -> dict[str, Any]:
    """The sizes of a preset, as plain values for a checkpoint's JSON."""
    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}; choose one of {sorted(MODELS)}")
    presets = MODELS[model][2]
    if name not in presets:
        raise ValueError(f"{model} has no preset {name!r}; choose one of {sorted(presets)}")
    return asdict(presets[name])


def build(model: str, config: dict[str, Any], schema: Schema) -> Scorer:
    """A freshly initialised model of the given sizes."""
    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}; choose one of {sorted(MODELS)}")
    make, make_config, _ = MODELS[model]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    scorer: Scorer = make(schema, make_config(**values))
    return scorer
