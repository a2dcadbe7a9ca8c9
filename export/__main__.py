"""The front of all commands: `python -m export COMMAND ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from cascade.errors import CascadeError, run

# Where each command is; a command imports its module alone, for some need PyTorch and some do not.
COMMANDS = {
    "build": ("export.commands", "write one release from checkpoints"),
    "publish": ("export.commands", "make the next release and let the server answer with it"),
    "rollback": ("export.releases.commands", "go back to the release before"),
    "releases": ("export.releases.commands", "list the releases of a repository"),
    "sign": ("export.releases.commands", "sign a release for servers that trust a key"),
    "split": ("export.releases.commands", "give a share of the users another release"),
    "catalogue": ("export.commands", "publish the live release with another catalogue"),
    "rewire": ("export.releases.commands", "write a release in another topology"),
    "users": ("export.commands", "write raw users into the store"),
    "plan": ("export.commands", "find the sizes that keep enough of the ranker's best"),
    "flat": ("export.commands", "export a ranker as a third party would"),
}


class UnknownCommandError(CascadeError):
    """There is no such command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; without one, list them. Options alone mean `build`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: python -m export COMMAND [options]; COMMAND --help says more\n")
        print(*(f"  {name:11}{summary}" for name, (_, summary) in COMMANDS.items()), sep="\n")
        print("\nWithout a command, options mean `build`.")
        return
    name = "build" if words[0].startswith("-") else words.pop(0)
    if name not in COMMANDS:
        raise UnknownCommandError(f"no command {name!r}; known are {', '.join(COMMANDS)}")
    getattr(importlib.import_module(COMMANDS[name][0]), name)(words)


if __name__ == "__main__":
    run(main, to_end=True)
