"""`python -m clients.examples --repository DIR --format curl`: a program in another language that
asks the cascade, made for the features of that repository, with users of its own release where it
holds one. `docs/client-http.md` shows what it prints."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade import pbtxt
from cascade.artifact import ArtifactError
from cascade.client.layout import Layout
from cascade.errors import run
from cascade.item_keys import PAD
from cascade.layout import RequestLayout
from cascade.release import newest_version, read_release
from cascade.spec import ENSEMBLE, RECOMMEND_USER, RETRIEVE, stage_path
from cascade.values import SEPARATOR
from clients import examples_go

User = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """What the programs ask with.

    Args:
        layout: the features of the repository.
        users: raw values by feature name, as `context` takes them; None is a missing value.
        items: ids to exclude.
        allow: one value of an item feature; empty where the release cannot filter.
        by_id: whether there is `recommend_user`.
        model: what takes `context` and filters.
    """

    layout: RequestLayout
    users: tuple[User, User]
    items: tuple[int | str, ...]
    allow: Mapping[str, Sequence[str]]
    by_id: bool
    model: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one of the programs."""
    parser = argparse.ArgumentParser(prog="python -m clients.examples", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR")
    formats = "curl, grpcurl: a shell script; go: a program; protoset: what grpcurl needs"
    parser.add_argument("--format", choices=[*FORMATS], default="curl", help=formats)
    options = parser.parse_args(arguments)
    content = FORMATS[options.format](example(options.repository))
    sys.stdout.buffer.write(content if isinstance(content, bytes) else content.encode())


def example(repository: Path) -> Example:
    """Read the features off config.pbtxt, and the values off the newest release. Raises
    ArtifactError, RecommendError: the folder holds no cascade."""
    path = repository / ENSEMBLE / "config.pbtxt"
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: {repository} is not an exported repository")
    layout = Layout.from_config(pbtxt.read(path))
    by_id = (repository / RECOMMEND_USER / "config.pbtxt").is_file()
    model = layout.filtered or ENSEMBLE
    try:
        version = newest_version(repository)
    except ArtifactError:
        invented = {name: _invented(layout, name, place) for place, name in enumerate(layout.names)}
        allow = {name: ["a"] for name in layout.items[:1]}
        items: tuple[int | str, ...] = ("item-1",) if layout.string_ids else (1000, 1001)
        return Example(layout, _two(layout, invented), items, allow, by_id, model)
    release = read_release(repository, version)
    canary = release.get("canary") or {"dense": [[]], "categorical": [[]], "item_ids": [[]]}
    known = zip(layout.dense, canary["dense"][0], strict=False)
    texts = zip(layout.categorical, canary["categorical"][0], strict=False)
    user = {name: _plain(value) for name, value in known}
    for feature, text in texts:
        user[feature.name] = text.split(SEPARATOR) if text and feature.multivalued else text or None
    items = tuple(item for item in canary["item_ids"][0][:2] if item not in (PAD, ""))
    folder = repository / stage_path(release["topology"], RETRIEVE, version)
    return Example(layout, _two(layout, user), items, _allow(folder, release), by_id, model)


def _invented(layout: RequestLayout, name: str, place: int) -> Any:
    feature = layout.id_features.get(name)
    if feature is None:
        return place + 1
    return ["a", "b"] if feature.multivalued else "a"


def _plain(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value


def _two(layout: RequestLayout, user: User) -> tuple[User, User]:
    """A user, and one of whom little is known: the last number is missing, the rest left out."""
    numbers, texts = layout.dense[-1:], [feature.name for feature in layout.categorical[:1]]
    return user, dict.fromkeys(numbers) | {name: user.get(name) for name in texts}


def _allow(folder: Path, release: Mapping[str, Any]) -> dict[str, list[str]]:
    """The first value of the first item feature that the release can filter by."""
    from cascade.stages.filters.items import FilterDescription

    try:
        described = FilterDescription.load(folder, release["schema_hash"])
    except (ArtifactError, KeyError):
        return {}
    arrays = {name: described.mapped[name].open(folder) for name in ("text", "text_starts")}
    for name, (first, end) in described.features.items():
        if first < end:
            start, stop = arrays["text_starts"][first : first + 2]
            return {name: [bytes(arrays["text"][start:stop]).decode(errors="replace")]}
    return {}


# --- the requests, in both protocols


@dataclass(frozen=True)
class Ask:
    """One request of a script: what it shows, the model, its BYTES inputs, a text for each user."""

    shows: str
    model: str
    texts: Mapping[str, Sequence[str]]


def _asks(found: Example) -> list[Ask]:
    first, second = map(_json, found.users)
    asks = [
        Ask(
            "One user: raw values by feature name. null, or a name left out, is a missing value.",
            found.model,
            {"context": [first]},
        )
    ]
    filters = {"exclude": [_json(list(found.items))]}
    if found.allow:
        filters["allow"] = [_json(found.allow)]
    asks.append(Ask("Filters.", found.model, {"context": [second], **filters}))
    asks.append(Ask("Two users in one request.", found.model, {"context": [first, second]}))
    if found.by_id:
        texts = {"user_id": ["17"], "context": [second]}
        asks.append(Ask("A user by id; `context` overrides.", RECOMMEND_USER, texts))
    return asks


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _script(head: str, calls: Sequence[tuple[str, str, str]]) -> str:
    """A shell script: what each call shows, its command, and its lines of JSON."""
    parts = [f"# {shows}\n{command} <<'JSON'\n{text}\nJSON\n" for shows, command, text in calls]
    return "\n".join([head, *parts])


def curl(found: Example) -> str:
    """A shell script that needs curl alone."""
    calls = [(ask.shows, f"ask {ask.model}", _http(ask)) for ask in _asks(found)]
    calls.insert(2, (_TENSORS, f"ask {ENSEMBLE}", _tensors(found)))
    return _script(_CURL, calls)


_CURL = """\
#!/usr/bin/env bash
# Asks the cascade by JSON over HTTP.
set -euo pipefail
URL=${URL:-http://127.0.0.1:8000}
# A server on this machine is asked without a proxy.
case $URL in
  http://127.0.0.1:* | http://localhost:* | http://\\[::1\\]:*) export no_proxy='*' ;;
esac

ask() { curl -sS --fail-with-body --data-binary @- "$URL/v2/models/$1/infer"; echo; }

# Is the server ready? The status is 200.
curl -sS --fail -o /dev/null -w 'ready: %{http_code}\\n' "$URL/v2/health/ready"
"""
_TENSORS = (
    "The first user as tensors, in the order of the features: NaN is a missing number, an empty\n"
    "# text a missing category, | separates the members of a list."
)


def _http(ask: Ask) -> str:
    inputs = [
        {"name": name, "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
        for name, texts in ask.texts.items()
    ]
    return _body(inputs)


def _tensors(found: Example) -> str:
    layout, (user, _) = found.layout, found.users
    inputs = []
    if layout.dense:
        numbers = [float("nan") if user.get(n) is None else user[n] for n in layout.dense]
        inputs.append(_row("dense", "FP32", numbers))
    if layout.categorical:
        texts = [feature.to_wire(user.get(feature.name)).decode() for feature in layout.categorical]
        inputs.append(_row("categorical", "BYTES", texts))
    return _body(inputs)


def _row(name: str, datatype: str, data: Sequence[Any]) -> dict[str, Any]:
    return {"name": name, "shape": [1, len(data)], "datatype": datatype, "data": data}


def _body(inputs: Sequence[Any]) -> str:
    lines = ",\n  ".join(map(_json, inputs))
    return (
        f'{{"inputs": [\n  {lines}],\n "outputs": [{{"name": "item_ids"}}, {{"name": "scores"}}]}}'
    )


def grpcurl(found: Example) -> str:
    """A shell script that needs grpcurl, and the file of `protoset`."""
    calls = []
    for ask in _asks(found):
        texts = "\n# ".join(f"{name}: {text}" for name, some in ask.texts.items() for text in some)
        calls.append((f"{ask.shows}\n# {texts}", "ask ModelInfer", _grpc(ask)))
    return _script(_GRPCURL, calls)


_GRPCURL = """\
#!/usr/bin/env bash
# Asks the cascade over gRPC. The server offers no reflection, so that grpcurl needs the file
# that `python -m clients.examples --repository DIR --format protoset > kserve.protoset` writes.
# Bytes are base64; integers come as little-endian bytes:
#   bash grpcurl.sh | jq -r .rawOutputContents[0] | base64 -d | od -An -t d8
set -euo pipefail
URL=${URL:-127.0.0.1:8001}

SERVICE=inference.GRPCInferenceService

ask() { grpcurl -plaintext -protoset kserve.protoset -d @ "$URL" "$SERVICE/$1"; }

# Is the server ready?
ask ServerReady <<< '{}'
"""


def _grpc(ask: Ask) -> str:
    inputs = [
        {
            "name": name,
            "datatype": "BYTES",
            "shape": [len(texts), 1],
            "contents": {
                "bytesContents": [base64.b64encode(text.encode()).decode() for text in texts]
            },
        }
        for name, texts in ask.texts.items()
    ]
    lines = ",\n  ".join(map(_json, inputs))
    head = f'{{"modelName": "{ask.model}", "inputs": [\n  '
    return head + lines + '],\n "outputs": [{"name": "item_ids"}]}'


def protoset(_: Example) -> bytes:
    """The service of KServe's v2 protocol with all its messages, as a FileDescriptorSet."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from tritonclient.grpc import model_config_pb2, service_pb2

    described = FileDescriptorSet()
    for module in (model_config_pb2, service_pb2):  # what is imported stands first
        module.DESCRIPTOR.CopyToProto(described.file.add())
    return bytes(described.SerializeToString())


def go(found: Example) -> str:
    """A Go program that needs the standard library alone."""
    return examples_go.program(
        found.model,
        found.users,
        found.items,
        found.allow,
        "string" if found.layout.string_ids else "int64",
    )


FORMATS: dict[str, Callable[[Example], str | bytes]] = {
    "curl": curl,
    "grpcurl": grpcurl,
    "go": go,
    "protoset": protoset,
}


if __name__ == "__main__":
    run(main)
