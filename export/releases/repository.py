"""A model repository whose releases change while a server serves it. One file says which is live:
config.pbtxt of `recommend`, whose steps pin a release. The server reads it when it loads
`recommend`, also after a restart. The other models that clients ask follow it. The members keep two
releases loaded, the live one and the one before, so that a rollback is only a switch."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from cascade import pbtxt
from cascade.artifact import ArtifactError
from cascade.client.split import CHALLENGER
from cascade.config import of_release
from cascade.errors import CascadeError
from cascade.files import content, move
from cascade.release import RELEASE_FILE, SIGNATURE_FILE, read_release, tasks_of
from cascade.schema import Schema
from cascade.spec import (
    CHALLENGER_SHARE,
    EARLIER_FUSED,
    ENSEMBLE,
    FILTERED,
    FRONTS,
    WIRINGS,
    sizes_from,
)

PENDING_FILE = "pending"  # beside release.json until the release has been live
STAGED = "staged-"  # not a number, so the server ignores it
READ_ONLY = 0o444  # installed files are never written again


class BusyError(CascadeError):
    """Another process is changing the repository."""


@dataclass(frozen=True)
class Repository:
    """The folder, and what its files say about releases."""

    root: Path

    def config(self, name: str) -> pb.ModelConfig:
        """config.pbtxt of a model; empty where there is no such model."""
        path = self.root / name / "config.pbtxt"
        return pbtxt.read(path) if path.exists() else pb.ModelConfig()

    @property
    def live(self) -> int | None:
        """The release that `recommend` is pinned to; None before the first one."""
        if not (found := self.config(ENSEMBLE)).name:
            return None
        number = pbtxt.pinned(found)
        return number if number is not None and number in self.releases() else self.newest

    @property
    def newest(self) -> int | None:
        """The highest number of a complete release."""
        return max(self.releases(), default=None)

    def releases(self) -> list[int]:
        """The numbers of all complete releases, in order."""
        folders = (self.root / ENSEMBLE).glob(f"[0-9]*/{RELEASE_FILE}")
        return sorted(int(path.parent.name) for path in folders)

    def check_published(self) -> None:
        """Raises ArtifactError where the folder holds no release."""
        if not self.releases():
            raise ArtifactError(
                f"{self.root} holds no release: python -m export publish --repository {self.root} "
                "writes the first one"
            )

    def check_wiring(self) -> None:
        """Raises ArtifactError where the folder holds releases that can be served, not changed."""
        for number in self.releases():
            check_current(read_release(self.root, number), self.root)

    def pending(self, number: int) -> bool:
        """Whether a release is installed and has not been live yet."""
        return (self.folder(number) / PENDING_FILE).exists()

    def folder(self, number: int) -> Path:
        """Where the manifest of a release lies."""
        return self.root / ENSEMBLE / str(number)

    def staging(self, number: int) -> Path:
        """Where a release is prepared on the same file system: a repository of its own."""
        return self.root / ENSEMBLE / f"{STAGED}{number}"

    def fronts(self) -> list[str]:
        """The models that clients ask, in the order in which they load."""
        return [name for name in FRONTS if (self.root / name / "config.pbtxt").exists()]

    def members(self) -> list[str]:
        """The Python models that hold the stages."""
        numbers = self.releases()
        return [*WIRINGS[read_release(self.root, numbers[0])["topology"]]] if numbers else []

    def loaded(self) -> list[int]:
        """The releases that the members are told to keep loaded."""
        found = map(self.config, self.members())
        return next((sorted(c.version_policy.specific.versions) for c in found if c.name), [])

    def install(self, number: int) -> None:
        """Move a release from its staging folder to where the server looks. Its manifest moves
        last: a release without one does not count, also after a kill."""
        staged = self.staging(number)
        for program in staged.glob(f"*/{number}/model.py"):
            # Keep Python from writing bytecode: a file that appears after the load makes the
            # server take the version for a changed one, and load it again during the switch.
            (program.parent / "__pycache__").touch()
        for file in content(staged):
            file.chmod(READ_ONLY)
        (staged / ENSEMBLE / str(number) / PENDING_FILE).touch()
        for folder in sorted(staged.glob(f"*/{number}"), key=lambda f: f.parent.name == ENSEMBLE):
            move(folder, self.root / folder.parent.name / str(number))
        shutil.rmtree(staged)

    def configure(self, number: int, loaded: Sequence[int]) -> None:
        """Tell the members which releases to keep loaded, and how they run: as `number` says."""
        for name, found in pbtxt.configs_of(self.root, number).items():
            if name not in FRONTS:
                self._write(name, found, loaded)

    def pin(self, number: int, share: float | None = None) -> None:
        """Make a release the live one from the next load on; `share` is the challenger's."""
        found = pbtxt.configs_of(self.root, number)
        if share is not None:
            found[ENSEMBLE].parameters[CHALLENGER_SHARE].string_value = f"{share:g}"
        for name in (name for name in FRONTS if name in found):  # `recommend` last: see `live`
            self._front(name, number)
            self._write(name, found[name], [number])

    @property
    def signed(self) -> bool:
        """Whether every release that the members are told to load is signed, by whatever key."""
        return all((self.folder(n) / SIGNATURE_FILE).exists() for n in self.loaded())

    @property
    def agreed(self) -> bool:
        """Whether all models that clients ask are pinned to the live release: a publisher that is
        killed while it pins them leaves some behind."""
        return {pbtxt.pinned(self.config(name)) for name in self.fronts()} <= {self.live}

    @property
    def split(self) -> float:
        """The challenger's share of the users; 0 without a challenger."""
        found = self.config(ENSEMBLE).parameters
        return float(found[CHALLENGER_SHARE].string_value) if CHALLENGER_SHARE in found else 0.0

    @property
    def challenger(self) -> int | None:
        """The release that a share of the users has; None where no release has."""
        return pbtxt.pinned(self.config(f"{ENSEMBLE}{CHALLENGER}")) if self.split else None

    def alias(self, ending: str, number: int) -> list[str]:
        """Copy the models that clients ask, of some release, under other names -> these names."""
        configs = pbtxt.configs_of(self.root, number)
        for name in (fronts := [name for name in FRONTS if name in configs]):
            found, folder = configs[name], self.root / f"{name}{ending}"
            found.name = folder.name
            if FILTERED in found.parameters:
                found.parameters[FILTERED].string_value += ending
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / str(number)).symlink_to(self._front(name, number).resolve())
            self._write(folder.name, found, [number])
        return [f"{name}{ending}" for name in fronts]

    def aliases(self, ending: str) -> list[str]:
        """The names that `alias` has made."""
        names = [f"{name}{ending}" for name in FRONTS]
        return [name for name in names if (self.root / name).exists()]

    def settle(self, number: int) -> None:
        """Note that a release has been live."""
        (self.folder(number) / PENDING_FILE).unlink(missing_ok=True)

    def remove(self, number: int) -> None:
        """Delete a release, its manifest first: what a kill leaves counts as left-overs."""
        (self.folder(number) / RELEASE_FILE).unlink(missing_ok=True)
        for folder in self.root.glob(f"*/{number}"):
            shutil.rmtree(folder)

    def leftovers(self) -> Iterator[Path]:
        """Folders that a killed publisher left: staged, or installed without a manifest."""
        yield from (self.root / ENSEMBLE).glob(f"{STAGED}*")
        complete = {*self.releases()}
        for member in (*self.members(), *FRONTS):
            for folder in (self.root / member).glob("[0-9]*"):
                if int(folder.name) not in complete:
                    yield folder
        if not self.split:
            yield from (self.root / name for name in self.aliases(CHALLENGER))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One publisher at a time; a killed one holds no lock. Raises BusyError."""
        lock = self.root / ENSEMBLE / ".lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(f"another process publishes into {self.root}") from error
            yield

    def _front(self, name: str, number: int) -> Path:
        """The version folder of a model that clients ask; releases of earlier versions lack some,
        and the server wants one."""
        folder = self.root / name / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _write(self, name: str, found: pb.ModelConfig, versions: Sequence[int]) -> None:
        found.version_policy.specific.versions[:] = sorted(versions)
        (self.root / name).mkdir(exist_ok=True)
        pbtxt.save(found, self.root / name / "config.pbtxt")


def check_current(release: Mapping[str, Any], root: Path) -> None:
    """Raises ArtifactError for a release of an earlier version that only can be served."""
    if release["topology"] == EARLIER_FUSED:
        raise ArtifactError(
            f"{root} is of an earlier version, where `recommend` was the one process of a fused "
            f"release: python -m export rewire --repository {root} --topology fused --out DIR "
            "writes it anew into DIR; serve that, or publish from there"
        )


def write_configs(root: Path, release: dict[str, Any], number: int, schema: Schema) -> None:
    """Write config.pbtxt and model.py of every model of a release that is written under a number.
    Raises ArtifactError: the repository is wired in another way."""
    serving, product = of_release(release)
    runs, sizes = pbtxt.runs_of(release, serving), sizes_from(release["sizes"])
    how = (root, schema, sizes, serving, number, runs)
    pbtxt.write(*how, product=product, tasks=tasks_of(release))
