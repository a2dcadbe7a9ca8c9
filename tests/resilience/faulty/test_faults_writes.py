"""Faults while releases are written and signed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.releases.manifest import verify
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
from tests.resilience.conftest import Pair
from tests.resilience.faults import FaultTable, Finding, Ran, fill, read_only, small_disk
from tests.resilience.faulty.forked import Forks

ROOM = (0.0, 0.02, 0.3, 0.6, 0.9)  # of what a release takes
MARGIN = 1 << 20
Publish = Callable[..., Ran]
LONG_S = 10.0  # `--seconds` of a run that takes its time


@pytest.fixture
def publish(forked: Forks, pair: Pair) -> Publish:
    """Runs the program with an export, by default that of release 2; it obeys permissions."""

    def run(root: Path, source: Path | None = None) -> Ran:
        release = source or pair.source(2)
        return forked("export", "publish", "--repository", root, "--release", release)

    return run


@pytest.fixture
def live(pair: Pair, work: Path) -> Path:
    """A repository whose release 1 is live."""
    return first_release(work / "live", pair)


def first_release(root: Path, pair: Pair) -> Path:
    Publisher(Repository(root), say=lambda line: None).publish(from_export(pair.source(1)))
    return root


def check_release(found: Finding, root: Path, pair: Pair, live: int = 1) -> None:
    """The live release is whole, and the next one can be published."""
    repository = Repository(root)
    found.lost = int(repository.live != live)
    verify(root, live)
    start = time.monotonic()
    Publisher(repository, say=lambda line: None).publish(from_export(pair.source(live + 1)))
    found.right_s = time.monotonic() - start
    verify(root, live + 1)
    found.lost += int(repository.live != live + 1 or bool([*repository.leftovers()]))


@pytest.mark.parametrize("room", ROOM)
def test_a_full_disk_while_publishing(
    pair: Pair, work: Path, publish: Publish, faults: FaultTable, room: float
) -> None:
    size = sum(path.stat().st_size for path in pair.source(2).rglob("*") if path.is_file())
    with (
        faults(f"publish: disk full, room for {room:.0%} of the release") as found,
        small_disk(work / "disk", 4 * size + 4 * MARGIN) as disk,
    ):
        root = first_release(disk / "live", pair)
        filler = fill(disk, int(room * size))
        found.shows = publish(root).error
        filler.unlink()
        assert "No space left" in found.shows
        check_release(found, root, pair)


def test_a_repository_that_may_not_be_written(
    live: Path, pair: Pair, publish: Publish, faults: FaultTable
) -> None:
    with faults("publish: the repository may not be written") as found:
        folders = [live, *(path for path in live.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        found.shows = publish(live).error
        for folder in folders:
            folder.chmod(0o755)
        assert "Permission denied" in found.shows
        check_release(found, live, pair)


def test_a_read_only_repository(
    live: Path, pair: Pair, publish: Publish, faults: FaultTable
) -> None:
    with faults("publish: the repository is mounted read-only") as found:
        with read_only(live):
            found.shows = publish(live).error
        assert "Read-only file system" in found.shows
        check_release(found, live, pair)


def test_an_export_that_may_not_be_read(
    live: Path, pair: Pair, work: Path, publish: Publish, faults: FaultTable
) -> None:
    source = Path(shutil.copytree(pair.source(2), work / "source"))
    with faults("publish: a file of the export may not be read") as found:
        (source / "rank" / "1" / "model.onnx").chmod(0)
        found.shows = publish(live, source).error
        assert "model.onnx" in found.shows
        check_release(found, live, pair)


def test_a_damaged_export(
    live: Path, pair: Pair, work: Path, publish: Publish, faults: FaultTable
) -> None:
    source = Path(shutil.copytree(pair.source(2), work / "source"))
    with faults("publish: a bit of the export has flipped") as found:
        path = source / "rank" / "1" / "item_state.bin"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        found.shows = publish(live, source).error
        assert "item_state.bin is not the file that was saved" in found.shows
        check_release(found, live, pair)


def test_two_publishers_at_once(
    live: Path, pair: Pair, publish: Publish, faults: FaultTable
) -> None:
    with faults("publish: another publisher is at work") as found:
        with Repository(live).locked():
            found.shows = publish(live).error
        assert "another process publishes" in found.shows
        check_release(found, live, pair)


# --- killed at every write

# Runs in a process that has imported all: a child of it that counts, and dies at the n-th write.
KILLED = """
import os, signal, sys
{imports}
WRITES = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.symlink",
          "os.truncate", "os.chmod", "shutil.copyfile", "shutil.rmtree")
def die_at(number):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event not in WRITES:
            return
        if event == "open" and not (isinstance(arguments[2], int) and
                                    arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
for line in sys.stdin:  # the number of the write to die at
    child = os.fork()
    if child == 0:
        die_at(int(line))
        try:
            {work}
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@contextmanager
def dying(imports: str, work: str) -> Iterator[Callable[[int], bool]]:
    """Does some work in a process that gets SIGKILL at its n-th write -> whether it died; it ended
    in order where it has fewer."""
    code = KILLED.format(imports=imports, work=work)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=None, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None

        def run(number: int) -> bool:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write(f"{number}\n")
            parent.stdin.flush()
            status = int(parent.stdout.readline())
            assert status in (0, signal.SIGKILL), status
            return status == signal.SIGKILL

        yield run
        parent.stdin.close()


def test_a_publisher_killed_at_every_write(
    live: Path, pair: Pair, work: Path, faults: FaultTable, seconds: float
) -> None:
    """In a short run, at some of them."""
    imports = """
from pathlib import Path
from export.releases.publishing import Publisher
from export.releases.repository import Repository
from export.releases.rewire import from_export
"""
    target = work / "target"
    publishing = (
        f"Publisher(Repository(Path({str(target)!r})), say=lambda line: None)"
        f".publish(from_export(Path({str(pair.source(2))!r})))"
    )
    with (
        faults("publish: SIGKILL at each of its writes") as found,
        dying(imports, publishing) as die,
    ):
        lost, writes, kills, died = 0, 0, 0, True
        while died:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(live, target, copy_function=os.link)
            writes += 1 if seconds >= LONG_S else 11
            died = die(writes)
            kills += died
            repository = Repository(target)
            lost += int(repository.live not in (1, 2))
            verify(target, repository.live or 0)
            start = time.monotonic()
            Publisher(repository, say=lambda line: None).recover()
            found.right_s = time.monotonic() - start
            lost += int(bool([*repository.leftovers()]))
        assert writes > 20
        found.shows = f"nothing is left of it after the next publisher, {kills} times"
        found.lost = lost


def test_a_signer_killed_at_every_write(
    live: Path, pair: Pair, work: Path, faults: FaultTable
) -> None:
    key = work / "release.key"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)],
        check=True,
        capture_output=True,
    )
    imports = "from pathlib import Path\nfrom export.releases.signing import Signer"
    signing = f"Signer(Path({str(key)!r})).sign(Path({str(live)!r}), 1)"
    signature = live / "recommend" / "1" / "release.json.sig"
    with faults("sign: SIGKILL at each of its writes") as found, dying(imports, signing) as die:
        writes, died, whole = 0, True, set()
        while died:
            signature.unlink(missing_ok=True)
            writes += 1
            died = die(writes)
            whole.add(len(signature.read_bytes()) if signature.exists() else None)
        assert whole == {None, 64}
        found.shows = "the release has no signature, or a whole one"
        check_release(found, live, pair)
