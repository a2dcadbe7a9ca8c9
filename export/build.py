"""One release from top to bottom: read checkpoints, write each stage, prove it, seal it.
`write_release` is the whole export; its steps stand below it in the order in which they run."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from cascade import index, pbtxt
from cascade.artifact import Array
from cascade.config import Runtime
from cascade.files import write_json
from cascade.index import exact
from cascade.models.scorer import Scorer
from cascade.release import RELEASE_FILE
from cascade.schema import Schema
from cascade.spec import (
    ENSEMBLE,
    ITEM_STATE,
    PRERANK,
    RANK,
    RETRIEVE,
    STAGES,
    TOPOLOGIES,
    Stage,
    stages,
)
from cascade.stages import rerank
from cascade.stages.tasks import formula_of
from cascade.training import checkpoint
from export import verdict
from export.artifacts import batching, filters, names, parity, retrieval, variants
from export.artifacts.graphs import several
from export.artifacts.parity import Parity
from export.artifacts.stage_files import (
    PLAIN,
    Variant,
    add_torch_forms,
    write_scoring,
    write_tower,
)
from export.artifacts.variants import GUARD_USERS
from export.context import Build, Source
from export.foreign import own, taken, towers, wrapper
from export.foreign.onnx_model import Foreign
from export.foreign.own import Own
from export.foreign.taken import Taken
from export.releases.manifest import seal
from export.users import raw_users

TUNING_USERS = 512


class Written(NamedTuple):
    """A stage on disk: what release.json says about it, and the parity of its graphs."""

    facts: dict[str, Any]
    parities: list[Parity]


def write_release(build: Build, judged: bool = True) -> None:
    """Write a version of every model of the repository; release.json comes last. Raises
    ArtifactError, CheckpointError, ForeignError, GuardError, ParityError, SchemaError.

    Args:
        judged: say what the release adds or loses, and keep it in release.json.
    """
    source = Source.load(build.checkpoints)
    schema = source.schema
    foreign = {stage: Foreign(*files, schema) for stage, files in build.foreign.items()}
    for name in STAGES:  # before anything is written or measured
        if build.trained(name):
            checkpoint.describe(source.folder / build.checkpoint(name))
    tasks = _tasks(build, source, foreign)
    front = build.repository / ENSEMBLE / str(build.version)
    (front / RELEASE_FILE).unlink(missing_ok=True)  # until parity holds, there is no such release
    write_configs(build, schema, tasks=tasks)

    retrieved, source, candidates = _write_retrieval(build, source)
    # The ranker keeps a whole pool where the list is chosen from one.
    pooled = replace(build.sizes, results=max(build.sizes.results, build.product.pool))
    scoring = stages(schema, pooled)[1:]
    apart: dict[str, Taken]
    apart, flat = taken.taken_apart(build, foreign, scoring, source.items)
    trained = [stage for stage in scoring if build.trained(stage.name)]
    apart |= own.taken_apart(build, source, trained)
    others = {name: taken.Rows(model) for name, model in foreign.items()}
    verdicts = variants.choose(build, source, candidates, apart, others)
    if verdicts:
        print(variants.report(verdicts))
    chosen = {v.stage: v.variant for v in verdicts if v.chosen}
    written = {RETRIEVE: retrieved}
    for stage in scoring:
        how = (chosen.get(stage.name, PLAIN), apart.get(stage.name))
        if model := foreign.get(stage.name):
            folder, why = build.folder(stage.name), flat.get(stage.name, "")
            where = (model, stage, source.items, folder, bool(why))
            facts = wrapper.write(*where, how[1], how[0], why)
            written[stage.name] = Written(*facts)
        else:
            written[stage.name] = _write_scoring(build, source, stage, *how)
    _write_reranking(build, source)
    names.write(build.folder(RANK), source.items, schema.hash)

    parities = [p for stage in written.values() for p in stage.parities]
    print(parity.report(parities))
    titles = build.checkpoints / "titles.csv"
    if titles.exists():
        shutil.copyfile(titles, front / titles.name)
    release = {
        "version": build.version,
        "schema_hash": schema.hash,
        "topology": build.serving.topology,
        "serving": vars(build.serving),
        "product": vars(build.product),
        "sizes": vars(build.sizes),
        "items": len(source.items),
        "stages": {name: stage.facts for name, stage in written.items()},
        "variants": [v.to_dict() for v in verdicts],
        "parity": [vars(p) for p in parities],
        "parity_max_abs": max(p.max_abs for p in parities if not p.quantised),
    }
    write_json(front / RELEASE_FILE, release)
    users = raw_users(source, batching.USERS)
    if build.measure_batching:
        release["users_per_run"] = _measure_batching(build, schema, users, tasks)
        write_json(front / RELEASE_FILE, release)
    if judged:
        release |= verdict.of_release(build, source, release)
        write_json(front / RELEASE_FILE, release)
    seal(build.repository, build.version, users)
    print(f"exported release {build.version} of {len(source.items):,} items to {build.repository}")
    if judged:
        print(verdict.text(release))


def _tasks(build: Build, source: Source, foreign: Mapping[str, Foreign]) -> tuple[str, ...]:
    """The ranker's tasks, where it has several. Raises FormulaError: the formula of a stage is not
    one of its model's tasks."""
    found = {}
    for stage in (PRERANK, RANK):
        found[stage] = foreign[stage].mapping.tasks if stage in foreign else ()
        if build.trained(stage):
            found[stage] = several(source.scorer(build.checkpoint(stage)))
        formula_of(stage, found[stage], build.product)
    return found[RANK]


def write_configs(
    build: Build,
    schema: Schema,
    runs: Mapping[str, int] | None = None,
    tasks: Sequence[str] = (),
) -> None:
    """Write config.pbtxt and model.py of every model; `runs` has the users per run by model,
    `tasks` are the ranker's."""
    where = (build.repository, schema, build.sizes, build.serving, build.version)
    pbtxt.write(*where, runs, product=build.product, tasks=tasks)


def _write_retrieval(build: Build, source: Source) -> tuple[Written, Source, Array]:
    """User tower, index and filters -> what was written, the source in the order of the release's
    rows, and the candidates [U, K] of the first users."""
    folder, retriever = build.folder(RETRIEVE), towers.open_retriever(source.folder, source.schema)
    own_index: Path | None = None
    tower: nn.Module
    if isinstance(retriever, towers.ForeignRetriever):
        tower, own_index, made_of = retriever.write(folder), retriever.own_index, retriever.facts
    else:
        tower = write_tower(retriever, source.schema, folder, build.forms)
        made_of = source.facts(RETRIEVE)
    source.encoder.save(folder)
    parities = _compare(build, source, RETRIEVE, tower)
    dense, ids = (torch.from_numpy(values[:TUNING_USERS]) for values in source.users)
    with torch.inference_mode():
        queries = retriever.user(dense, ids).numpy()
    vectors = towers.item_vectors(retriever, source.items)
    found = retrieval.write(build, source, vectors, queries, own_index)
    print(f"index {found}")
    source = source.ordered(found.order)
    filtered = filters.write(source, folder, build.filter_features)
    for feature, reason in filtered.left_out.items():
        print(f"no filter by {feature}: {reason}")
    file = exact.FILE if exact.present(folder) else index.FILE
    facts = {
        **made_of,
        "index": found.facts,
        "filters": {"features": [*filtered.features], "left_out": filtered.left_out},
        "bytes_per_item": _bytes_per_item(folder / file, source),
    }
    candidates = found.index.search(queries[:GUARD_USERS], build.sizes.candidates)
    return Written(facts, parities), source, candidates


def _write_scoring(
    build: Build, source: Source, stage: Stage, variant: Variant, taken: Taken | None
) -> Written:
    folder, name = build.folder(stage.name), build.checkpoint(stage.name)
    if stage.name == PRERANK and not build.preranks:
        return Written(*wrapper.pass_all(stage, source.schema.hash, folder))
    facts = {**source.facts(name), "variant": vars(variant)}
    if isinstance(taken, Own):
        more, parities = _write_own(build, source, taken, variant)
        return Written(facts | more, parities)
    where = (stage, source.schema, source.items, folder)
    module = write_scoring(source.scorer(name), *where, variant, build.forms)
    facts["bytes_per_item"] = _bytes_per_item(folder / f"{ITEM_STATE}.bin", source)
    facts |= _named(module.scorer)
    width, quantised = stage.inputs[-1].dims[0], variant.weights != "float32"
    return Written(facts, _compare(build, source, stage.name, module, width, quantised))


def _write_own(build: Build, source: Source, own: Own, variant: Variant) -> Written:
    """A model that was taken apart: model.onnx by what was derived, torch forms by its methods."""
    stage, folder = own.stage, build.folder(own.stage.name)
    width = stage.inputs[-1].dims[0]
    states = own.write(source.items, folder, variant)
    size = sum(mapped.nbytes for mapped in states.values()) / max(1, len(source.items))
    eager, rounded = own.eager(source.items), variant != PLAIN
    parities = _compare(build, source, stage.name, eager, width, rounded, ["onnx"])
    if forms := build.forms.torch:
        where = (stage, eager.item_state.numpy(), folder, variant.state, build.forms)
        module = add_torch_forms(own.scorer, *where)
        parities += _compare(build, source, stage.name, module, width, forms=forms)
    facts = {"bytes_per_item": size, "split": own.derived.facts(), **_named(own.scorer)}
    return Written(facts, parities)


def _named(scorer: Scorer) -> dict[str, Any]:
    """What release.json says about the tasks of a model, where it has several."""
    return {"tasks": [*tasks]} if (tasks := several(scorer)) else {}


def _write_reranking(build: Build, source: Source) -> None:
    """The item vectors by which a list is chosen from the pool, where there is a pool."""
    folder = build.folder(RANK)
    rerank.remove(folder)
    if build.product.pool:
        vectors = towers.item_vectors(
            towers.open_retriever(source.folder, source.schema), source.items
        )
        item_ids, results = source.items.item_ids, build.sizes.results
        rerank.save(folder, vectors, item_ids, results, build.product)


def _compare(
    build: Build,
    source: Source,
    stage: str,
    module: nn.Module,
    width: int | None = None,
    quantised: bool = False,
    forms: Collection[Runtime] = (*parity.FILES,),
) -> list[Parity]:
    """Parity at batch 1, 3 and the maximum, on real users with `width` candidates each."""
    random = np.random.default_rng(0)
    cases: parity.Cases = []
    for batch in (1, 3, build.serving.max_batch_size):
        some = random.integers(len(source.users[0]), size=batch)
        case = tuple(values[some] for values in source.users)
        if width is not None:
            rows = parity.draw_candidates(batch, width, len(source.items), random)
            case = (*case, rows)
        cases.append(case)
    folder, device = build.folder(stage), build.serving.device
    return parity.compare(stage, module, folder, source.schema, cases, quantised, device, forms)


def _bytes_per_item(file: Path, source: Source) -> float:
    return round(file.stat().st_size / max(1, len(source.items)), 1)


def _measure_batching(
    build: Build, schema: Schema, users: tuple[Array, Array], tasks: Sequence[str]
) -> Mapping[str, dict[str, Any]]:
    """Measure how many users each process should compute at once, and write it to config.pbtxt."""
    times_us = batching.measure(build.repository, build.version, users, build.serving)
    chosen = {model: batching.best(found) for model, found in times_us.items()}
    write_configs(build, schema, chosen, tasks)
    for model in TOPOLOGIES[build.serving.topology]:
        text = ", ".join(f"{size}: {us:.0f}" for size, us in times_us[model].items())
        print(f"{model}: {chosen[model]} users per run (us per user of {text})")
    return {model: {"chosen": chosen[model], "us": found} for model, found in times_us.items()}
