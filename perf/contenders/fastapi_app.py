"""The cascade behind FastAPI, tuned as a production service would be.

    CASCADE_REPOSITORY=DIR uvicorn perf.contenders.fastapi_app:app --workers 2 \
        --loop uvloop --http httptools --no-access-log

POST /recommend takes one user, features in schema order, null where a value is missing:

    {"dense": [3, null, 0.5], "categorical": ["68fd1e64", null]}

and answers `{"item_ids": [...], "scores": [...]}`, best first. The body is read and written by
orjson; no model of pydantic stands on the way of a request. Each worker is a process with the whole
pipeline on one thread and computes in its event loop: a thread pool would only add a hop, as no
worker can compute two requests at a time.
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
from perf.harness.in_process import open_pipeline

REPOSITORY = "CASCADE_REPOSITORY"
NUMBERS: set[type] = {int, float, type(None)}
TEXTS: set[type] = {str, type(None)}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the release before the first request, and touch all of it once."""
    if REPOSITORY not in os.environ:
        raise RuntimeError(f"set {REPOSITORY} to the folder of an exported model repository")
    pipeline = open_pipeline(Path(os.environ[REPOSITORY]))
    widths = pipeline.schema.dense_width("user"), pipeline.schema.wire_width("user")
    pipeline(np.full((1, widths[0]), np.nan, np.float32), np.full((1, widths[1]), b"", object))
    app.state.pipeline, app.state.widths = pipeline, widths
    yield


app = FastAPI(lifespan=lifespan, openapi_url=None)


@app.get("/health")
async def health() -> dict[str, str]:
    """Answers as soon as the release is loaded."""
    return {"status": "ready"}


@app.post("/recommend")
async def recommend(request: Request) -> Response:
    """One user in, the best items out. 400: not JSON; 422: not a user of this release."""
    try:
        user = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    dense_width, ids_width = app.state.widths
    numbers = _values(user, "dense", dense_width, NUMBERS)
    texts = _values(user, "categorical", ids_width, TEXTS)
    categorical = np.empty((1, ids_width), object)
    categorical[0] = [b"" if text is None else text.encode() for text in texts]
    try:
        dense = np.array([numbers], np.float32)
        item_ids, scores = app.state.pipeline(dense, categorical)
    except (InvalidInput, OverflowError, UnicodeEncodeError) as error:
        raise HTTPException(422, str(error)) from error
    answer = {"item_ids": item_ids[0], "scores": scores[0]}
    body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


def _values(user: Any, name: str, width: int, types: set[type]) -> list[Any]:
    """A list of the request, of the right length and types; true and false are no numbers."""
    values = user.get(name) if isinstance(user, dict) else None
    if (
        not isinstance(values, list)
        or len(values) != width
        or not types.issuperset(map(type, values))
    ):
        kinds = " or ".join(sorted(kind.__name__ for kind in types if kind is not type(None)))
        raise HTTPException(422, f"{name}: a list of {width} values, {kinds} or null, is expected")
    return values
