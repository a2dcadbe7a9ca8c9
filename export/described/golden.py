"""Whether the answer from raw values is that of the team's own code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cascade.encoding import InvalidInput
from cascade.located import Node
from export.context import Catalogue
from export.described import tables
from export.described.features import Features
from export.described.trained import Trained
from export.foreign.inputs import Rows
from export.foreign.onnx_model import Foreign, flat_rows

TOLERANCE = 1e-4
SHOWN = 3  # users whose encoded ids are printed


def check(
    node: Node, features: Features, items: Catalogue, ids: pa.Array, ranker: Foreign | Trained
) -> str:
    """Compare the scores of the file with those that the ranker gives for the same raw values -> a
    line for the report. The file has the users' features, the item (its id, or all of its features)
    and the score, one row each. Raises LocatedError: a score differs; shows the worst row."""
    node.only("file", "item", "score", "score_is", "tolerance")
    file = node.take("file", lambda n: n)
    item = node.take("item", Node.text, "item_id")
    table = tables.read(file, {*features.texts("user", "item"), item})
    if not len(table):
        raise file.error("the table has no rows; expected users, items and scores")
    score = node.take("score", Node.text, "score")
    wanted = tables.numbers(file, score, tables.column(file, table, score)).astype(np.float64)
    meaning = node.take(
        "score_is", lambda n: n.choice("meaning", ("logit", "probability", "value")), ""
    )
    if meaning == "logit" and ranker.is_logit:
        wanted = 1 / (1 + np.exp(-wanted))
    raw = tables.features(file, table, features.wanted("user"))
    try:
        dense, codes = features.encoder.encode_table("user", raw)
        rows = _rows(item, file, table, features, items, ids, dense, codes)
    except InvalidInput as error:
        raise file.error(str(error)) from error
    found = ranker.probabilities(rows).astype(np.float64)
    tolerance = node.take("tolerance", lambda n: n.number(0), TOLERANCE)
    difference = np.abs(found - wanted)
    if not difference.max() <= tolerance:
        worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
        wrong = int((~(difference <= tolerance)).sum())
        raise file.error(
            f"{wrong} of {len(wanted)} scores differ by more than {tolerance:g}: the models see "
            f"other values than your code gives them. Row {worst}: your code says "
            f"{wanted[worst]:.6g}, the export {found[worst]:.6g}, for "
            f"{table.slice(worst, 1).to_pylist()[0]} encoded as "
            f"{encoded(features, rows, worst)}. Compare the ids with those of your code"
        )
    return (
        f"golden: {len(wanted)} scores from raw values equal yours, the largest difference is "
        f"{difference.max():.2g}"
    )


def _rows(
    item: str, file: Node, table: pa.Table, features: Features, items: Catalogue, ids: pa.Array,
    dense: np.ndarray, codes: np.ndarray,
) -> Rows:  # fmt: skip
    goods = features.wanted("item")
    if all(column in table.column_names for _, column in goods.values()):
        raw = tables.features(file, table, goods)
        item_dense, item_codes = features.encoder.encode_table("item", raw)
        return {
            "user_dense": dense, "user_ids": codes, "item_dense": item_dense, "item_ids": item_codes
        }  # fmt: skip
    rows = tables.rows_of(file, item, tables.column(file, table, item), ids)
    return flat_rows(dense, codes, items, rows)


def encoded(features: Features, rows: Rows, row: int) -> dict[str, object]:
    """What the models see of one row, by feature."""
    found: dict[str, object] = {}
    for feature in features.schema.features:
        side = feature.side
        if feature.kind == "dense":
            column = features.schema.dense(side).index(feature)
            found[feature.name] = round(float(rows[f"{side}_dense"][row, column]), 6)
        else:
            first = features.schema.first_column(feature)
            values = rows[f"{side}_ids"][row, first : first + feature.length].tolist()
            found[feature.name] = values if feature.multivalued else values[0]
    return found


def unproven(features: Features, raw: pa.Table) -> str:
    """What to say where no golden file came: three users beside what the models see of them."""
    some = raw.slice(0, SHOWN)
    dense, codes = features.encoder.encode_table("user", some)
    rows: dict[str, Any] = {
        "item_dense": np.zeros((len(some), features.schema.dense_width("item"))),
        "item_ids": np.zeros((len(some), features.schema.ids_width("item")), np.int64),
    }
    rows |= {"user_dense": dense, "user_ids": codes}
    users = {f.name for f in features.schema.side("user")}
    lines = [
        "THE ENCODING IS UNPROVEN: no `golden` file came. Compare these ids with your own code:"
    ]
    for row, user in enumerate(some.to_pylist()):
        seen = {k: v for k, v in encoded(features, rows, row).items() if k in users}
        lines.append(f"  {user} -> {seen}")
    return "\n".join(lines)
