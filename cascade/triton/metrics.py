"""Prometheus metrics of the stages, beside Triton's own, under the server's /metrics.

Every family has the labels `model` and `release`; those of a stage have the label `stage`, too.

| family | further label | what |
|---|---|---|
| cascade_batch_seconds_bucket, _sum, _count | le | time of a batch in a process: a histogram |
| cascade_batch_users_total | | users in those batches |
| cascade_errors_total | kind | refused: the `input`, a full `queue`, too `late`; failed: `stage` |
| cascade_<count>_total | stage | of `counts()`: candidates or results `kept`, `cold_starts`, ... |
| cascade_not_finite_total | stage | candidates whose score is NaN or infinite: they came last |
| cascade_unknown_values_total | stage, feature | values of users that are not in the vocabulary |
| cascade_<level> | stage | of `levels()`, such as `items` |
| cascade_deny_list_lines | stage, state | `applied`, `absent` (no such item), `bad` (unreadable) |
| cascade_deny_list_ok | stage | 0: the list is not in force as its file stands |
| cascade_deny_list_age_s | stage | age of the file that was last read as a whole |
| cascade_log_ok | | 0: the last lines for the server's log were lost, as on a full disk |
| cascade_release | | the release that the model serves |

Every increment, and every observation of a histogram of Triton's, is a message to the server. So a
process counts in its own memory, and once a second publishes the increments: the buckets of the
histogram as counters, which Prometheus' `histogram_quantile` reads like a histogram.
"""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from cascade.telling import tell
from cascade.triton.request_log import RequestLog

PERIOD_S = 1.0
BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
PREFIX = "cascade_"
Labels = dict[str, str]


class Metrics:
    """The counters of one process.

    Args:
        backend: the module triton_python_backend_utils, which only the adapter may import.
        log: of this process.
        stages: by name. `counts()` of a stage are totals since it was loaded, which only grow, or
            such totals by feature;
            `levels()` are present values, or such values by state. Both are called once a second,
            from another thread than the stage's own; the names in them become those of the
            families.
    """

    def __init__(
        self, backend: Any, model: str, release: int, stages: Mapping[str, Any], log: RequestLog
    ) -> None:
        self._backend, self._stages, self._log = backend, stages, log
        self._labels = {"model": model, "release": str(release)}
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, str], Any] = {}
        self._published: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._seconds, self._users = 0.0, 0
        self._errors = {"input": 0, "late": 0, "queue": 0, "stage": 0}
        self._release, self._complaint = release, False
        self.publish()
        self._ended = threading.Event()
        self._publisher = threading.Thread(target=self._publish_often, daemon=True)
        self._publisher.start()

    def batch(self, users: int, seconds: float) -> None:
        """A batch was answered."""
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds += seconds
        self._users += users

    def error(self, kind: str, requests: int = 1) -> None:
        """Requests without an answer; see `kind` above."""
        self._errors[kind] += requests

    def publish(self) -> None:
        """Send the server the increments since the last time. What cannot be sent now is part of a
        later increment; the work goes on."""
        try:
            self._publish()
        except Exception as error:
            if not self._complaint:
                tell(f"metrics of {self._labels['model']} cannot be published: {error!r}\n")
            self._complaint = True
        else:
            self._complaint = False

    def _publish(self) -> None:
        for name, value in (("release", self._release), ("log_ok", float(self._log.ok))):
            self._metric(name, {}, self._backend.MetricFamily.GAUGE).set(value)
        total = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self._buckets, strict=True):
            total += count
            self._raise("batch_seconds_bucket", total, {"le": bound})
        self._raise("batch_seconds_count", total)
        self._raise("batch_seconds_sum", self._seconds)
        self._raise("batch_users_total", self._users)
        for kind, count in self._errors.items():
            self._raise("errors_total", count, {"kind": kind})
        for name, stage in self._stages.items():
            for count_name, count in stage.counts().items():
                if not isinstance(count, Mapping):
                    self._raise(f"{count_name}_total", count, {"stage": name})
                    continue
                for feature, number in count.items():
                    labels = {"stage": name, "feature": feature}
                    self._raise(f"{count_name}_total", number, labels)
            for level_name, level in stage.levels().items():
                by_state = level.items() if isinstance(level, Mapping) else ((None, level),)
                for state, value in by_state:
                    labels = {"stage": name} | ({} if state is None else {"state": state})
                    self._metric(level_name, labels, self._backend.MetricFamily.GAUGE).set(value)

    def close(self) -> None:
        """Publish the rest, and stop.

        The metrics stay alive: server 2.51 frees a metric when the first of its processes releases
        it, while others still count. Python would release it at exit, hence the references.
        """
        self._ended.set()
        self._publisher.join()
        self.publish()
        for held in (*self._metrics.values(), *self._families.values()):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))

    def _publish_often(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self.publish()

    def _raise(self, name: str, total: float, labels: Labels | None = None) -> None:
        """Raise a counter by the increment of this process: the processes of a model share it."""
        labels = labels or {}
        metric = self._metric(name, labels, self._backend.MetricFamily.COUNTER)
        key = name, str(labels)
        if new := total - self._published[key]:
            metric.increment(new)
            self._published[key] = total

    def _metric(self, name: str, labels: Labels, kind: Any) -> Any:
        """The metric, made at its first use. A family lives as long as this object refers to it."""
        key = name, str(labels)
        if key not in self._metrics:
            if name not in self._families:
                self._families[name] = self._backend.MetricFamily(
                    name=PREFIX + name,
                    description=f"{name.replace('_', ' ')}: see cascade/triton/metrics.py",
                    kind=kind,
                )
            self._metrics[key] = self._families[name].Metric(labels={**self._labels, **labels})
        return self._metrics[key]
