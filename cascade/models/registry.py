"""Models by name, each with its presets: `build("dlrm", preset("dlrm", "criteo"), schema)`.

A name is that of a registered model, or `package.module:Class` for a class of any installed module.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, cast

from cascade.errors import CascadeError
from cascade.models.scorer import Scorer
from cascade.schema import Schema

DEFAULT = "default"


class ModelError(CascadeError):
    """A model or a preset that does not exist, or a class that is no model."""


class Entry(NamedTuple):
    """A model's class, called with the schema and, where there are presets, with a configuration of
    their kind; and the presets by name."""

    model: type[Scorer]
    presets: Mapping[str, Any]


MODELS: dict[str, Entry] = {}


def register(name: str, model: type[Scorer], presets: Mapping[str, Any]) -> None:
    """Make a model known by a name that no other model has."""
    entry = _entry(name, model, presets)
    if MODELS.setdefault(name, entry) != entry:
        raise ModelError(f"two models are called {name!r}: {MODELS[name].model} and {model}")


def find(name: str) -> Entry:
    """A registered model, or the class that `package.module:Class` names, whose module may hold
    `PRESETS`."""
    if name in MODELS:
        return MODELS[name]
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name) if class_name else None
        model = getattr(module, class_name)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"there is no model {name!r}{f' ({error})' if class_name else ''}; choose one of "
            f"{sorted(MODELS)}, or name a class as package.module:Class"
        ) from error
    return _entry(name, model, getattr(module, "PRESETS", {}))


def _entry(name: str, model: Any, presets: Mapping[str, Any]) -> Entry:
    if not (isinstance(model, type) and issubclass(model, Scorer)):
        raise ModelError(f"model {name!r} is {model!r}, which is no subclass of Scorer")
    return Entry(model, presets)


def preset(name: str, size: str = DEFAULT) -> dict[str, Any]:
    """The configuration of a preset, as plain values for a checkpoint's JSON."""
    presets = find(name).presets
    if not presets and size == DEFAULT:
        return {}
    if size not in presets:
        raise ModelError(f"model {name} has no preset {size!r}; choose one of {sorted(presets)}")
    return asdict(presets[size])


def build(name: str, config: Mapping[str, Any], schema: Schema) -> Scorer:
    """A freshly initialised model of the given configuration."""
    model, presets = find(name)
    if not presets:
        return model(schema)
    kind = type(next(iter(presets.values())))
    try:
        made = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"model {name} has no such configuration: {error}") from error
    # The signature of a constructor is the model's own.
    scorer: Scorer = cast(Any, model)(schema, made)
    return scorer


def parse(text: str) -> tuple[str, str]:
    """`model`, `model:preset`, `package.module:Class` or `package.module:Class:preset` -> the
    model's name and its preset, both known to exist."""
    words = text.split(":")
    at = 1 if words[0] in MODELS or len(words) == 1 else 2
    name, size = ":".join(words[:at]), ":".join(words[at:]) or DEFAULT
    preset(name, size)
    return name, size
