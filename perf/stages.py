"""Where a request's time goes: the server's statistics, taken before and after a run.

The ensemble's own entry says nothing about its members' queues, so theirs are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as grpc

from cascade.pbtxt import settings
from perf.measurement import StageTimes


@dataclass(frozen=True)
class Counters:
    """A model's counters since the server started, summed over its versions; times in ns."""

    success: int
    failed: int
    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int
    inference_count: int
    execution_count: int

    def since(self, before: Counters) -> StageTimes:
        """Means per request between two moments; zeros where nothing was asked."""
        requests = max(1, self.success - before.success)

        def mean_us(after_ns: int, before_ns: int) -> float:
            return (after_ns - before_ns) / requests / 1000

        return StageTimes(
            queue_us=mean_us(self.queue_ns, before.queue_ns),
            input_us=mean_us(self.input_ns, before.input_ns),
            infer_us=mean_us(self.infer_ns, before.infer_ns),
            output_us=mean_us(self.output_ns, before.output_ns),
            inference_count=self.inference_count - before.inference_count,
            execution_count=self.execution_count - before.execution_count,
        )


def members(config: Any) -> tuple[str, ...]:
    """Models that an ensemble's ModelConfig chains, in order; the model itself if it is none."""
    steps = tuple(step.model_name for step in config.ensemble_scheduling.step)
    return steps or (config.name,)


def configuration_name(kind: str, configs: Iterable[Any]) -> str:
    """A name for how stages with these ModelConfigs run: `ensemble-cpu`,
    `ensemble-cuda-torchscript`, ..."""
    found = [settings(config).serving for config in configs if config.parameters]
    device = "cuda" if any(serving.device == "cuda" for serving in found) else "cpu"
    runtimes = sorted({serving.runtime for serving in found} - {"onnx"})
    return "-".join([kind, device, *runtimes])


def counters(client: grpc.InferenceServerClient, models: Iterable[str]) -> dict[str, Counters]:
    """Read the counters of each model."""
    return {model: _counters(client, model) for model in models}


def _counters(client: grpc.InferenceServerClient, model: str) -> Counters:
    versions = client.get_inference_statistics(model).model_stats
    stats = [version.inference_stats for version in versions]
    return Counters(
        success=sum(s.success.count for s in stats),
        failed=sum(s.fail.count for s in stats),
        queue_ns=sum(s.queue.ns for s in stats),
        input_ns=sum(s.compute_input.ns for s in stats),
        infer_ns=sum(s.compute_infer.ns for s in stats),
        output_ns=sum(s.compute_output.ns for s in stats),
        inference_count=sum(version.inference_count for version in versions),
        execution_count=sum(version.execution_count for version in versions),
    )
