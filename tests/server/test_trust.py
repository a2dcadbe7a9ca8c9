"""A server that trusts keys serves what they signed, and nothing that someone who can write its
repository puts there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cascade.client import Recommender
from cascade.errors import CascadeError
from cascade.release import SIGNATURE_FILE
from cascade.server.launcher import Server
from cascade.server.security import TrustedKeys, TrustError
from cascade.server.supervisor import Supervisor
from cascade.server.trust import TrustedCopy
from export.__main__ import main as export
from export.releases.control import Control, ControlError
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
from export.releases.signing import PASSWORD_VARIABLE, Signer, SigningError
from tests.cascades import Cascade
from tests.server.test_publish import Load

MARK = "import pathlib; pathlib.Path({mark!r}).touch()\n"


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """As the documentation makes them."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: key_pair(folder, name) for name in ("ours", "theirs")}


@pytest.fixture
def signed(criteo: Cascade, keys: dict[str, tuple[Path, Path]], tmp_path: Path) -> Path:
    """A repository whose one release the command has signed."""
    bytecode = shutil.ignore_patterns("__pycache__")  # of a server that another test started
    root = Path(shutil.copytree(criteo.repository, tmp_path / "repository", ignore=bytecode))
    export(["sign", "--repository", str(root), "--key", str(keys["ours"][0])])
    return root


@pytest.fixture
def copy(
    signed: Path, keys: dict[str, tuple[Path, Path]], tmp_path: Path
) -> Callable[[], TrustedCopy]:
    def make() -> TrustedCopy:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return TrustedCopy(signed, TrustedKeys.read([keys["ours"][1]]), tmp_path / "copy")

    return make


def test_the_copy_is_the_repository_but_for_what_no_release_lists(
    signed: Path, copy: Callable[[], TrustedCopy]
) -> None:
    made = copy()
    assert made.make() == []
    names, copied = (
        {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        for root in (signed, made.root)
    )
    assert names - copied == {
        path for path in names if path.name in (".gitkeep", SIGNATURE_FILE, "titles.csv")
    }
    assert {path.name for path in copied - names} == {"__pycache__"}
    for path in copied & names - {Path("recommend/config.pbtxt")}:
        if path.name != "config.pbtxt":
            assert (made.root / path).read_bytes() == (signed / path).read_bytes(), path
    assert made.root.stat().st_mode & 0o077 == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def grow(path: Path) -> None:
    """To a size that no memory and no disk takes."""
    path.chmod(0o644)
    os.truncate(path, 1 << 42)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: flip(root / "rank/1/model.onnx"), "rank/1/model.onnx is not the file"),
        (lambda root: flip(root / "prerank/1/item_state.bin"), "item_state.bin is not the file"),
        (lambda root: (root / "rank/1/model.onnx").unlink(), "model.onnx is missing"),
        (lambda root: flip(root / f"recommend/1/{SIGNATURE_FILE}"), "no trusted key signed it"),
        (lambda root: (root / f"recommend/1/{SIGNATURE_FILE}").write_bytes(b""), "no trusted key"),
        (lambda root: (root / f"recommend/1/{SIGNATURE_FILE}").unlink(), "export sign"),
        (lambda root: replace(root / "recommend/1/release.json", '"version": 1', '"version":  1'),
         "no trusted key signed it"),
        (lambda root: replace(root / "recommend/config.pbtxt", "model_version: 1",
                              "model_version: 2"), "wants release 2, but there is no such"),
        (lambda root: (root / "rank/config.pbtxt").write_text("backend: {"), "not a model conf"),
        (lambda root: shutil.rmtree(root / "recommend"), "there is no release"),
        (lambda root: pipe(root / f"recommend/1/{SIGNATURE_FILE}"), "is no file"),
        (lambda root: pipe(root / "rank/config.pbtxt"), "is no file"),
        (lambda root: grow(root / "recommend/1/release.json"), "has more than"),
        (lambda root: grow(root / "rank/1/model.onnx"), "bytes were saved"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_signed_is_not_served(
    signed: Path, copy: Callable[[], TrustedCopy], change: Callable[[Path], Any], message: str
) -> None:
    change(signed)
    with pytest.raises(TrustError, match=message):
        copy().make()


def test_a_change_that_is_not_signed_leaves_the_copy_as_it_was(
    signed: Path, copy: Callable[[], TrustedCopy]
) -> None:
    made = copy()
    made.make()

    def held() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in made.root.rglob("*") if path.is_file()}

    before = held()
    flip(signed / "rank/1/model.onnx")  # release.json is the same: what was copied is still right
    assert made.update() == {}
    assert held() == before
    replace(signed / "recommend/1/release.json", '"version": 1', '"version":  1')
    assert "no trusted key signed it" in made.update()["1"]
    assert made.update() == made.update()
    assert held() == before
    (made.root / "rank/1/model.onnx").unlink()  # as a cleaner of temporary files does
    replace(signed / "recommend/1/release.json", '"version":  1', '"version": 1')
    assert "is not the file that was saved" in made.update()["1"]
    flip(signed / "rank/1/model.onnx")
    assert made.update() == {}
    assert held() == before


def test_code_in_the_repository_does_not_run(
    signed: Path, keys: dict[str, tuple[Path, Path]], criteo: Cascade, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Write access without a key: other code, another backend, a model more."""
    mark = tmp_path / "ran"
    config = (signed / "rank" / "config.pbtxt").read_text()
    for name in ("rank", "prerank", "retrieve", "extra"):
        program = signed / name / "1" / "model.py"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(MARK.format(mark=str(mark)))
        (program.parent / "cascade.py").write_text(MARK.format(mark=str(mark)))
        (signed / name / "config.pbtxt").write_text(
            config.replace('name: "rank"', f'name: "{name}"')
            + '\nparameters { key: "EXECUTION_ENV_PATH" value { string_value: "/nowhere" } }'
        )
    user = {"dense": criteo.dense[:1], "categorical": criteo.categorical[:1]}
    expected = criteo.ask(criteo.pipeline(), stop=1)[1]
    trusted = TrustedKeys.read([keys["theirs"][1], keys["ours"][1]])
    with Server(signed, trust=trusted) as server:
        control = Control(server.url, server.control_headers)
        assert control.ask("recommend", None, user)["scores"] == pytest.approx(expected, abs=1e-5)
        with pytest.raises(ControlError, match="extra"):
            control.ask("extra", None, user)
    assert not mark.exists()
    assert "the model extra" in capfd.readouterr().err


def test_a_foreign_release_does_not_start_a_server(
    signed: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    export(["sign", "--repository", str(signed), "--key", str(keys["theirs"][0])])
    command = [sys.executable, "-m", "cascade.server", "--repository", str(signed)]
    ran = subprocess.run(
        [*command, "--trust", str(keys["ours"][1])], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "no trusted key signed it as it is" in line


@pytest.fixture(scope="module")
def site(
    criteo: Cascade,
    make_cascade: Callable[..., Cascade],
    keys: dict[str, tuple[Path, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Repository, Server, tuple[Cascade, Cascade], list[str]]]:
    """A supervised server that trusts our key, on a repository with one signed release."""
    from concurrent.futures import ThreadPoolExecutor

    exports = (make_cascade(seed=1), criteo)
    repository = Repository(tmp_path_factory.mktemp("trusting") / "repository")
    first = Publisher(repository, say=lambda line: None, signer=Signer(keys["ours"][0]))
    first.publish(from_export(criteo.repository))
    server = Server(repository.root, trust=TrustedKeys.read([keys["ours"][1]]))
    events: list[str] = []
    with server, ThreadPoolExecutor(1) as pool:
        watch = pool.submit(
            Supervisor(server, lambda event, **more: events.append(json.dumps([event, more]))).watch
        )
        try:
            yield repository, server, exports, events
        finally:
            server.cancel()
            assert watch.result(60) is None


def answered_by(load: Load, release: int) -> None:
    """Wait for an answer of a release that has just gone live."""
    deadline = time.monotonic() + 60
    while release not in load.seen:
        assert time.monotonic() < deadline, load.seen
        time.sleep(0.05)


def test_signed_releases_come_and_go_under_load(site: Any, keys: Any) -> None:
    repository, server, exports, _ = site
    answers = [exports[1].ask(cascade.pipeline(), stop=12) for cascade in exports]
    expected = {number: answers[number % 2] for number in range(1, 9)}
    control = Control(server.url, server.control_headers)
    ours = Publisher(repository, control, say=lambda line: None, signer=Signer(keys["ours"][0]))
    with Load(server.url, exports[1].users[:12], expected) as load:
        ours.publish(from_export(exports[0].repository))
        assert ours.roll_back().number == 1
        ours.split(2, 0.5)
        assert ours.control.load("recommend", repository.config("recommend"), signed=True)
        ours.end_split()
        for turn in (1, 0, 1):  # more than are kept
            ours.publish(from_export(exports[turn].repository))
        answered_by(load, 5)
    assert load.wrong == []
    assert load.seen >= {1, 2, 3, 4, 5}
    assert control.release() == 5
    held = {int(path.parent.name) for path in server.served_from.glob("recommend/*/release.json")}
    assert held >= {4, 5}
    assert 1 not in held


def test_a_server_follows_without_a_control_key(site: Any, keys: Any) -> None:
    """The publisher has the repository and its signing key."""
    repository, server, exports, events = site
    live, answers = repository.live, [exports[1].ask(c.pipeline(), stop=12) for c in exports]
    expected = {number: answers[number % 2] for number in range(1, 12)}
    ours = Publisher(repository, say=lambda line: None, signer=Signer(keys["ours"][0]))
    control = Control(server.url)  # to ask

    def until(number: int) -> None:
        deadline = time.monotonic() + 60
        while control.release() != number:
            assert time.monotonic() < deadline, events
            time.sleep(0.1)

    with Load(server.url, exports[1].users[:12], expected) as load:
        ours.publish(from_export(exports[(live + 1) % 2].repository))
        until(live + 1)
        ours.roll_back()
        until(live)
        before = len(events)
        ours.split(live + 1, 0.5)
        while "recommend_b" not in "".join(events[before:]):
            time.sleep(0.1)
        with Recommender(server.url, deadline_s=30) as client:
            seen = {client.recommend({}, key=str(key)).release for key in range(40)}
        assert seen == {live, live + 1}
        ours.end_split()
        ours.publish(from_export(exports[live % 2].repository))
        until(live + 2)
        answered_by(load, live + 2)
    assert load.wrong == []
    assert load.seen >= {live, live + 1, live + 2}


def test_a_release_without_a_trusted_signature_stays_out(site: Any, keys: Any) -> None:
    repository, server, exports, events = site
    live = repository.live
    control = Control(server.url, server.control_headers)
    for signer in (None, Signer(keys["theirs"][0])):
        if signer is not None:
            control = _Impatient(server.url, server.control_headers)
        publisher = Publisher(repository, control, say=lambda line: None, signer=signer)
        with pytest.raises(ControlError, match="--trust"):
            publisher.publish(from_export(exports[live % 2].repository))
        assert (repository.live, control.release()) == (live, live)
    told = "".join(events)
    assert "is not signed" in told
    assert "no trusted key signed it as it is" in told


class _Impatient(Control):
    """Does not wait for a signed release as long as the copy of a large one may take."""

    def load(self, model: str, config: Any, signed: bool) -> float:
        return super().load(model, config, signed=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no public key in PEM"),
        (b"\xff\xfe", "holds no public key in PEM"),
        ("private", "holds no public key in PEM"),
        ("rsa", "another kind, RSAPublicKey; expected ed25519"),
    ],
)
def test_keys_that_cannot_be_trusted_are_named(
    keys: dict[str, tuple[Path, Path]], tmp_path: Path, content: Any, message: str
) -> None:
    file = tmp_path / "some.pub"
    if content == "private":
        content = keys["ours"][0].read_bytes()
    elif content == "rsa":
        openssl("genrsa", "-out", tmp_path / "rsa.key", "2048")
        openssl("pkey", "-in", tmp_path / "rsa.key", "-pubout", "-out", file)
        content = file.read_bytes()
        with pytest.raises(SigningError, match="another kind, RSAPrivateKey; expected ed25519"):
            Signer(tmp_path / "rsa.key")
    file.write_bytes(content)
    with pytest.raises(TrustError, match=message):
        TrustedKeys.read([file])


def test_an_encrypted_key_signs_with_its_password(
    signed: Path, keys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "encrypted.key"
    openssl("pkey", "-in", keys["ours"][0], "-aes256", "-passout", "pass:a word", "-out", file)
    with pytest.raises(SigningError, match=PASSWORD_VARIABLE):
        Signer(file)
    with pytest.raises(CascadeError, match="no private key"):
        Signer(keys["ours"][1])
    monkeypatch.setenv(PASSWORD_VARIABLE, "a word")
    signature = signed / "recommend" / "1" / SIGNATURE_FILE
    before = signature.read_bytes()
    signature.unlink()
    Signer(file).sign(signed, 1)
    assert signature.read_bytes() == before  # ed25519 draws nothing
    # Anyone can check it without this repository.
    openssl("pkeyutl", "-verify", "-pubin", "-inkey", keys["ours"][1], "-rawin",
            "-in", signature.with_name("release.json"), "-sigfile", signature)  # fmt: skip
