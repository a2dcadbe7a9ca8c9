"""A server that serves only what a trusted key signed: python -m cascade.server --trust KEY.pem

Triton runs the code in its model repository, so write access to the repository is control of the
server. With keys to trust, tritonserver reads a copy in the run folder, which only the server's own
user may write. The copy holds the releases whose release.json a trusted key signed, and of these
the files that release.json lists, with the digests that it lists; model.py and config.pbtxt are
written anew. Of the repository's own config.pbtxt, only the numbers are taken: which of the signed
releases is live, which others stay loaded, and a challenger's share of the users.

The copy follows the repository while the server runs, and the supervisor loads what changed in it:
a publisher needs the repository and its signing key, and no access to the server. A change that is
not signed stays out, and the server goes on with the releases that it has.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from cascade import pbtxt
from cascade.artifact import ArtifactError, check_file
from cascade.client.split import CHALLENGER
from cascade.errors import CascadeError
from cascade.files import move
from cascade.release import RELEASE_FILE, SIGNATURE_FILE, check_manifest, listed, read_release
from cascade.server.security import TrustedKeys, TrustError
from cascade.spec import (
    CHALLENGER_SHARE,
    ENSEMBLE,
    FILTERED,
    FRONTS,
    PROCESSES,
)

MOST_BYTES = 1 << 26  # of a manifest or a configuration
_NUMBER = re.compile("[1-9][0-9]{0,17}")
Stamp = tuple[tuple[str, int, int], ...]  # path, time of change in ns and bytes of each file


def _read(path: Path) -> bytes:
    """A small file that others may write. Raises TrustError: no file, or a large one; OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would wait
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise TrustError(f"{path} is no file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise TrustError(f"{path} has more than {MOST_BYTES:,} bytes")
    return content


@dataclass
class TrustedCopy:
    """The copy of a repository at `root`, a folder that this object fills.

    Args:
        source: the repository, which others may write.
    """

    source: Path
    keys: TrustedKeys
    root: Path
    _configs: dict[int, dict[str, pb.ModelConfig]] = field(default_factory=dict)  # of each release
    _stamps: dict[int, Stamp] = field(default_factory=dict)  # of what was looked at
    _refused: dict[int, str] = field(default_factory=dict)
    _changed: set[str] = field(default_factory=set)
    _removed: set[str] = field(default_factory=set)

    def make(self) -> list[str]:
        """Make the copy -> what of the repository stays out of it, and why. Raises TrustError: one
        of the cascade's models would stay out; OSError."""
        refused = self.update()
        missed = [why for model, why in refused.items() if model in (*PROCESSES, *FRONTS)]
        if missed or not (self.root / ENSEMBLE / "config.pbtxt").exists():
            raise TrustError("; ".join(missed) or f"{self.source} holds no release of a cascade")
        self.changes()
        return [*refused.values()]

    def changes(self) -> tuple[set[str], set[str]]:
        """The models whose config.pbtxt changed, and those that are gone, since the last call."""
        found = self._changed, self._removed
        self._changed, self._removed = set(), set()
        return found

    def update(self) -> dict[str, str]:
        """Follow the repository -> why something stays out or as it was, by the model's name or the
        release's number. Raises OSError."""
        self.root.mkdir(mode=0o700, exist_ok=True)
        for number in self._numbers():
            stamp = self._stamp(number)
            if stamp == self._stamps.get(number) and self._is_whole(number):
                continue
            self._refused.pop(number, None)
            try:
                self._admit(number)
            except (CascadeError, OSError) as error:
                self._refused[number] = f"release {number} of {self.source} stays out: {error}"
            self._stamps[number] = stamp
        wrong = dict(self._follow())
        self._prune()
        return {str(number): why for number, why in self._refused.items()} | wrong

    def _numbers(self) -> list[int]:
        names = (path.parent.name for path in (self.source / ENSEMBLE).glob(f"*/{RELEASE_FILE}"))
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def _stamp(self, number: int) -> Stamp:
        files = [path for path in sorted(self.source.glob(f"*/{number}/**/*")) if path.is_file()]
        found = [(str(path), path.stat()) for path in files]
        return tuple((path, now.st_mtime_ns, now.st_size) for path, now in found)

    def _is_whole(self, number: int) -> bool:
        """Whether all that was copied of a release is still there, or it stays out."""
        if number in self._refused:
            return True
        manifest = self._manifest(self.root, number)
        if number not in self._configs or not manifest.exists():
            return False
        files = listed(self.root, read_release(self.root, number), number)
        return all(path.exists() for path, _ in files)

    def _admit(self, number: int) -> None:
        """Copy a release; one that was copied before stays if this fails. Raises TrustError,
        ArtifactError: it is not as it was signed; OSError."""
        content = _read(self._manifest(self.source, number))
        self.keys.check(content, self._signature(number))
        whole = number in self._configs and self._is_whole(number)
        if whole and self._manifest(self.root, number).read_bytes() == content:
            return
        staged = self.root.with_name(f"{self.root.name}-staged")
        shutil.rmtree(staged, ignore_errors=True)
        manifest = self._manifest(staged, number)
        manifest.parent.mkdir(parents=True)
        manifest.write_bytes(content)
        release = read_release(staged, number)
        check_manifest(release, number, self._manifest(self.source, number))
        for path, expected in listed(staged, release, number):
            path.parent.mkdir(parents=True, exist_ok=True)
            source = self.source / path.relative_to(staged)
            check_file(source, expected["bytes"])
            shutil.copyfile(source, path)
            check_file(path, expected["bytes"], expected["sha256"])
        configs = pbtxt.configs_of(staged, number)
        for model, config in configs.items():
            folder = staged / model / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            if config.backend == "python":
                (folder / "model.py").write_text(pbtxt.MODEL_PY)
                (folder / "__pycache__").touch()  # else the server takes bytecode for a change
        self._leave_out(number)
        for folder in staged.glob(f"*/{number}"):
            move(folder, self.root / folder.relative_to(staged))
        shutil.rmtree(staged)
        self._configs[number] = configs

    def _signature(self, number: int) -> bytes:
        try:
            return _read(self._manifest(self.source, number).with_name(SIGNATURE_FILE))
        except FileNotFoundError as error:
            raise TrustError(
                f"it is not signed; python -m export sign --repository {self.source} --key KEY "
                "signs it, and python -m export publish --sign KEY the next one"
            ) from error

    @staticmethod
    def _manifest(root: Path, number: int) -> Path:
        return root / ENSEMBLE / str(number) / RELEASE_FILE

    def _leave_out(self, number: int) -> None:
        self._configs.pop(number, None)
        for folder in self.root.glob(f"*/{number}"):
            shutil.rmtree(folder)

    def _follow(self) -> Iterator[tuple[str, str]]:
        """Write config.pbtxt of every model as the repository's says which releases it serves ->
        models whose own does not change, and why."""
        for path in sorted(self.source.glob("*/config.pbtxt")):
            name = path.parent.name
            try:
                config = self._config(name, pbtxt.parse(_read(path), path))
            except (CascadeError, OSError) as error:
                yield name, f"{path} changes nothing: {error}"
                continue
            if config is None:
                yield name, f"the model {name} of {self.source} stays out: no release has it"
                continue
            place = self.root / name / "config.pbtxt"
            for number in config.version_policy.specific.versions:
                (place.parent / str(number)).mkdir(parents=True, exist_ok=True)
            place.parent.mkdir(exist_ok=True)
            if not place.exists() or pbtxt.read(place) != config:
                pbtxt.save(config, place)
                self._changed.add(name)
        for place in self.root.glob("*/config.pbtxt"):
            if not (self.source / place.relative_to(self.root)).exists():
                shutil.rmtree(place.parent)
                self._removed.add(place.parent.name)

    def _config(self, name: str, wanted: pb.ModelConfig) -> pb.ModelConfig | None:
        """config.pbtxt of a model, made of signed releases; None for a model that none has."""
        versions = sorted(wanted.version_policy.specific.versions)
        front = name.removesuffix(CHALLENGER)
        if front in FRONTS and (number := pbtxt.pinned(wanted)) is not None:
            source = number
        else:
            source = max(versions or self._configs, default=0)
        if not self._configs:
            raise ArtifactError("; ".join(self._refused.values()) or "there is no release")
        for number in {*versions, source}:
            if number not in self._configs:
                why = self._refused.get(number, "there is no such release")
                raise ArtifactError(f"it wants release {number}, but {why}")
        made = self._configs[source].get(front if front in FRONTS else name)
        if made is None:
            return None
        config = pb.ModelConfig()
        config.CopyFrom(made)
        config.version_policy.specific.versions[:] = versions or [source]
        if front in FRONTS:
            _follow_split(config, name, wanted)
        return config

    def _prune(self) -> None:
        """Delete the releases that the repository has no more, once no model is told to load
        them."""
        kept = {*self._numbers()}
        for path in self.root.glob("*/config.pbtxt"):
            kept |= {*pbtxt.read(path).version_policy.specific.versions}
        for number in {*self._stamps} - kept:
            self._leave_out(number)
            del self._stamps[number]


def _follow_split(config: pb.ModelConfig, name: str, wanted: pb.ModelConfig) -> None:
    """Take over what a split of the users says: the challenger's names, and its share."""
    config.name = name
    if FILTERED in config.parameters and name.endswith(CHALLENGER):
        config.parameters[FILTERED].string_value += CHALLENGER
    if CHALLENGER_SHARE in wanted.parameters:
        text = wanted.parameters[CHALLENGER_SHARE].string_value
        try:
            config.parameters[CHALLENGER_SHARE].string_value = f"{float(text):g}"
        except ValueError as error:
            raise ArtifactError(f"its share of the users is {text[:40]!r}, no number") from error
