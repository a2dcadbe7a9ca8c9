"""Puts what the commands really printed into README.md: nobody types a figure.

A block `<!-- name -->` … `<!-- /name -->` is replaced by what the function of that name says.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

DEMO_OUTPUT = Path("build/demo/output.txt")
TEST_OUTPUT = Path("build/test.txt")
REPORT = Path("perf/report.md")
RESILIENCE_CLAIMS = Path("build/resilience/claims.md")


def demo() -> str:
    """What the demo's commands printed, from the answers on: three users, the tables."""
    text = DEMO_OUTPUT.read_text()
    sections = [section.strip() for section in re.split(r"(?m)^==> ", text)]
    wanted = ("python -m cascade.evaluation", "python -m clients.recommend", "perf_analyzer")
    kept = [section for section in sections if section.startswith(wanted)]
    if len(kept) < len(wanted):
        raise SystemExit(f"{DEMO_OUTPUT} is not the output of a whole demo: run make demo")
    return "```\n$ make demo\n" + "\n\n".join(f"==> {section}" for section in kept) + "\n```"


def tests() -> str:
    """The closing line of the tests."""
    last = TEST_OUTPUT.read_text().strip().splitlines()[-1]
    return f"```\n$ make test\n{last.strip('= ')}\n```"


def results() -> str:
    """The claims of the report; of a report without any, its first table."""
    tables = re.findall(r"(?m)(?:^\|.*\n)+", REPORT.read_text())
    if not tables:
        raise SystemExit(f"{REPORT} holds no table: run make perf first")
    claims = [table for table in tables if table.startswith("| claim")]
    return str([*claims, *tables][0].strip())


def resilience() -> str:
    """The claims of the latest run of `make resilience`."""
    return RESILIENCE_CLAIMS.read_text().strip()


BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "tests": tests,
    "results": results,
    "resilience": resilience,
}


def fill(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """README text with every block replaced; a block whose marks are missing is an error."""
    for name, content in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if not found:
            raise SystemExit(f"README.md has no block {name!r}")
        new = f"{found[1]}{content()}\n{found[2]}"
        text = text[: found.start()] + new + text[found.end() :]
    return text


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m perf.readme", description=__doc__)
    parser.add_argument("blocks", nargs="*", choices=[[], *BLOCKS], default=list(BLOCKS))
    names = parser.parse_args().blocks
    path = Path("README.md")
    path.write_text(fill(path.read_text(), {name: BLOCKS[name] for name in names}))


if __name__ == "__main__":
    main()
