"""Control takes a key, TLS takes a certificate, and no file is unpickled."""

from __future__ import annotations

import ast
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from cascade.client import Recommender, Retry, Tls, Unavailable
from cascade.client.tls import TlsError
from cascade.server import cleanup, health, security, workers
from cascade.server.launcher import Server
from cascade.server.security import ServerTls
from cascade.spec import TOPOLOGIES
from export.releases.rewire import rewire, settings_of
from tests.certificates import make_certificates

ROOT = Path(__file__).parents[2]
PACKAGES = ("cascade", "clients", "export", "perf", "tests/resilience")
Client = grpc.InferenceServerClient

CONTROL: dict[str, Callable[[Client, dict[str, str]], Any]] = {
    "load": lambda client, headers: client.load_model("recommend", headers=headers),
    "index": lambda client, headers: client.get_model_repository_index(headers=headers),
    "trace": lambda client, headers: client.get_trace_settings(headers=headers),
    "log": lambda client, headers: client.update_log_settings({"log_info": True}, headers=headers),
    "memory": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
}


@pytest.fixture(scope="module")
def client(criteo_server: Server) -> Iterator[Client]:
    with criteo_server.connect() as connected:
        yield connected


@pytest.mark.parametrize("action", ["load", "index", "trace", "log", "memory"])
def test_control_over_grpc_takes_the_key(
    client: Client, criteo_server: Server, action: str
) -> None:
    wrong = security.headers("x" * 43)
    for headers in ({}, wrong):
        with pytest.raises(InferenceServerException, match="This protocol is restricted"):
            CONTROL[action](client, headers)
    if action != "load":  # other tests use this server
        CONTROL[action](client, criteo_server.control_headers)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "repository/models/recommend/unload"),
        ("POST", "repository/index"),
        ("GET", "trace/setting"),
        ("GET", "logging"),
        ("GET", "systemsharedmemory/status"),
    ],
)
def test_control_over_http_takes_the_key(criteo_server: Server, method: str, path: str) -> None:
    url = f"http://{criteo_server.http_url}/v2/{path}"
    for headers in ({}, security.headers("x" * 43)):
        request = urllib.request.Request(url, method=method, headers=headers)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=30)
    if "unload" not in path:
        headers = criteo_server.control_headers
        request = urllib.request.Request(url, method=method, headers=headers)
        assert urllib.request.urlopen(request, timeout=30).status == 200


def test_who_looks_at_the_processes_sees_no_key(
    criteo_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = criteo_server.control_headers[security.KEY_HEADER].encode()
    pids = [criteo_server.pid, *(stub.pid for stub in workers.alive(criteo_server.name))]
    for pid in pids:
        for name in ("cmdline", "environ"):
            assert key not in Path(f"/proc/{pid}/{name}").read_bytes()
    words = Path(f"/proc/{pids[0]}/cmdline").read_bytes().split(b"\0")
    (masked,) = (w for w in words if w.startswith(b"--grpc-restricted-protocol="))
    assert masked.endswith(b":control-key=" + b"*" * len(key))


def test_other_users_cannot_read_what_is_shared_with_the_stages(criteo_server: Server) -> None:
    shared = [*cleanup.segments(criteo_server.name), cleanup.run_folder()]
    assert len(shared) > 1
    assert {path.stat().st_mode & 0o077 for path in shared} == {0}


def test_secrets_are_nowhere_to_be_read(
    criteo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The control key, and the password of a store that refuses it: in no command line, no file, no
    log, no metric, no trace, no error, and in no configuration that clients read."""
    key, word = "a-control-key-0123456789", "a-password-0123456789"
    monkeypatch.setenv("STORE_PASSWORD_OF_A_TEST", word)
    port = socket.create_server(("127.0.0.1", 0))
    store = f"redis://:$STORE_PASSWORD_OF_A_TEST@127.0.0.1:{port.getsockname()[1]}/0"
    repository, log = tmp_path / "repository", tmp_path / "log"
    serving, product = settings_of(criteo.repository)
    rewire(criteo.repository, repository, serving, replace(product, store=store))
    told = []
    with Server(repository, log=log, control_key=key) as server, server.connect() as client:
        with Recommender(server.url, deadline_s=30) as asks:
            assert asks.recommend_user("1").cold_start
        with pytest.raises(InferenceServerException) as refused:
            client.load_model("recommend", headers=security.headers("x" * 43))
        told += [str(refused.value), str(client.get_model_config("recommend_user"))]
        told += [str(client.get_model_config(model)) for model in TOPOLOGIES[serving.topology]]
        told.append(urllib.request.urlopen(server.metrics_url).read().decode())
        for process in psutil.process_iter(["cmdline"]):
            told.append("\0".join(process.info["cmdline"] or []))
        said = urllib.request.urlopen(f"http://{server.http_url}/v2").read().decode()
        told.append(said)
    port.close()
    files = [path for path in repository.rglob("*") if path.suffix in (".json", ".pbtxt", ".py")]
    told += [path.read_text() for path in (*files, log)]
    told += capfd.readouterr()
    assert "timed out" in log.read_text() or "Timeout" in log.read_text()  # it was asked
    for text in told:
        assert key not in text
        assert word not in text


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(security.KEY_VARIABLE, raising=False)
    assert security.control_key() != security.control_key()
    monkeypatch.setenv(security.KEY_VARIABLE, "from-the-environment")
    assert security.control_key() == "from-the-environment"
    file = tmp_path / "key"
    file.write_text("from-the-file-0123\n")
    assert security.control_key(file) == "from-the-file-0123"
    file.write_bytes(b"\xef\xbb\xbffrom-the-file-0123\r\n")
    assert security.control_key(file) == "from-the-file-0123"
    file.write_bytes("from-the-file-0123\n".encode("utf-16"))
    with pytest.raises(security.SecurityError, match="is not text in UTF-8"):
        security.control_key(file)
    monkeypatch.setenv(security.KEY_VARIABLE, "")
    with pytest.raises(security.SecurityError, match="has 0 characters"):
        security.control_key()
    for bad in ("short", "has a space in it 01", "colon:0123456789abcdef", ""):
        file.write_text(bad)
        with pytest.raises(ValueError, match="expected 16 or more"):
            security.control_key(file)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    folder = tmp_path / "certificates"
    folder.mkdir()
    make_certificates(folder)
    return folder


def test_mutual_tls(seven: Any, certificates: Path) -> None:
    ca, cert, key, client_cert, client_key = (
        certificates / name
        for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    )
    files = ("--tls-ca", ca, "--tls-key", client_key, "--tls-cert", client_cert)
    with Server(seven.repository, exit_timeout_s=1, tls=ServerTls(cert, key, ca)) as server:
        with Recommender(server.url, deadline_s=30, tls=Tls(ca, client_key, client_cert)) as known:
            assert len(known.recommend(seven.users[0]).item_ids) == 7
        for tls in (Tls(ca), None):
            with (
                Recommender(server.url, tls=tls, retry=Retry(tries=2, first_s=0.01)) as stranger,
                pytest.raises(Unavailable),
            ):
                stranger.recommend({})
        assert health.main(["--url", server.url, *map(str, files)]) == 0
        assert health.main(["--url", server.url, "--timeout-s", "0.5"]) == 1
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://{server.http_url}/v2", timeout=5)
        cert.unlink()  # the next one takes its place
        shutil.copy(client_cert, cert)
        with server.connect() as client:  # as at the stop, which lets requests end
            assert client.is_server_ready()
    with pytest.raises(ValueError, match=r"no file .*absent"):
        ServerTls(cert, certificates / "absent")


def test_files_that_cannot_be_used_start_no_server(certificates: Path, tmp_path: Path) -> None:
    """An empty authority would be one that nobody checks."""
    ca, cert, key, other = (
        certificates / name for name in ("ca.pem", "server.pem", "server.key", "client.key")
    )
    for name, content in {
        "empty": b"",
        "words": b"not a certificate\n",
        "binary": bytes(range(256)),
        "cut": ca.read_bytes()[:200],
    }.items():
        wrong = tmp_path / name
        wrong.write_bytes(content)
        for files in ((wrong, key, ca), (cert, wrong, ca), (cert, key, wrong)):
            with pytest.raises(TlsError, match=f"cannot use .*{wrong}"):
                ServerTls(*files)
        with pytest.raises(TlsError, match=f"cannot use the authority {wrong}"):
            Tls(wrong)
    with pytest.raises(TlsError, match="a key of its own"):
        ServerTls(cert, other)
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(key), "-aes128", "-passout", "pass:secret"]
    locked.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
    with pytest.raises(TlsError, match=f"cannot use .*{locked}"):
        ServerTls(cert, locked)
    ServerTls(cert, key, ca)


def python_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", *(f"{p}/*.py" for p in PACKAGES)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines()]


def unsafe(source: str) -> list[str]:
    """What of a source could unpickle: imports of pickle and its like, loads that allow objects."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names}
            names.add((getattr(node, "module", None) or "").split(".")[0])
            found += sorted(names & {"pickle", "cPickle", "dill", "joblib", "shelve"})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            called = ast.unparse(node.func)
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append(called)
            if (
                called in ("np.load", "numpy.load")
                and given.get("allow_pickle", "False") != "False"
            ):
                found.append(called)
    return found


def test_nothing_is_unpickled() -> None:
    """A pickle runs code: checkpoints are safetensors, arrays come without objects."""
    assert unsafe("import pickle") == ["pickle"]
    assert unsafe("torch.load(path)") == ["torch.load"]
    assert unsafe("np.load(path, allow_pickle=True)") == ["np.load"]
    assert not unsafe("torch.load(path, weights_only=True), np.load(path)")
    assert not {path: found for path in python_files() if (found := unsafe(path.read_text()))}
