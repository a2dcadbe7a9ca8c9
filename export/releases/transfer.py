"""Copies a release that was exported elsewhere: on the machine that trains, for example."""

from __future__ import annotations

import shutil
from pathlib import Path

from cascade.files import write_json
from cascade.release import RELEASE_FILE, newest_version, read_release
from cascade.spec import ENSEMBLE, TOPOLOGIES
from export.releases.publishing import Make
from export.releases.repository import FRONTS


def from_export(source: Path) -> Make:
    """Copy the newest release of another repository, under a new number."""

    def make(target: Path, number: int) -> None:
        version = newest_version(source)
        release = read_release(source, version)
        for model in {*TOPOLOGIES[release["topology"]], *FRONTS}:
            if not (source / model / str(version)).exists():
                continue  # the release has no users by id
            shutil.copytree(
                source / model / str(version),
                target / model / str(number),
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        manifest = target / ENSEMBLE / str(number) / RELEASE_FILE
        write_json(manifest, {**release, "version": number})

    return make
