"""What a release adds or loses, in words: what the training said of its models, or where held-out
positives are after each stage of the release; and what the export itself loses by its index, its
sizes and its precisions. A tell, no guard: it stops no release."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from cascade.artifact import Array
from cascade.index.files import open_index
from cascade.item_keys import as_keys
from cascade.runtime.load import load_graph
from cascade.spec import PRERANK, RANK, RETRIEVE, STAGES
from cascade.stages.pipeline import Pipeline
from cascade.training.bundle import HELD_OUT_FILE, VERDICT_FILE
from export.artifacts.guard import HeldOut
from export.artifacts.stage_files import Variant
from export.context import Build, Source

if TYPE_CHECKING:
    from cascade.evaluation.stagewise import Lists
    from cascade.evaluation.verdict import Verdict

POSITIVES = 200
REQUEST_USERS = 32
HEADINGS = {
    "training": "its models, by the validation split of the training",
    "held_out": f"its stages, by positives of {HELD_OUT_FILE}",
    "export": "the export itself",
    "plan": "its planned sizes",
}
Said = dict[str, Any]  # JSON: `by` whom, the `sentence`, and its figures


def of_release(build: Build, source: Source, release: Mapping[str, Any]) -> Said:
    """What `release`, the content of release.json, adds or loses -> its keys `verdict`, a list of
    sentences with their figures, and `warnings`."""
    said = _of_training(build, release)
    if said is None:
        said = _of_lists(build, source)
    lines, warnings = said
    lines = [*lines, *_of_export(release)]
    found = release["stages"][RETRIEVE]["index"].get("recall")
    # A planned effort is below the target on purpose.
    if found is not None and build.effort is None and found < build.recall:
        warnings.append(
            f"the index finds {found:.4f} of the nearest items, below the target of "
            f"{build.recall:g}; --index exact loses none"
        )
    return {"verdict": lines, "warnings": warnings}


def text(said: Said) -> str:
    """The sentences by who says them, then the warnings, each behind `WARNING:`."""
    lines = ["verdict:"]
    for by, group in groupby(said["verdict"], lambda line: line["by"]):
        lines += [f"{HEADINGS[by]}:", *(f"  {line['sentence']}" for line in group)]
    return "\n".join([*lines, *(f"WARNING: {warning}" for warning in said["warnings"])])


def _of_training(build: Build, release: Mapping[str, Any]) -> tuple[list[Said], list[str]] | None:
    """What verdict.json says; None where there is none, or it is of other models than these."""
    path = build.checkpoints / VERDICT_FILE
    try:
        found = json.loads(path.read_text())
        digests = {name: release["stages"][name].get("digest") for name in STAGES}
        if found["checkpoints"] != digests:
            print(f"{path} is of other models than those of this release, and not repeated")
            return None
        lines = [{"by": "training", **line} for line in found["verdict"]]
        return lines, [str(warning) for warning in found["warnings"]]
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        print(f"{path} cannot be read, and is not repeated: {error!r}")
        return None


def _of_lists(build: Build, source: Source) -> tuple[list[Said], list[str]]:
    """Where the positives of held_out.parquet are after each stage of the release, in this
    process; nothing where there are none."""
    path = source.folder / HELD_OUT_FILE
    if not path.exists():
        return [], []
    try:
        found = _judged(build, source, HeldOut.load(path, source.places, source.schema))
    except Exception as error:
        print(f"no verdict by {path}: {type(error).__name__}: {error}")
        return [], []
    return [{"by": "held_out", **line} for line in found.content()], [*found.warnings]


def _judged(build: Build, source: Source, held: HeldOut) -> Verdict:
    from cascade.evaluation import evaluate  # scikit-learn takes a second to import
    from cascade.evaluation.queries import Queries
    from cascade.evaluation.served.judge import popular_of
    from cascade.evaluation.verdict import Evidence, judge

    positives = np.random.default_rng(0).permutation(np.flatnonzero(held.labels > 0.5))
    asked, others = positives[:POSITIVES], held.items[positives[POSITIVES:]]
    dense, ids = (side[asked] for side in held.users)
    # The table does not say whose the rows are: equal users are one.
    owner = np.unique(np.hstack((dense, ids)), axis=0, return_inverse=True)[1].ravel()
    queries = Queries(dense, ids, held.items[asked][:, None], owner)
    found, evidence = evaluate.Evaluated(), Evidence(0)
    if not len(asked):
        return found.verdict
    lists = _ask(build, source, queries.dense, queries.categorical)
    came, keep = lists.retrieve.shape[1], lists.prerank.shape[1]
    popular = {}
    if len(others):
        rows = popular_of(others, came)
        popular["popularity"] = np.broadcast_to(rows, (len(queries), len(rows)))
    evaluate.add_lists(found, evidence, queries, lists, popular, {})
    handed = {"prerank": lists.prerank, "retrieve_order": lists.retrieve[:, :keep]}
    evaluate.add_survivors(found, evidence, queries, came, handed)
    if not build.preranks:
        evidence.stages = {name: of for name, of in evidence.stages.items() if name != PRERANK}
    return judge(evidence)


def _ask(build: Build, source: Source, dense: Array, ids: Array) -> Lists:
    """What the stages of the release answer encoded users, dense [B, F_dense] and ids [B, C]."""
    from cascade.evaluation.brute_force import Encoded
    from cascade.evaluation.stagewise import Lists, rows_of

    folder, serving = build.folder(RETRIEVE), replace(build.serving, threads=1)
    tower = load_graph(folder, source.schema, serving)[1]
    index = open_index(folder, source.schema.hash, serving)
    pipeline = Pipeline.load(build.repository, build.version, serving)
    answers = []
    for start in range(0, len(ids), REQUEST_USERS):
        users = dense[start : start + REQUEST_USERS], ids[start : start + REQUEST_USERS]
        candidates = index.search(tower(*users)[0], build.sizes.candidates)
        survivors = pipeline.prerank(*users, candidates)
        answered = as_keys(pipeline.rank(*users, survivors)[0])
        answers.append((candidates, survivors, rows_of(answered, pipeline.item_ids)))
    return Lists(Encoded(dense, ids), *map(np.concatenate, zip(*answers, strict=True)))


def _of_export(release: Mapping[str, Any]) -> list[Said]:
    """What the index, the sizes and the precisions cost."""
    facts, sizes = release["stages"][RETRIEVE]["index"], release["sizes"]
    index = f"index: {facts['kind']}"
    if facts.get("recall") is not None:
        index += f" finds {facts['recall']:.4f} of the {facts['recall_k']:,} nearest items"
        if facts.get("latency_us") and facts.get("exact_us"):
            index += f" in {facts['latency_us']:.0f} us, exact search in {facts['exact_us']:.0f}"
    elif facts["kind"] == "exact":
        index += " search, which loses no candidate"
    found = [{"name": "index", "recall": facts.get("recall"), "sentence": index}]
    steps = f"{sizes['candidates']:,} candidates, {sizes['survivors']:,} survivors"
    sized = f"sizes: {release['items']:,} items, {steps}, {sizes['results']:,} results"
    found.append({"name": "sizes", **sizes, "sentence": sized})
    for stage in (PRERANK, RANK):
        if tried := [one for one in release["variants"] if one["stage"] == stage]:
            found.append({"name": stage, "sentence": _stored(stage, tried)})
    largest = release["parity_max_abs"]
    parity = f"graphs: {largest:.1e} is the largest difference from the trained models"
    found.append({"name": "graphs", "parity_max_abs": largest, "sentence": parity})
    return [{"by": "export", **line} for line in found]


def _stored(stage: str, tried: list[Said]) -> str:
    """How a stage is stored, beside float32."""
    (chosen,) = (one for one in tried if one["chosen"])
    plain = next(one for one in tried if Variant(**one["variant"]) == Variant())
    if chosen is plain:
        return f"{stage} in float32: none of {len(tried) - 1} smaller forms is as good and as fast"
    return (
        f"{stage} with {Variant(**chosen['variant'])}: {-chosen['auc_loss']:+.5f} AUC, "
        f"{chosen['overlap']:.4f} of the ten best kept, {chosen['latency_us']:.0f} us a user in "
        f"place of {plain['latency_us']:.0f}, {chosen['bytes_per_item']} bytes an item in place of "
        f"{plain['bytes_per_item']}"
    )
