"""Files are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cascade import files


def test_json_may_hold_numbers_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    files.write_json(path, {"x": np.float32(0.5), "n": np.int64(3)})
    assert json.loads(path.read_text()) == {"x": 0.5, "n": 3}
    with pytest.raises(TypeError, match="does not go into JSON"):
        files.write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 0.5, "n": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than a block
    (tmp_path / "file").write_bytes(content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_who_is_killed_while_writing_leaves_the_old_text_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "config"
    script = (
        "import sys; from pathlib import Path; from cascade.files import replace_text\n"
        "print('go', flush=True)\n"
        "n = 0\n"
        "while True: replace_text(Path(sys.argv[1]), str(n % 10) * 100_000); n += 1\n"
    )
    for delay in range(5):
        command = [sys.executable, "-c", script, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            for _ in range(delay * 10):
                os.stat(tmp_path)
            writer.send_signal(signal.SIGKILL)
        text = path.read_text() if path.exists() else "0" * 100_000
        assert len(text) == 100_000
        assert len({*text}) == 1


def test_a_linked_file_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    files.link(tmp_path / "a", tmp_path / "folder" / "b")
    assert (tmp_path / "folder" / "b").read_text() == "x"
    assert os.path.samefile(tmp_path / "a", tmp_path / "folder" / "b")


def test_a_folder_is_moved_whole(tmp_path: Path) -> None:
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "deep" / "file").write_text("x")
    files.sync(tmp_path / "from")
    files.move(tmp_path / "from", tmp_path / "new" / "to")
    assert [p.name for p in files.content(tmp_path / "new")] == ["file"]
