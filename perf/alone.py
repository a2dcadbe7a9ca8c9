"""`python -m perf.alone`: a release in a process of its own: when it first answers, what it holds.

Imports no more than serving does, or the memory of other libraries would be counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perf import memory, payload
from perf.bound import configs, open_pipeline
from perf.payload import Features

TOUCHING_USERS = 400  # asked before memory is looked at, so that the pages in use are in it


def look(repository: Path, users: Path) -> dict[str, Any]:
    """Start the process, and read what it says.

    Raises:
        SystemExit: it failed; it has said why.
    """
    words = ["--repository", str(repository), "--users", str(users)]
    ran = subprocess.run(
        [sys.executable, "-m", "perf.alone", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if ran.returncode:
        raise SystemExit(f"python -m perf.alone {' '.join(words)} failed: see above")
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def load_and_ask(repository: Path, users: payload.Payload) -> dict[str, Any]:
    """Open all stages in this process and ask for some users, on one thread.

    Returns:
        load_s: seconds from the first file to the first answer, files in the page cache or not as
        it happens to be. rss_mb, pss_mb, shared_mb, anonymous_mb: afterwards. program_mb: resident
        before. files_mb: resident of the release's own files.
    """
    me = [os.getpid()]
    before = memory.of(me)
    began = time.perf_counter()
    recommend = open_pipeline(repository)
    recommend(users.dense[:1], users.categorical[:1])
    load_s = time.perf_counter() - began
    asked = min(TOUCHING_USERS, len(users))
    for user in range(asked):
        recommend(users.dense[user : user + 1], users.categorical[user : user + 1])
    files = memory.mapped(me, repository)
    return {
        "load_s": load_s,
        **asdict(memory.of(me)),
        "program_mb": before.rss_mb,
        "files_mb": sum(held.rss_mb for held in files.values()),
        "asked": asked,
    }


def main() -> None:
    """The command line: prints JSON."""
    parser = argparse.ArgumentParser(prog="python -m perf.alone", description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="exported model repository")
    parser.add_argument("--users", type=Path, required=True, help="users.jsonl")
    args = parser.parse_args()
    users = payload.load(args.users, Features.of(configs(args.repository)[0]))
    print(json.dumps(load_and_ask(args.repository, users)))


if __name__ == "__main__":
    main()
