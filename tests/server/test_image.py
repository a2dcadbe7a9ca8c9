"""The Dockerfile as it is, built and run as production would run it.

Takes buildah, podman and debootstrap (`apt-get install --no-install-recommends buildah podman crun
debootstrap netavark catatonit`), and root. A small Debian with the bundled tritonserver stands in
for NVIDIA's base image, which is tens of gigabytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from tests.cascades import Cascade

ROOT = Path(__file__).parents[2]
NEEDED = ("buildah", "podman", "crun", "debootstrap", "unshare", "nsenter")
PACKAGES = "python3,python3-pip,libpython3.11,ca-certificates"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE = """
FROM scratch
ADD root /
RUN pip install --break-system-packages --no-deps nvidia-pytriton=={triton} numpy=={numpy}
"""
POLICY = {"default": [{"type": "insecureAcceptAnything"}]}
CONTAINERS = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
STORAGE = '[storage]\ndriver = "overlay"\ngraphroot = "{0}/images"\nrunroot = "{0}/run"\n'
HOLDER = """
umount -l /sys/fs/cgroup/unified 2>/dev/null
mount -t tmpfs tmpfs /etc/containers && echo mounted && exec sleep infinity
"""
PATIENCE_S = 90.0

missing = [tool for tool in NEEDED if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}"),
    pytest.mark.skipif(os.getuid() != 0, reason="takes root"),
]


@dataclass(frozen=True)
class Engine:
    """Runs commands where /etc/containers is the test's own; no other process sees it."""

    pid: int

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        command = ["nsenter", f"--target={self.pid}", "--mount", "--", *map(str, words)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        return ran.stdout.strip()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("containers")
    Path("/etc/containers").mkdir(exist_ok=True)
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", HOLDER], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip("this user cannot mount")
        run = Engine(holder.pid)
        for name, content in {
            "policy.json": json.dumps(POLICY),
            "containers.conf": CONTAINERS,
            "storage.conf": STORAGE.format(folder),
        }.items():
            (folder / name).write_text(content)
            run("cp", folder / name, f"/etc/containers/{name}")
        try:
            yield run
        finally:
            run("podman", "rm", "--all", "--force", check=False)
            run("podman", "rmi", "--all", "--force", check=False)
            holder.kill()


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("image")
    try:
        bootstrap = ("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm")
        engine(*bootstrap, folder / "root")
    except AssertionError as error:
        pytest.skip(f"no Debian to build on: {str(error)[-300:]}")
    versions = {"triton": metadata.version("nvidia-pytriton"), "numpy": metadata.version("numpy")}
    (folder / "Containerfile").write_text(BASE.format(**versions))
    (folder / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\ntimeout = 180\n")
    shared = [f"--volume={folder / 'pip.conf'}:/etc/pip.conf:ro"]
    if CERTIFICATES.exists():
        shared.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
    build = ("buildah", "bud", "--isolation=chroot", "--format=docker", *shared)
    engine(*build, "--tag=triton-base", folder)
    arguments = ("--build-arg=BASE=localhost/triton-base", "--build-arg=FLAVOUR=cpu")
    engine(*build, *arguments, "--tag=cascade", ROOT)
    shutil.rmtree(folder)
    return "localhost/cascade"


def test_the_image_holds_what_the_tests_saw(engine: Engine, image: str) -> None:
    command = ("podman", "run", "--rm", "--network=none", "--entrypoint=pip", image)
    installed = dict(
        line.split("==") for line in engine(*command, "freeze").splitlines() if "==" in line
    )
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    names = {_normal(name): version for name, version in installed.items()}
    both = {name: names[_normal(name)] for name in pinned if _normal(name) in names}
    assert {"onnxruntime", "tritonclient", "protobuf", "grpcio", "numpy"} <= {*both}
    assert both == {name: pinned[name] for name in both}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_user_is_a_number(engine: Engine, image: str) -> None:
    """Kubernetes' runAsNonRoot cannot tell what a name stands for."""
    user = engine("podman", "image", "inspect", "--format={{.Config.User}}", image)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_the_image_serves_and_stops(engine: Engine, image: str, criteo: Cascade) -> None:
    """With no network, no capability, no write access and no root."""
    subprocess.run(["chmod", "-R", "a+rX", str(criteo.repository.parent)], check=True)
    for folder in criteo.repository.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)
    limits = ("--network=none", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--no-healthcheck")
    privileges = ("--security-opt=no-new-privileges", "--shm-size=1g")
    models = f"--volume={criteo.repository}:/models:ro"
    name = engine("podman", "run", "--detach", *limits, *privileges, models, image)
    try:
        health = ("podman", "exec", name, "python3", "-m", "cascade.server.health")
        deadline = time.monotonic() + PATIENCE_S
        while not (said := engine(*health, check=False)).startswith("healthy: recommend"):
            assert time.monotonic() < deadline, said + engine("podman", "logs", name, check=False)
            time.sleep(0.5)
        status = engine("podman", "exec", name, "cat", "/proc/1/status")
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
        assert re.search(r"^Uid:\s+10001\b", status, re.MULTILINE)
        engine("podman", "stop", "--time=30", name)
        code = engine("podman", "inspect", "--format={{.State.ExitCode}}", name)
        assert code == "0"
    finally:
        engine("podman", "rm", "--force", name, check=False)
