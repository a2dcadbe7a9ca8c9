"""The flags of an export, and the `Build` that they describe."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cascade import index
from cascade.config import RUNTIMES, Device, Product, Serving
from cascade.server.threads import default_instances
from cascade.spec import PRERANK, RANK, TOPOLOGIES, Precision, Sizes, Weights
from cascade.store import absolute_url
from export.context import Build, BuildError

if TYPE_CHECKING:
    from export.described.file import Described

BATCH_USERS = 8  # on a CPU a larger batch gains little and makes all of its users wait
SIZES = Sizes()
RARE = f"""index kinds: {", ".join(index.KINDS)}, or a FAISS factory string. Also:
--ranker-onnx FILE --inputs JSON, --preranker-onnx FILE --preranker-inputs JSON; --flat;
--preranker NAME [{PRERANK}]; --row-order index|catalogue; --retrieve-from DIR;
--candidates N [{SIZES.candidates}], --survivors N [{SIZES.survivors}], --results N
[{SIZES.results}] (--sizes auto --keep X plans them);
--max-batch-size N [{Serving.max_batch_size}]; --max-queue-size N [{Serving.max_queue_size}; 0 =
no limit]; --queue-delay-us N; --batch-users N; --users-per-run N [measured]; --threads N;
--cuda-graphs; --half; --prerank-score F; --explored N,
--temperature X [0, 1.0]"""

DEFAULTS = {f.name: f.default for kind in (Build, Product, Serving) for f in fields(kind)}
DEFAULTS |= {**vars(SIZES), **dict.fromkeys(("index", "instances", "batch_users", "users_per_run"))}
UNTUNED = {"state": "float32", "weights": "float32", "users_per_run": 0}


def _flag(name: str, help: str | None = None, **options: Any) -> tuple[str, dict[str, Any]]:
    """A flag with the default of its field; without help of its own it stands in `RARE`."""
    default = DEFAULTS.get(name[2:].replace("-", "_"))
    if type(default) in (int, float):
        options["type"] = type(default)
    return name, {"help": help or argparse.SUPPRESS, "default": default, **options}


FLAGS = {
    "models": [
        _flag("--preranker"),
        *(_flag(f"--{name}ranker-onnx", type=Path) for name in ("", "pre")),
        *(_flag(f"--{name}inputs", type=Path) for name in ("", "preranker-")),
        _flag("--flat", action="store_true"),
        _flag("--state", "of the item states [auto]", choices=("auto", *get_args(Precision))),
        _flag("--weights", "of the layers [auto]", choices=("auto", *get_args(Weights))),
        _flag("--untuned", "usual values, nothing is measured: quick", action="store_true"),
    ],
    "index": [
        _flag("--index", "auto, exact, ivf, ... [auto; exact on cuda]", metavar="KIND"),
        _flag("--recall", "target at the candidates [%(default)s]", metavar="X"),
        _flag("--row-order", choices=("index", "catalogue")),
        _flag("--retrieve-from", type=Path),
        _flag(
            "--filter-features",
            "item features that a request may filter by [all]",
            type=lambda text: () if text == "none" else tuple(text.split(",")),
            metavar="NAME,…|none",
        ),
    ],
    "serving": [
        _flag("--runtime", "what runs the graphs [%(default)s]", choices=RUNTIMES),
        _flag(
            "--also",
            "write and prove this form of the graphs, too",
            choices=("torchscript", "aoti"),
            action="append",
            default=[],
        ),
        _flag("--device", "[%(default)s]", choices=get_args(Device)),
        _flag("--topology", "[%(default)s]", choices=TOPOLOGIES),
        _flag("--instances", "processes of each model [by the cores here]", type=int, metavar="N"),
        *map(_flag, ("--max-batch-size", "--max-queue-size", "--queue-delay-us", "--threads")),
        _flag("--store", "adds recommend_user: users by id", metavar="URL"),
        _flag("--deny-list", "ids never to recommend, one per line [%(default)s]", metavar="FILE"),
        *(_flag(name, type=int) for name in ("--users-per-run", "--batch-users")),
        *(_flag(name, action="store_true") for name in ("--cuda-graphs", "--half")),
    ],
    "choice among the ranked items": [
        *(_flag(f"--{name}") for name in vars(SIZES)),
        _flag("--score", "formula of the ranker's tasks [the first]", metavar="F"),
        _flag("--prerank-score", metavar="F"),
        _flag("--pool", "ranked items to choose from [off]", metavar="N"),
        _flag("--diversity", "from 0 to 1 [%(default)s]", metavar="X"),
        _flag("--explored"),
        _flag("--temperature"),
    ],
}


def add(parser: argparse.ArgumentParser, hidden: bool = False) -> None:
    """Add what an export can be told, apart from what it reads and writes; `hidden` lists the
    options in the last lines of the help, by name alone."""
    names = [name for flags in FLAGS.values() for name, _ in flags]
    parser.epilog = f"as for build: {' '.join(names)}" if hidden else RARE
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, options in flags:
            group.add_argument(name, **options | ({"help": argparse.SUPPRESS} if hidden else {}))


def build_of(args: argparse.Namespace, repository: Path, version: int) -> Build:
    """The export that parsed flags ask for, `checkpoints` among them, into a repository and under a
    number. Raises BuildError: flags that contradict each other."""
    on_gpu = args.device == "cuda"
    for name in UNTUNED if args.untuned else ():
        if getattr(args, name) in (None, "auto"):
            setattr(args, name, UNTUNED[name])
    default_batch = 0 if on_gpu else BATCH_USERS
    described = _described(args)
    if described and not described.preranks and args.survivors == SIZES.survivors:
        args.survivors = args.candidates
    given = {
        **_named(args, Build),
        "repository": repository,
        "version": version,
        "sizes": Sizes(**_named(args, Sizes)),
        "serving": replace(
            Serving(**{**_named(args, Serving), "users_per_run": args.users_per_run or 0}),
            instances=args.instances or default_instances(args.topology),
            batch_users=default_batch if args.batch_users is None else args.batch_users,
        ),
        "product": _product(args, described),
        "index": args.index or ("exact" if on_gpu else "ivf" if args.untuned else "auto"),
        "also": tuple(args.also),
        "measure_batching": args.users_per_run is None,
        "foreign": described.foreign if described else _foreign(args),
        "preranks": not described or described.preranks,
    }
    return Build(**given)


def _product(args: argparse.Namespace, described: Described | None) -> Product:
    """The flags, and the formulas of the file where no flag has another."""
    found = replace(Product(**_named(args, Product)), store=absolute_url(args.store))
    said = described.formulas if described else {}
    given: dict[str, Any] = {name: getattr(found, name) or text for name, text in said.items()}
    return replace(found, **given)


def _named(args: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The flags that are called like fields of `kind`."""
    return {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add where the models come from, and where the release goes."""
    add = parser.add_argument_group("where").add_argument
    add("--checkpoints", type=Path, metavar="DIR", help="what training wrote")
    add("--cascade", type=Path, metavar="FILE", help="or a cascade.yaml: docs/your-models.md")
    add("--repository", type=Path, metavar="DIR", required=True, help="model repository to write")
    add("--version", type=int, default=1, metavar="N", help="number of the release [%(default)s]")
    add("--sizes", choices=("auto",), help=argparse.SUPPRESS)
    add("--keep", type=float, help=argparse.SUPPRESS)


def _described(args: argparse.Namespace) -> Described | None:
    """What --cascade names, written as a folder of checkpoints, which `args` then name."""
    if not args.cascade:
        if not args.checkpoints:
            raise BuildError("--checkpoints DIR or --cascade FILE is needed")
        return None
    folder = args.checkpoints or args.repository.with_name(f"{args.repository.name}-checkpoints")
    from export.described import file  # with all that traces models, which takes seconds to import

    described = file.write(args.cascade, folder)
    args.checkpoints, args.preranker = described.folder, described.preranker
    for note in described.notes:
        print(note)
    return described


def _foreign(args: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """By stage: the ONNX file and the JSON of its inputs."""
    found = {}
    for stage, onnx, inputs in (
        (PRERANK, "preranker_onnx", "preranker_inputs"),
        (RANK, "ranker_onnx", "inputs"),
    ):
        files = getattr(args, onnx), getattr(args, inputs)
        if files.count(None) == 1:
            names = (f"--{name.replace('_', '-')}" for name in (onnx, inputs))
            raise BuildError(" and ".join(names) + " go together")
        if files[0]:
            found[stage] = files
    return found
