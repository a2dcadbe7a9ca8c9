"""What a request looks like, as the server describes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from cascade.client.errors import RecommendError
from cascade.layout import LayoutError, RequestLayout
from cascade.spec import ALLOW, CHALLENGER_SHARE, EXCLUDE, FILTERED, TASKS


@dataclass(frozen=True)
class Layout(RequestLayout):
    """The layout of a request to one server, which may take no `filters` (older exports), and takes
    them by the model `filtered`, if that is another one; `share` of the users get the challenger
    (`cascade.client.split`). `tasks` are those of the live release's ranker, where they are
    several."""

    max_batch_size: int = 1
    filters: bool = False
    share: float = 0.0
    filtered: str | None = None
    tasks: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Any) -> Layout:
        """Read a layout off the model's configuration (a protobuf ModelConfig). Raises
        RecommendError if the model is not an export of this cascade."""
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        text = parameters.get("features", "")
        try:
            request = RequestLayout.from_json(text, parameters.get("layout_hash", ""))
            share = float(parameters.get(CHALLENGER_SHARE, "0"))
        except (LayoutError, ValueError) as error:
            raise RecommendError(
                f"model {config.name} does not say which features it takes (its parameter "
                f"'features' is {text[:40]!r}). Is it an export of this cascade?"
            ) from error
        inputs = {tensor.name: list(tensor.dims) for tensor in config.input}
        expected = {"dense": [request.dense_width], "categorical": [request.categorical_width]}
        came = {name: inputs[name] for name in expected if name in inputs}
        if came != expected or config.max_batch_size < 1:
            raise RecommendError(
                f"model {config.name} takes {came} in batches of {config.max_batch_size}, but its "
                f"features make {expected} in batches of 1 or more. Export it again."
            )
        own = {field.name: getattr(request, field.name) for field in fields(RequestLayout)}
        filtered = parameters.get(FILTERED) or None
        return cls(
            **own,
            max_batch_size=config.max_batch_size,
            filters=filtered is not None or inputs.keys() >= {EXCLUDE, ALLOW},
            share=share,
            filtered=filtered,
            tasks=tasks_of(config)[1],
        )


def tasks_of(config: Any) -> tuple[int | None, tuple[str, ...]]:
    """The release that a model's configuration pins, and the names of its ranker's tasks, where
    these are several."""
    pins = {int(step.model_version) for step in config.ensemble_scheduling.step}
    text = config.parameters[TASKS].string_value if TASKS in config.parameters else "[]"
    try:
        names = tuple(map(str, json.loads(text)))
    except (TypeError, ValueError):
        names = ()
    return (pins.pop() if len(pins) == 1 else None), names
