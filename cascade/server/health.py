"""Whether a server answers, and correctly: python -m cascade.server.health --url HOST:PORT

Sends a real request and checks the answer. Server 2.51 reports itself live and ready while the
process of a model is dead and every request fails. Prints one line; exit code 0 = healthy, 1 = not.
A server that rejects the request because its queues are full is asked again until the timeout: an
overloaded server counts as healthy, a restart would not help.

A server that is degraded counts as healthy, too, and the line says so from the server's metrics:
`DEGRADED` has what they tell. It also says when the metrics themselves do not answer.

For the health check of Docker (HEALTHCHECK) or Kubernetes (exec).
"""

from __future__ import annotations

import argparse
import http.client
import re
import time
import urllib.request
from collections.abc import Sequence, Set
from urllib.parse import urlsplit

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade import errors
from cascade.client import Tls, channel
from cascade.server import probe
from cascade.spec import ENSEMBLE
from cascade.telling import say

DEGRADED = {
    "cascade_deny_list_ok": "the deny list is not in force as its file stands",
    "cascade_store_up": "the store of users does not answer",
    "cascade_store_ours": "the store of users is empty, or holds users of other features",
    "cascade_log_ok": "a line for the server's log was lost",
}
METRICS_TIMEOUT_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cascade.server.health",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="127.0.0.1:8001", help="HOST:PORT of gRPC [%(default)s]")
    parser.add_argument("--model", default=ENSEMBLE, help="to ask [%(default)s]")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="[%(default)s]")
    parser.add_argument(
        "--metrics-url", metavar="URL", help="[http://HOST:8002/metrics, where gRPC is at 8001]"
    )
    Tls.add_arguments(parser)
    options = parser.parse_args(argv)
    tls = Tls.parsed(options)
    start = time.monotonic()
    try:
        with channel.connect(options.url, tls) as client:
            probe.ask_until_available(client, options.model, options.timeout_s)
            live = _live(client, options)
    except (InferenceServerException, probe.ProbeError) as error:
        text = error.message() if isinstance(error, InferenceServerException) else str(error)
        say(f"unhealthy: {options.model} at {options.url}: {' '.join(text.split())}")
        return 1
    ms = 1000 * (time.monotonic() - start)
    degraded = "".join(f"; degraded: {what}" for what in _degraded(options, live))
    say(f"healthy: {options.model} at {options.url} answered in {ms:.0f} ms{degraded}")
    return 0


def _live(client: grpc.InferenceServerClient, options: argparse.Namespace) -> set[int]:
    """The releases that the model is pinned to; empty where it is to none, or that is unknown."""
    try:
        found = client.get_model_config(options.model, client_timeout=options.timeout_s).config
    except InferenceServerException:
        return set()
    return {step.model_version for step in found.ensemble_scheduling.step} - {-1}


def _degraded(options: argparse.Namespace, live: Set[int]) -> list[str]:
    """What the metrics say of guards that do not work as they should; nothing without metrics."""
    host, _, port = options.url.rpartition(":")
    url = options.metrics_url or (f"http://{host}:8002/metrics" if port == "8001" else "")
    try:
        own = channel.is_local(urlsplit(url).netloc)  # else through the environment's proxy
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if own else None))
        with opener.open(url, timeout=METRICS_TIMEOUT_S) as page:
            text = page.read().decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return [f"no metrics at {url} ({error})"] if url else []
    if "cascade_release{" not in text:
        return [f"no metrics of a cascade at {url}"]
    zeros = (name for name in DEGRADED if _is_zero(text, name, live))
    return [f"{DEGRADED[name]} ({name} is 0)" for name in zeros]


def _is_zero(text: str, name: str, live: Set[int]) -> bool:
    """Whether the metric is 0 for a model of a release that is live, by default of the newest one:
    those before it keep their values, and one that is rolled back is not asked any more."""
    lines = re.findall(rf'(?m)^{name}\{{[^}}]*release="(\d+)"[^}}]*\}} (\S+)$', text)
    found = [(int(release), float(value)) for release, value in lines]
    counts = live & {release for release, _ in found} or {max(found, default=(0, 1.0))[0]}
    return any(release in counts and value == 0 for release, value in found)


if __name__ == "__main__":
    errors.run(main)
