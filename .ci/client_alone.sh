#!/usr/bin/env bash
# Proves that a client needs numpy and tritonclient alone: installs this checkout without any extra
# into an environment of its own, and uses the client from a folder that is not the checkout.
#
#   .ci/client_alone.sh [PYTHON]
set -euo pipefail

python=$(command -v "${1:-python3}")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Built from a copy: setuptools would leave build/ in the checkout and pick up what lies in it.
mkdir "$work/source" "$work/elsewhere"
(cd "$root" && cp -R pyproject.toml README.md cascade clients "$work/source/")

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$work/source"

cd "$work/elsewhere"
"$work/venv/bin/python" -I - <<'PYTHON'
import importlib.util
import sys

import clients
import clients.batch
import clients.events
import clients.recommend

heavy = ("torch", "onnx", "onnxruntime", "faiss", "pyarrow", "pandas", "tqdm", "pytriton")
heavy += ("lmdb", "redis")
present = [name for name in heavy if importlib.util.find_spec(name)]
assert not present, f"installed beside the client: {present}"
assert sys.prefix in clients.__file__, f"not the installed client: {clients.__file__}"

recommender = clients.Recommender("127.0.0.1:9", retry=clients.Retry(tries=1))
try:
    recommender.recommend({})
except clients.Unavailable as error:
    print(f"client works, and says of a server that is not there: {error}")
recommender.close()
assert clients.batch.main(["in.parquet", "out.parquet"]) == 1  # names pyarrow and its remedy
assert clients.events.main(["--store", "lmdb:users"]) == 1  # likewise lmdb
PYTHON
"$work/venv/bin/python" -I -m clients.recommend --help >help.txt
grep -q -- --random help.txt
"$work/venv/bin/python" -m pip list --format=freeze
