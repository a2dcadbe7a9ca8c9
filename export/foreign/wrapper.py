"""A third-party ONNX model, wrapped into the contract of a scoring stage; docs/your-models.md
describes the JSON file of its inputs.

The foreign graph scores flat (user, item) rows. It is taken apart where that is possible
(`split`): then nodes before it gather the candidates' item states. Otherwise they gather the
candidates' encoded features and repeat the user's beside each, and all is computed for every pair.
Nodes behind it mask the pads, take the top K and, in the last stage, look up the ids.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import onnx
import onnx_ir as ir

from cascade.artifact import AOTI_FILE, ONNX_FILE, TORCH_FILE, Description, Mapped
from cascade.spec import CATALOGUE_IDS, TASKS, Stage
from export.artifacts import parity
from export.artifacts.onnx_file import EXTERNAL_BYTES, WEIGHTS_FILE
from export.artifacts.stage_files import (
    ITEMS_FILE,
    PLAIN,
    TORCH_STATE,
    Variant,
    answers,
    described,
    write_item_ids,
    write_mapped,
)
from export.context import Catalogue
from export.foreign.apart import STATES, take_apart, write_states
from export.foreign.onnx_model import IR_VERSION, Foreign, compare, load_model
from export.foreign.split import Derived, NotSplit
from export.foreign.wrapping import DTYPES, LOGITS, TABLES, Wrapping


class Writes(Protocol):
    """A model that was taken apart (`export.foreign.taken`)."""

    derived: Derived

    def write(self, items: Catalogue, folder: Path, variant: Variant) -> dict[str, Mapped]:
        """Write a version folder -> the item states in it."""


def write(
    foreign: Foreign,
    stage: Stage,
    items: Catalogue,
    folder: Path,
    flat: bool = False,
    taken: Writes | None = None,
    variant: Variant = PLAIN,
    why: str = "as --flat says",
) -> tuple[dict[str, Any], list[parity.Parity]]:
    """Write model.onnx, what it reads of the items, and stage.json, and prove that they rank as the
    file does -> facts for release.json, and the parity. Raises ForeignError, ParityError.

    Args:
        flat: do not take it apart; `why` is for the report.
        taken: the same, taken apart already, to be stored as the variant says.
    """
    both_classes = foreign.has_both_classes(items)
    name, split, reason = foreign.path.name, None, ""
    try:
        if flat:
            raise NotSplit(why)
        if taken:
            derived, tables = taken.derived, taken.write(items, folder, variant)
        else:
            derived = take_apart(foreign, items, stage.inputs[-1].dims[0])
            tables = write_files(foreign, stage, items, folder, derived, both_classes)
        parities = _proved(foreign, stage, items, folder, variant != PLAIN)
        split = derived.facts()
        print(f"{name}: {derived.report()}")
    except (NotSplit, parity.ParityError) as error:
        variant = PLAIN
        reason = f"{error}".splitlines()[-1]
        print(f"{name} is served flat, all of it for every candidate: {reason}")
        tables = write_files(foreign, stage, items, folder, None, both_classes)
        parities = _proved(foreign, stage, items, folder)
    size = sum(table.nbytes for table in tables.values()) / max(1, len(items))
    facts: dict[str, Any] = {"ranker_onnx": name, "flat": reason or None, "bytes_per_item": size}
    facts["split"] = split
    facts |= {"tasks": [*foreign.mapping.tasks]} if foreign.mapping.tasks else {}
    return {**facts, "output_is": foreign.mapping.meaning, "variant": vars(variant)}, parities


def pass_all(
    stage: Stage, schema_hash: str, folder: Path
) -> tuple[dict[str, Any], list[parity.Parity]]:
    """Write a stage without a model: it hands all candidates on."""
    users = [
        ir.val(tensor.name, DTYPES[tensor.dtype], ["stage_users", tensor.dims[0]])
        for tensor in stage.inputs
    ]
    tape = ir.tape.Tape()
    rows = tape.op("Identity", [users[-1]], output=ir.val(stage.outputs[0].name))
    rows.dtype, rows.shape = ir.DataType.INT64, users[-1].shape
    graph = ir.Graph(users, [rows], nodes=tape.nodes, opset_imports={"": 18}, name=stage.name)
    model = ir.Model(graph, ir_version=IR_VERSION)
    model.metadata_props.update(stage=stage.name, schema_hash=schema_hash)
    ir.save(model, folder / ONNX_FILE)
    inputs, outputs = (tuple(t.name for t in side) for side in (stage.inputs, stage.outputs))
    Description(stage.name, schema_hash, inputs, outputs, {}).save(folder)
    return {"checkpoint": None, "passes": "all candidates"}, []


def write_files(
    foreign: Foreign,
    stage: Stage,
    items: Catalogue,
    folder: Path,
    derived: Derived | None,
    both_classes: bool = False,
    variant: Variant = PLAIN,
    logits: bool = False,
) -> dict[str, Mapped]:
    """Write model.onnx, what it reads of the items, and stage.json -> what it reads of the items.

    Args:
        derived: what the file was taken apart into; None to serve it flat.
        both_classes: the file's output has two columns, of which the last is meant.
        variant: how the item states are stored; int8 is in `derived` already.
        logits: the graph gives those of all candidates instead of the best items.
    """
    states = (f"{state}.bin" for state in (*STATES, *TABLES.values(), TORCH_STATE))
    for stale in (TORCH_FILE, AOTI_FILE, WEIGHTS_FILE, ITEMS_FILE, *states):
        (folder / stale).unlink(missing_ok=True)  # of an earlier export into the same folder
    if derived:
        tables = write_states(derived, foreign, items, folder, variant.state)
        pairs = onnx.ModelProto()
        pairs.CopyFrom(derived.pairs)  # new names of its tensors would be those of the original
        model = ir.from_proto(pairs)
    else:
        tables = write_tables(foreign, items, folder)
        model = load_model(foreign.path)
    mapped, tasks = tables, foreign.mapping.tasks
    if answers(stage) and not logits:
        mapped = {**tables, CATALOGUE_IDS: write_item_ids(items, folder)}
    _carry_weights(model, folder)
    description = described(stage, foreign.schema.hash, mapped, tasks, variant.one_by_one)
    if logits:
        output = TASKS if tasks else LOGITS
        description = replace(description, outputs=(output,), counts_not_finite=False, tasks=())
    where = (description.graph_mapped, folder, derived)
    Wrapping(model, foreign, stage, *where).wrap(both_classes, logits)
    model.metadata_props.update(stage=stage.name, schema_hash=foreign.schema.hash)
    ir.save(model, folder / ONNX_FILE)
    onnx.checker.check_model(str(folder / ONNX_FILE))
    # Without widths: TensorRT asks for the shapes of whatever it cuts out of a graph, and of an
    # arbitrary one it may cut out several pieces.
    description.save(folder)
    return tables


def _proved(
    foreign: Foreign, stage: Stage, items: Catalogue, folder: Path, quantised: bool = False
) -> list[parity.Parity]:
    """The parity with the file. Raises ParityError."""
    parities = compare(foreign, stage, items, folder, quantised)
    parity.report(parities)
    return parities


def write_tables(foreign: Foreign, items: Catalogue, folder: Path) -> dict[str, Mapped]:
    """The encoded item features that the model reads, in mapped files."""
    values = {"item_dense": (items.dense, "float32"), "item_ids": (items.ids, "int64")}
    used = {column.source for i in foreign.inputs for column in i.columns}
    return {
        TABLES[source]: write_mapped(folder, TABLES[source], [rows], dtype, rows.shape)
        for source, (rows, dtype) in values.items()
        if source in used
    }


def _carry_weights(model: ir.Model, folder: Path) -> None:
    """Move large weights into one file beside the graph, wherever they lay; load small ones."""
    ir.external_data.unload_from_model(
        model, folder, WEIGHTS_FILE, size_threshold_bytes=EXTERNAL_BYTES
    )
    if not (folder / WEIGHTS_FILE).stat().st_size:
        (folder / WEIGHTS_FILE).unlink()
