"""Releases of a repository on disk: what is installed, kept, undone and gone back to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2 as pb

from cascade import pbtxt
from cascade.artifact import ArtifactError
from cascade.config import Serving
from cascade.stages.pipeline import Pipeline
from export import __main__ as export_command
from export.releases.commands import HEADER, table
from export.releases.control import ControlError
from export.releases.manifest import verify
from export.releases.publishing import STEPS, Make, Publisher, PublishError
from export.releases.repository import BusyError, Repository
from export.releases.rewire import from_export
from tests.cascades import BAGS, Cascade


@dataclass
class Place:
    """A repository, and what its publishers said."""

    repository: Repository
    said: list[str]

    def publisher(self, keep: int = 3) -> Publisher:
        return Publisher(self.repository, None, keep, self.said.append)

    def answers(self, cascade: Cascade) -> np.ndarray:
        """What the live release answers, in process."""
        live = self.repository.live
        assert live is not None
        pipeline = Pipeline.load(self.repository.root, live, Serving(threads=1))
        return cascade.ask(pipeline, stop=4)[0]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Repository(tmp_path / "live"), [])


@pytest.fixture(scope="session")
def other(make_cascade: Callable[..., Cascade]) -> Cascade:
    """Other models for the same requests."""
    return make_cascade(seed=1)


def test_releases_are_numbered_and_pinned(place: Place, criteo: Cascade, other: Cascade) -> None:
    first = place.publisher().publish(from_export(criteo.repository))
    assert (first.number, first.before, first.switch_ms) == (1, None, None)
    np.testing.assert_array_equal(place.answers(criteo), criteo.ask(criteo.pipeline(), stop=4)[0])
    second = place.publisher().publish(from_export(other.repository))
    assert (second.number, second.before) == (2, 1)
    np.testing.assert_array_equal(place.answers(other), other.ask(other.pipeline(), stop=4)[0])
    root = place.repository.root
    assert pbtxt.pinned(pbtxt.read(root / "recommend" / "config.pbtxt")) == 2
    for member in ("retrieve", "prerank", "rank"):
        policy = pbtxt.read(root / member / "config.pbtxt").version_policy
        assert [*policy.specific.versions] == [1, 2]
    assert [*place.repository.leftovers()] == []
    verify(root, 1)
    verify(root, 2)
    assert [line.split()[1] for line in place.said] == [*STEPS] * 2


def test_going_back_and_forth(place: Place, criteo: Cascade, other: Cascade) -> None:
    place.publisher().publish(from_export(criteo.repository))
    place.publisher().publish(from_export(other.repository))
    assert place.publisher().roll_back().number == 1
    np.testing.assert_array_equal(place.answers(criteo), criteo.ask(criteo.pipeline(), stop=4)[0])
    assert place.publisher().roll_back(2).number == 2
    with pytest.raises(
        PublishError, match=r"cannot go back to 2: 2 is live, and kept are \[1, 2\]"
    ):
        place.publisher().roll_back(2)
    with pytest.raises(PublishError, match="cannot go back to 7"):
        place.publisher().roll_back(7)


def test_only_so_many_are_kept(place: Place, seven: Cascade) -> None:
    for _ in range(4):
        place.publisher(keep=2).publish(from_export(seven.repository))
    assert place.repository.releases() == [3, 4]
    assert sorted(p.name for p in (place.repository.root / "rank").glob("[0-9]*")) == ["3", "4"]
    rows = table(place.repository)
    assert {len(row) for row in rows} == {len(HEADER)}
    assert [(row[0], row[1]) for row in rows] == [("3", "loaded"), ("4", "live")]


def test_a_kill_between_the_pins_is_made_good(
    place: Place, criteo: Cascade, other: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`recommend_filtered` is then pinned to a release that never went live."""
    place.publisher().publish(from_export(criteo.repository))
    repository, save = place.repository, pbtxt.save

    def killed(config: pb.ModelConfig, path: Path) -> None:
        if path.parent.name == "recommend" and not repository.agreed:
            raise KeyboardInterrupt
        save(config, path)

    make = from_export(other.repository)
    with monkeypatch.context() as patched:
        patched.setattr(pbtxt, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            place.publisher().publish(make)
    assert (repository.live, repository.agreed) == (1, False)
    place.publisher().recover()
    assert (repository.releases(), repository.live, repository.agreed) == ([1], 1, True)
    assert pbtxt.pinned(repository.config("recommend_filtered")) == 1


def broken(make: Make, name: str) -> Make:
    """The same release with a byte changed on the way."""

    def changed(target: Path, number: int) -> None:
        make(target, number)
        path = target / name.format(number)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    return changed


def test_a_damaged_release_changes_nothing(place: Place, seven: Cascade) -> None:
    make = from_export(seven.repository)
    place.publisher().publish(make)
    before = sorted(place.repository.root.rglob("*"))
    with pytest.raises(
        ArtifactError, match=r"rank/2/item_state\.bin is not the file that was saved"
    ):
        place.publisher().publish(broken(make, "rank/{}/item_state.bin"))
    assert sorted(place.repository.root.rglob("*")) == before
    assert place.repository.live == 1


def test_a_release_for_other_requests_is_refused(
    place: Place, criteo: Cascade, seven: Cascade
) -> None:
    assert seven.schema.name == BAGS.name
    place.publisher().publish(from_export(criteo.repository))
    with pytest.raises(ArtifactError, match=r"takes requests of layout .*repository of its own"):
        place.publisher().publish(from_export(seven.repository))
    assert place.repository.releases() == [1]


def test_one_publisher_at_a_time(place: Place, seven: Cascade) -> None:
    with place.repository.locked(), pytest.raises(BusyError, match="another process publishes"):
        place.publisher().publish(from_export(seven.repository))


class Killed(BaseException):
    """Stands for a kill: nothing that handles errors may catch it."""


@pytest.mark.parametrize("step", STEPS)
def test_after_a_kill_in_any_step_there_is_a_whole_release(
    place: Place, seven: Cascade, step: str
) -> None:
    make = from_export(seven.repository)
    place.publisher().publish(make)

    def die(line: str) -> None:
        if line.split()[1] == step:
            raise Killed

    with pytest.raises(Killed):
        Publisher(place.repository, None, say=die).publish(make)
    live = place.repository.live
    assert live in (1, 2)
    verify(place.repository.root, live)
    assert place.publisher().publish(make).number == live + 1
    assert [*place.repository.leftovers()] == []
    assert not any(place.repository.pending(n) for n in place.repository.releases())


def test_a_release_goes_live_while_no_step_can_be_told(place: Place, seven: Cascade) -> None:
    command = [sys.executable, "-m", "export", "publish", "--repository"]
    command += [str(place.repository.root), "--release", str(seven.repository)]
    reader, gone = os.pipe()
    os.close(reader)
    for number, stdout in enumerate((os.open("/dev/full", os.O_WRONLY), gone), 1):
        ran = subprocess.run(command, stdout=stdout, cwd=Path(__file__).parents[2])
        os.close(stdout)
        assert ran.returncode == (1 if number == 1 else 141)
        assert place.repository.live == number


def test_the_commands(place: Place, seven: Cascade, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(place.repository.root)

    def call(command: str, *arguments: str) -> str:
        export_command.main([command, "--repository", root, *arguments])
        return capsys.readouterr().out

    for number in (1, 2):
        said = call("publish", "--release", str(seven.repository))
        assert said.endswith(f"release {number} is live (before: {number - 1 or None})\n")
    assert call("rollback").endswith("release 1 is live (before: 2)\n")
    rows = [line.split() for line in call("releases").splitlines()]
    assert [row[:2] for row in rows] == [["release", "state"], ["1", "live"], ["2", "loaded"]]
    with pytest.raises(PublishError, match="cannot go back to 5"):
        call("rollback", "--to", "5")
    with pytest.raises(ControlError, match=r"no server answers at 127\.0\.0\.1:1"):
        call("publish", "--release", str(seven.repository), "--url", "127.0.0.1:1")
