"""Workers that get no processor while they load: the server gives them up, and is helped."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cascade import pbtxt
from cascade.server import workers
from cascade.server.launcher import Server
from export.releases.control import Control

CONFIG = """
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [ 1 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 1 ] }]
instance_group [{ count: 1 kind: KIND_CPU }]
version_policy { specific { versions: [ 1 ] } }
"""
MODEL = """
import pathlib, time
class TritonPythonModel:
    def initialize(self, args):
        (pathlib.Path(args["model_repository"]) / "began").touch()
        time.sleep(0.5)
"""
STARVED_S = 2.0  # the server looks for signs of life once a second
PATIENCE_S = 60.0


def starve(server: Server, model: Path) -> None:
    """Stop the worker that loads the model next, and let it go on."""
    deadline = time.monotonic() + PATIENCE_S
    while not (model / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    loading = workers.alive(server.name)
    newest = max(loading, key=lambda worker: worker.process.create_time()).process
    newest.suspend()
    time.sleep(STARVED_S)
    newest.resume()


def starving(server: Server, model: Path) -> threading.Thread:
    (model / "began").unlink(missing_ok=True)
    thread = threading.Thread(target=starve, args=(server, model))
    thread.start()
    return thread


def test_a_worker_without_a_processor_costs_a_second_load(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """While the server starts, and while it serves."""
    model = tmp_path / "repository" / "starved"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "1" / "model.py").write_text(MODEL)
    server = Server(model.parent, probe=None)
    starved = starving(server, model)
    with server:
        starved.join()
        told = capfd.readouterr().err
        assert "tritonserver gave it up" in told
        assert "starting it again" in told
        pid, starved = server.pid, starving(server, model)
        (model / "1" / "model.py").write_text(MODEL + "\n")
        control = Control(server.url, server.control_headers)
        control.load(model.name, pbtxt.read(model / "config.pbtxt"), signed=False)
        starved.join()
        assert "tritonserver gave it up" in capfd.readouterr().err
        assert server.poll() is None
        assert server.pid == pid
