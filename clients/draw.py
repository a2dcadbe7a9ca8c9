"""Random users for a look at the server: from a file, or made up from the layout."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from cascade.layout import RequestLayout
from clients.options import UsageError

_MISSING_SHARE = 0.1
_BAG_MEMBERS = 5


def made_up(layout: RequestLayout, generator: random.Random) -> dict[str, Any]:
    """A user of skewed small counts and small numeric categories, some values missing.

    The values have the right kind, not the right meaning: many will be out of vocabulary.
    """
    user: dict[str, Any] = {name: _count(generator) for name in layout.dense}
    for feature in layout.categorical:
        if feature.multivalued:
            members = generator.randint(1, min(feature.length, _BAG_MEMBERS))
            user[feature.name] = [str(_count(generator)) for _ in range(members)]
        else:
            user[feature.name] = str(_count(generator))
    return {name: value for name, value in user.items() if generator.random() >= _MISSING_SHARE}


def _count(generator: random.Random) -> int:
    return int(generator.paretovariate(1.0))


def from_file(path: Path, count: int, generator: random.Random) -> list[dict[str, Any]]:
    """Draw `count` users, with repetition where there are fewer, from a file of JSON lines.

    Raises:
        UsageError: the file has no line, or one that is drawn is not a JSON object.
    """
    with path.open(encoding="utf-8") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty; expected one user as a JSON object per line")
    if count <= len(lines):
        drawn = generator.sample(lines, count)
    else:
        drawn = generator.choices(lines, k=count)
    return [parse(line, f"{path}, line {number}") for number, line in drawn]


def parse(text: str, where: str) -> dict[str, Any]:
    """A user written as a JSON object.

    Raises:
        UsageError: says where, and what is wrong.
    """
    try:
        user = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    if not isinstance(user, dict):
        raise UsageError(
            f"{where}: a user is a JSON object of feature values by name, not {text.strip()[:40]!r}"
        )
    return user
