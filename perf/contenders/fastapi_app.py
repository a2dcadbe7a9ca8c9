"""The cascade behind FastAPI, tuned as a production service would be: `servers.fastapi` starts it.

POST /recommend takes one user, features in schema order, null where a value is missing:

    {"dense": [3, null, 0.5], "categorical": ["68fd1e64", null]}

and answers `{"item_ids": [...], "scores": [...]}`, best first, by orjson without pydantic. Each
worker has the pipeline on one thread and computes in its event loop: it cannot compute two requests
at a time, so a thread pool would only add a hop.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, HTTPException, Request, Response

from cascade.encoding import InvalidInput
from cascade.layout import RequestLayout
from perf.harness.in_process import open_pipeline

REPOSITORY = "CASCADE_REPOSITORY"  # variable with its folder
NUMBERS: set[type] = {int, float, type(None)}
TEXTS: set[type] = {str, type(None)}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the release before the first request, and touch all of it once."""
    pipeline = open_pipeline(Path(os.environ[REPOSITORY]))
    layout = RequestLayout.of(pipeline.schema)
    pipeline(*layout.empty())
    app.state.pipeline, app.state.layout = pipeline, layout
    yield


app = FastAPI(lifespan=lifespan, openapi_url=None)


@app.post("/recommend")
async def recommend(request: Request) -> Response:
    """One user in, the best items out. 400: not JSON; 422: not a user of this release."""
    try:
        user = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    numbers = _values(user, "dense", app.state.layout.dense_width, NUMBERS)
    texts = _values(user, "categorical", app.state.layout.categorical_width, TEXTS)
    try:
        dense = np.array([numbers], np.float32)
        categorical = np.array([[(text or "").encode() for text in texts]], object)
        item_ids, scores = app.state.pipeline(dense, categorical)
    except (InvalidInput, OverflowError, UnicodeEncodeError) as error:
        raise HTTPException(422, str(error)) from error
    strings = item_ids.dtype == np.object_
    items = [item.decode() for item in item_ids[0]] if strings else item_ids[0]
    answer = {"item_ids": items, "scores": scores[0]}
    body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


def _values(user: Any, name: str, width: int, types: set[type]) -> list[Any]:
    """A list of the request, of the right length and types; true and false are no numbers."""
    values: Any = user.get(name) if isinstance(user, dict) else None
    fits = isinstance(values, list) and len(values) == width
    if not fits or not types.issuperset(map(type, values)):
        kinds = " or ".join(sorted(kind.__name__ for kind in types if kind is not type(None)))
        raise HTTPException(422, f"{name}: a list of {width} values, {kinds} or null, is expected")
    return values
