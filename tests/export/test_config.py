"""config.pbtxt: the committed files are the generated ones, and the steps of the ensemble fit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import model_config_pb2 as pb

from cascade import pbtxt
from cascade.client.layout import Layout
from cascade.config import PARAMETER, QUEUE, ProcessConfig, Serving
from cascade.data.criteo import SCHEMA as CRITEO
from cascade.schema import Feature, Schema
from cascade.spec import (
    ENSEMBLE,
    FRONTS,
    RANK,
    RECOMMEND_FILTERED,
    RELEASE,
    RETRIEVE,
    STAGES,
    TEXTS,
    UNKNOWN_VALUES,
    ConfigError,
    Sizes,
    sizes_from,
    stages,
)

COMMITTED = Path(__file__).parents[2] / "model_repository"
BAGS = Schema(
    "bags, no numbers",
    (
        Feature("history", "user", "bag", "vocabulary", length=50),
        Feature("city", "user", "categorical", "vocabulary"),
        Feature("genres", "item", "bag", "vocabulary", length=6),
    ),
)
SMALL = Sizes(candidates=90, survivors=30, results=7)
BUSY = Serving(
    instances=3,
    threads=2,
    runtime="torchscript",
    device="cuda",
    max_batch_size=16,
    queue_delay_us=250,
    batch_users=4,
    max_queue_size=128,
)

Configs = dict[str, Any]


def test_the_committed_files_are_what_criteo_generates(tmp_path: Path) -> None:
    pbtxt.write(tmp_path, CRITEO, Sizes(), Serving(), version=1)
    generated = pbtxt.configs(CRITEO, Sizes(), Serving(), version=1)
    assert sorted(p.name for p in COMMITTED.iterdir()) == sorted(generated)
    for name, message in generated.items():
        assert pbtxt.read(COMMITTED / name / "config.pbtxt") == message, name
        assert pbtxt.read(tmp_path / name / "config.pbtxt") == message, name
    for stage in STAGES:
        committed = (COMMITTED / stage / "1" / "model.py").read_text()
        assert committed == (tmp_path / stage / "1" / "model.py").read_text()
        (line,) = (s for s in committed.splitlines() if "import" in s)
        assert line.startswith("from cascade.triton.adapter import ")
    assert (COMMITTED / ENSEMBLE / "1").is_dir()


def test_the_vocabularies_do_not_show() -> None:
    fitted = CRITEO.fitted({f.name: (77, "digest") for f in CRITEO.features if f.kind != "dense"})
    assert pbtxt.configs(fitted, Sizes(), Serving(), 1) == pbtxt.configs(
        CRITEO, Sizes(), Serving(), 1
    )
    other = replace(CRITEO, features=CRITEO.features[1:])
    assert pbtxt.configs(other, Sizes(), Serving(), 1) != pbtxt.configs(
        CRITEO, Sizes(), Serving(), 1
    )


@pytest.fixture(params=[CRITEO, BAGS], ids=lambda schema: schema.name)
def schema(request: pytest.FixtureRequest) -> Schema:
    found: Schema = request.param
    return found


@pytest.fixture(params=[(Sizes(), Serving()), (SMALL, BUSY)], ids=["default", "busy"])
def configs(request: pytest.FixtureRequest, schema: Schema, tmp_path: Path) -> Configs:
    """Written and read back."""
    pbtxt.write(tmp_path, schema, *request.param, version=4)
    return {p.parent.name: pbtxt.read(p) for p in tmp_path.glob("*/config.pbtxt")}


def tensors(declared: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {t.name: (pb.DataType.Name(t.data_type), tuple(t.dims)) for t in declared}


@pytest.mark.parametrize("name", [ENSEMBLE, RECOMMEND_FILTERED])
def test_every_step_is_fed_by_the_request_or_by_an_earlier_step(
    configs: Configs, name: str
) -> None:
    ensemble, left_out = configs[name], TEXTS if name == ENSEMBLE else ()
    assert ensemble.platform == "ensemble"
    known = tensors(ensemble.input)
    steps = ensemble.ensemble_scheduling.step
    assert tuple(step.model_name for step in steps) == STAGES
    for step in steps:
        member = configs[step.model_name]
        assert step.model_version == 4
        assert member.max_batch_size == ensemble.max_batch_size
        wanted, given = tensors(member.input), tensors(member.output)
        assert set(step.input_map) == set(wanted) - {*left_out}
        assert all(t.optional for t in member.input if t.name in left_out)
        assert set(step.output_map) == set(given)
        for name, source in step.input_map.items():
            assert known[source] == wanted[name], (step.model_name, name)
        for name, target in step.output_map.items():
            assert target not in known, "a tensor is written twice"
            known[target] = given[name]
    for name, tensor in tensors(ensemble.output).items():
        assert known[name] == tensor


def test_the_tensors_are_those_of_the_specification(schema: Schema) -> None:
    found = pbtxt.configs(schema, SMALL, Serving(), 1)
    for stage in stages(schema, SMALL):
        added = {RANK: (RELEASE,), RETRIEVE: (UNKNOWN_VALUES,)}.get(stage.name, ())
        outputs = (*stage.outputs, *added)
        for declared, messages in (
            (stage.inputs, found[stage.name].input),
            (outputs, found[stage.name].output),
        ):
            wanted = {
                t.name: ({"BYTES": "TYPE_STRING"}.get(t.dtype, f"TYPE_{t.dtype}"), t.dims)
                for t in declared
            }
            assert tensors(messages) == wanted
    assert tensors(found[ENSEMBLE].input)["dense"] == (
        "TYPE_FP32",
        (13,) if schema is CRITEO else (1,),  # a side without numbers sends one that nobody reads
    )
    assert tensors(found[ENSEMBLE].output) == {
        "item_ids": ("TYPE_INT64", (7,)),
        "scores": ("TYPE_FP32", (7,)),
        "release": ("TYPE_INT64", (1,)),
        "unknown_values": ("TYPE_INT64", (1,)),
    }


@pytest.mark.parametrize(
    ("name", "other"), [(ENSEMBLE, RECOMMEND_FILTERED), (RECOMMEND_FILTERED, None)]
)
def test_a_client_can_read_the_layout_off_the_ensemble(
    schema: Schema, configs: Configs, name: str, other: str | None
) -> None:
    layout = Layout.from_config(configs[name])
    assert (layout.filters, layout.filtered) == (True, other)
    assert layout.dense == tuple(f.name for f in schema.dense("user"))
    assert [(f.name, f.multivalued, f.length) for f in layout.categorical] == [
        (f.name, f.kind == "bag", f.length) for f in schema.ids("user")
    ]
    assert layout.layout_hash == schema.layout_hash
    assert layout.max_batch_size == configs[ENSEMBLE].max_batch_size


def test_the_knobs_reach_the_server_and_the_stages(tmp_path: Path) -> None:
    found = pbtxt.configs(CRITEO, SMALL, BUSY, 1)
    for name in STAGES:
        message = found[name]
        assert message.backend == "python"
        assert message.max_batch_size == 16
        (group,) = message.instance_group
        assert (group.count, group.kind) == (3, pb.ModelInstanceGroup.KIND_GPU)
        assert message.dynamic_batching.max_queue_delay_microseconds == 250
        assert message.dynamic_batching.preferred_batch_size == [4]
        assert set(message.parameters) == {PARAMETER}
        process = pbtxt.settings(message)
        read = process.serving
        assert (read.runtime, read.device, read.threads) == ("torchscript", "cuda", 2)
        assert read.max_queue_size == 128
        assert process.stages == (name,)
        assert process.candidates == 90
        assert process.layout_hash == CRITEO.layout_hash
    parameters = {k: v.string_value for k, v in found[ENSEMBLE].parameters.items()}
    assert sizes_from(json.loads(parameters["sizes"])) == SMALL
    assert json.loads(parameters["sizes"]) == asdict(SMALL)
    assert parameters["layout_hash"] == CRITEO.layout_hash


@pytest.mark.parametrize("instances", [2, 16, 64])
def test_instances_on_a_cpu_are_ranked(instances: int) -> None:
    """Triton multiplies how often one has run by its priority: the first stays the first."""
    message = pbtxt.configs(CRITEO, SMALL, replace(Serving(), instances=instances), 1)[RANK]
    assert [group.count for group in message.instance_group] == [1] * instances
    ranks = [group.rate_limiter.priority for group in message.instance_group]
    assert ranks[0] == 1
    assert all(later > earlier for earlier, later in pairwise(ranks))


def test_the_bound_on_what_waits_is_the_processes() -> None:
    for serving, expected in (
        (Serving(), QUEUE),
        (Serving(max_queue_size=7), 7),
        (Serving(instances=2, max_queue_size=0), 0),
    ):
        for name in STAGES:
            message = pbtxt.configs(CRITEO, Sizes(), serving, 1)[name]
            assert pbtxt.settings(message).serving.max_queue_size == expected
            assert not message.dynamic_batching.HasField("default_queue_policy")


def test_stages_batch_by_default_and_have_no_queue_policy() -> None:
    """With one, server 2.51 lets requests lie."""
    for name, message in pbtxt.configs(CRITEO, Sizes(), Serving(), 1).items():
        assert message.HasField("dynamic_batching") == (name not in FRONTS)
        assert not message.dynamic_batching.HasField("default_queue_policy")
        assert message.dynamic_batching.max_queue_delay_microseconds == 0
        assert len(message.instance_group) == (name not in FRONTS)


@pytest.mark.parametrize(
    ("key", "known", "value"), [("runtime", "onnx", "tflite"), ("device", "cpu", "tpu")]
)
def test_an_unknown_parameter_is_named(key: str, known: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"parameter {key} is '{value}'; expected"):
        ProcessConfig.from_parameters(
            {PARAMETER: ProcessConfig(("rank",), 90, "1234").to_json().replace(known, value)}
        )


@pytest.mark.parametrize("sizes", [(0, 0, 0), (100, 200, 10), (1000, 5, 10), (10, 5, 0)])
def test_sizes_shrink(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"must shrink .* got \d+ candidates"):
        Sizes(*sizes)
