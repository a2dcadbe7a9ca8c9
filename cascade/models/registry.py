"""Models by name, each with its presets: `build("dlrm", preset("dlrm", "criteo"), schema)`; and
the recipe of a cascade, which names the models of its stages.

A name is that of a registered model, or `package.module:Class` for a class of any installed module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from cascade import values
from cascade.errors import CascadeError
from cascade.models.scorer import Scorer
from cascade.schema import Schema

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parents[1] / "recipes"  # one TOML file for each data set and model
DEFAULT = "default"
STAGES = ("retrieve", "prerank", "rank", "baseline")  # of a recipe


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


@dataclass(frozen=True)
class Recipe:
    """The models of the three stages, and the one that rankers are compared with. Empty: the usual
    one for the log, which is the caller's to know.

    On a command line: `retrieve=two_tower:default rank=my_package.models:Net:large`. In a file
    (TOML): `rank = "my_package.models:Net:large"`, and for each training a table of its
    hyperparameters, as `[hyperparameters.rank]` with `lr = 0.001`. `SHIPPED` has files that are
    known by name.
    """

    retrieve: str = ""
    prerank: str = ""
    rank: str = ""
    baseline: str = ""
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stage in self.models():
            self.model(stage)

    def models(self) -> dict[str, str]:
        """The models that were chosen, by stage."""
        return {stage: model for stage in STAGES if (model := getattr(self, stage))}

    def over(self, usual: Recipe) -> Recipe:
        """These models, and those of `usual` for the stages that were not chosen."""
        return replace(usual, **self.models(), hyperparameters=self.hyperparameters)

    def model(self, stage: str) -> tuple[str, str]:
        """The model of a stage and its preset."""
        try:
            return parse(getattr(self, stage))
        except ModelError as error:
            raise ModelError(f"recipe, {stage}: {error}") from error

    @classmethod
    def read(cls, words: Sequence[str]) -> Recipe:
        """From words `stage=model:preset`, files, and names of recipes that are shipped; later ones
        win."""
        chosen: dict[str, Any] = {}
        for word in words:
            stage, equals, model = word.partition("=")
            try:
                chosen |= {stage: model} if equals else _of_file(word)
            except (OSError, ValueError) as error:
                raise ModelError(
                    f"recipe {word} is neither stage=model:preset nor a TOML file, nor one of "
                    f"{', '.join(shipped())}: {error}"
                ) from error
        hyperparameters = chosen.pop("hyperparameters", {})
        for stage, model in chosen.items():
            if stage not in STAGES:
                raise ModelError(f"recipe: {values.unknown_name('stage', stage, STAGES)}")
            if not isinstance(model, str):
                raise ModelError(f"recipe, {stage}: {model!r} came; expected text, model:preset")
        tables = hyperparameters.values() if isinstance(hyperparameters, dict) else [None]
        if not all(isinstance(table, dict) for table in tables):
            raise ModelError(
                f"recipe, hyperparameters: {hyperparameters!r} came; expected a table for each "
                "training, as [hyperparameters.rank]"
            )
        return cls(**chosen, hyperparameters=hyperparameters)


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def _of_file(word: str) -> dict[str, Any]:
    path = SHIPPED / f"{word}.toml" if word in shipped() else Path(word)
    return tomllib.loads(path.read_text("utf-8"))
