"""The flags of an export, and the `Build` that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from cascade import index
from cascade.config import RUNTIMES, Product, Serving
from cascade.server.threads import default_instances
from cascade.spec import PRERANK, RANK, TOPOLOGIES, Precision, Sizes, Weights
from cascade.store import absolute_url
from export.context import Build, BuildError

BATCH_USERS = 8  # on a CPU a larger batch gains little and makes all of its users wait
SIZES = Sizes()
RARE = f"""index kinds: {", ".join(index.KINDS)}, or a FAISS factory string. Also:
--ranker-onnx FILE --inputs JSON, --preranker-onnx FILE --preranker-inputs JSON
(third-party models); --row-order index|catalogue; --retrieve-from DIR (take its index);
--candidates N [{SIZES.candidates}], --survivors N [{SIZES.survivors}], --results N
[{SIZES.results}] (leave each stage); --max-batch-size N [{Serving.max_batch_size}];
--max-queue-size N [{Serving.max_queue_size}; 0 = no limit]; --queue-delay-us N; --batch-users N;
--users-per-run N [measured]; --threads N; --cuda-graphs; --half"""


def add(parser: argparse.ArgumentParser, hidden: bool = False) -> None:
    """Add what an export can be told, apart from what it reads and writes.

    Args:
        hidden: list the options in the last lines of the help, by name alone.
    """
    parser.epilog = "as for build:" if hidden else RARE
    for add_group in (_add_models, _add_index, _add_serving, _add_choice):
        add_group(parser, hidden)


def _group(parser: argparse.ArgumentParser, hidden: bool, title: str) -> Callable[..., Any]:
    """The `add_argument` of a group; options without help of their own stand in `RARE`."""
    group = parser.add_argument_group(title)

    def add_argument(*names: str, **options: Any) -> None:
        if hidden:
            parser.epilog = f"{parser.epilog} {names[0]}"
        if hidden or "help" not in options:
            options["help"] = argparse.SUPPRESS
        group.add_argument(*names, **options)

    return add_argument


def _add_models(parser: argparse.ArgumentParser, hidden: bool) -> None:
    flag = _group(parser, hidden, "models")
    flag("--preranker", default=PRERANK, metavar="NAME", help="checkpoint to prerank [%(default)s]")
    for name in ("--ranker-onnx", "--inputs", "--preranker-onnx", "--preranker-inputs"):
        flag(name, type=Path)
    states, weights = get_args(Precision), get_args(Weights)
    flag("--state", choices=("auto", *states), default="auto", help="of the item states [auto]")
    flag("--weights", choices=("auto", *weights), default="auto", help="of the layers [auto]")


def _add_index(parser: argparse.ArgumentParser, hidden: bool) -> None:
    flag = _group(parser, hidden, "index")
    flag("--index", metavar="KIND", help="auto, exact, ivf, ... [auto; exact on cuda]")
    flag("--recall", type=float, default=0.95, metavar="X", help="target at the candidates [0.95]")
    flag("--row-order", choices=("index", "catalogue"), default="index")
    flag("--retrieve-from", type=Path)
    flag(
        "--filter-features",
        type=lambda text: () if text == "none" else tuple(text.split(",")),
        metavar="NAME,…|none",
        help="item features that a request may filter by [all]",
    )


def _add_serving(parser: argparse.ArgumentParser, hidden: bool) -> None:
    flag = _group(parser, hidden, "serving")
    flag("--runtime", choices=RUNTIMES, default="onnx", help="what runs the graphs [%(default)s]")
    flag(
        "--also",
        choices=("torchscript", "aoti"),
        action="append",
        default=[],
        help="write and prove this form of the graphs, too",
    )
    flag("--device", choices=("cpu", "cuda"), default="cpu", help="[%(default)s]")
    flag("--topology", choices=TOPOLOGIES, default=Serving.topology, help="[%(default)s]")
    flag("--instances", type=int, metavar="N", help="processes of each model [by the cores here]")
    for name in ("--max-batch-size", "--max-queue-size", "--queue-delay-us"):
        flag(name, type=int, default=getattr(Serving, name[2:].replace("-", "_")))
    flag("--store", default=Product.store, metavar="URL", help="adds recommend_user: users by id")
    flag(
        "--deny-list",
        metavar="FILE",
        default=Product.deny_list,
        help="ids never to recommend, one per line [%(default)s]",
    )
    flag("--threads", type=int, default=0)
    flag("--users-per-run", type=int)
    flag("--batch-users", type=int)
    for name in ("--cuda-graphs", "--half"):
        flag(name, action="store_true")


def _add_choice(parser: argparse.ArgumentParser, hidden: bool) -> None:
    flag = _group(parser, hidden, "choice among the ranked items")
    for name, size in vars(SIZES).items():
        flag(f"--{name}", type=int, default=size)
    flag("--pool", type=int, default=0, metavar="N", help="ranked items to choose from [off]")
    flag("--diversity", type=float, default=0.0, metavar="X", help="from 0 to 1 [%(default)s]")
    flag("--explored", type=int, default=0, metavar="N", help="last places drawn by chance [0]")
    flag("--temperature", type=float, default=1.0, metavar="X", help="of the draws [1]")


def build_of(args: argparse.Namespace, repository: Path, version: int) -> Build:
    """The export that the flags of `add` describe.

    Args:
        args: also holds `checkpoints`.
        repository, version: where the export writes, and under which number.

    Raises:
        BuildError: flags that contradict each other.
    """
    on_gpu = args.device == "cuda"
    batch_users = args.batch_users
    if batch_users is None:
        batch_users = 0 if on_gpu else BATCH_USERS
    serving = replace(
        Serving(**_named(args, Serving)),
        instances=args.instances or default_instances(args.topology),
        batch_users=batch_users,
        users_per_run=args.users_per_run or 0,
    )
    return Build(
        checkpoints=args.checkpoints,
        repository=repository,
        version=version,
        preranker=args.preranker,
        sizes=Sizes(args.candidates, args.survivors, args.results),
        serving=serving,
        product=replace(Product(**_named(args, Product)), store=absolute_url(args.store)),
        index=args.index or ("exact" if on_gpu else "auto"),
        row_order=args.row_order,
        retrieve_from=args.retrieve_from,
        recall=args.recall,
        filter_features=args.filter_features,
        state=args.state,
        weights=args.weights,
        also=tuple(args.also),
        measure_batching=args.users_per_run is None,
        foreign=_foreign(args),
    )


def _named(args: argparse.Namespace, kind: type[Serving] | type[Product]) -> dict[str, Any]:
    """The flags that are called like fields of `kind`."""
    return {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}


def _foreign(args: argparse.Namespace) -> dict[str, tuple[Path, Path]]:
    """By stage: the ONNX file and the JSON of its inputs."""
    found = {}
    for stage, file, inputs in (
        (PRERANK, "preranker_onnx", "preranker_inputs"),
        (RANK, "ranker_onnx", "inputs"),
    ):
        files = getattr(args, file), getattr(args, inputs)
        if (files[0] is None) != (files[1] is None):
            names = (f"--{name.replace('_', '-')}" for name in (file, inputs))
            raise BuildError(" and ".join(names) + " go together")
        if files[0]:
            found[stage] = files
    return found
